"""The doctor finds, before a run, what would end it; each fault comes with a next step."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import tempfile
from pathlib import Path

import pytest
from pretend_spm import make_program, make_spm

from iqtflow.cli.doctor import (
    FAULT,
    NOTE,
    OK,
    check_folder,
    check_memory,
    check_models,
    check_spm,
    check_temporary,
    run_doctor,
)
from iqtflow.cli.parser import parse
from iqtflow.segmentation.spm.install import SpmNotFoundError, find_spm


def make_models(folder: Path, *, sha256: str | None = None) -> Path:
    folder.mkdir()
    (folder / "t1w-k4.safetensors").write_bytes(b"weights")
    digest = sha256 or hashlib.sha256(b"weights").hexdigest()
    entries = [{"file": "t1w-k4.safetensors", "sha256": digest, "k": 4, "contrast": "T1w"}]
    (folder / "index.json").write_text(json.dumps(entries))
    return folder


@pytest.fixture
def spm(tmp_path):
    """Return a folder that looks like SPM, and a program that looks like an Octave in which it works."""
    says = "echo IQTFLOW-SPM-RUNNER GNU Octave 9.2.0; echo IQTFLOW-SPM-DONE"
    return make_spm(tmp_path / "spm"), make_program(tmp_path / "octave-cli", says)


def test_models_with_right_checksums_pass(tmp_path):
    (check,) = check_models(required=True, folder=make_models(tmp_path / "weights"))
    assert check.state == OK
    assert "t1w-k4 (k = 4, T1w)" in check.finding


def test_a_changed_or_missing_model_is_a_fault_where_it_is_needed(tmp_path):
    folder = make_models(tmp_path / "weights", sha256="0" * 64)
    assert [c.state for c in check_models(required=True, folder=folder)] == [FAULT]
    assert [c.state for c in check_models(required=False, folder=folder)] == [NOTE]
    (folder / "t1w-k4.safetensors").unlink()
    (check,) = check_models(required=True, folder=folder)
    assert "missing" in check.finding
    (folder / "index.json").unlink()
    (check,) = check_models(required=True, folder=folder)
    assert (check.state, bool(check.next_step)) == (FAULT, True)


def test_too_little_memory_for_the_mode_is_a_fault_with_a_next_step():
    assert check_memory("train", available_gb=64.0).state == OK
    check = check_memory("train", available_gb=1.5)
    assert check.state == FAULT
    assert "1.5 GB" in check.finding
    assert "--memory" in check.next_step


def test_a_folder_is_checked_by_writing_to_it_or_to_where_it_will_be_made(tmp_path):
    assert check_folder("Output", tmp_path / "not" / "yet").state == OK
    assert not (tmp_path / "not").exists()
    (tmp_path / "file").touch()
    check = check_folder("Output", tmp_path / "file" / "out")
    assert check.state == FAULT
    assert check.next_step


def test_spm_priors_and_mex_files_are_told_one_by_one(spm):
    found, octave, mex, tpm = check_spm(required=True, spm_dir=spm[0], octave=spm[1])
    assert found.state == octave.state == mex.state == OK
    assert str(spm[1]) in octave.finding
    assert "SPM12 r7771" in found.finding
    assert "(argument)" in found.finding
    assert "GNU Octave 9.2.0" in mex.finding
    assert tpm.state == NOTE
    assert "not SPM's TPM.nii" in tpm.finding


def test_mex_files_of_another_octave_are_a_fault_that_says_to_compile(spm):
    says = "echo 'IQTFLOW-SPM-ERROR Octave:x | API version mismatch in spm_bsplinc.mex'; exit 3"
    wrong = make_program(spm[1].parent / "wrong", says)
    _, _, mex, _ = check_spm(required=True, spm_dir=spm[0], octave=wrong)
    assert mex.state == FAULT
    assert "API version mismatch" in mex.finding
    assert "PLATFORM=octave" in mex.next_step


@pytest.mark.usefixtures("no_spm")
def test_a_missing_spm_stops_only_those_who_asked_for_it():
    (asked,) = check_spm(required=True, segmentation="spm")
    (auto,) = check_spm(required=False, segmentation="auto")
    (ants,) = check_spm(required=False, segmentation="ants")
    assert (asked.state, auto.state, ants.state) == (FAULT, NOTE, OK)
    assert "--spm-dir" in asked.next_step
    assert "embedded engine" in auto.next_step


def test_a_missing_octave_is_told_apart_from_a_missing_spm_and_each_has_its_own_next_step(
    no_spm, spm, monkeypatch, tmp_path
):
    monkeypatch.setenv("SPM_HOME", str(spm[0]))
    monkeypatch.setenv("SPM_DIR", str(tmp_path / "gone"))
    monkeypatch.setenv("OCTAVE_EXEC", "no-such-octave")
    octave, folder = check_spm(required=True)
    assert (octave.name, octave.state, folder.name, folder.state) == ("Octave", FAULT, "SPM", FAULT)
    assert "$OCTAVE_EXEC=no-such-octave" in octave.finding
    assert str(tmp_path / "gone") in folder.finding and "--spm-dir" in folder.next_step


def screen(output_dir: Path, mode: str = "enhance", **given: object) -> tuple[int, str]:
    options = parse(["--doctor", "--device", "cpu"])
    vars(options).update({"run__mode": mode, "paths__output_dir": output_dir, **given})
    with contextlib.redirect_stdout(io.StringIO()) as stream:
        return run_doctor(options), stream.getvalue()


@pytest.mark.usefixtures("no_spm")
def test_the_exit_code_says_whether_this_configuration_can_run(tmp_path):
    code, text = screen(tmp_path, "calibrate", segmentation__engine="ants")
    assert code == 0
    assert text.endswith("Ready to run.\n")
    code, text = screen(tmp_path, "calibrate", segmentation__engine="spm")
    assert code == 1
    assert "FAULT SPM" in text
    assert "1 fault: this configuration cannot run." in text


def test_everything_fits_on_one_screen_and_every_fault_has_a_next_step(tmp_path, spm):
    (tmp_path / "file").touch()
    _, text = screen(
        tmp_path / "file" / "out",
        "train",
        segmentation__engine="spm",
        segmentation__spm_dir=spm[0],
        segmentation__octave=tmp_path / "gone",
        enhance__model=tmp_path / "gone.safetensors",
    )
    lines = text.splitlines()
    assert len(lines) <= 24
    faults = [i for i, line in enumerate(lines) if line.startswith("  FAULT")]
    assert len(faults) >= 3
    assert all(lines[i + 1].strip().startswith("->") for i in faults)


@pytest.mark.spm
def test_a_real_spm_passes():
    try:
        find_spm()
    except SpmNotFoundError as fault:
        pytest.skip(f"no SPM to test with: {fault}")
    checks = [check for check in check_spm(required=True) if "passed over" not in check.finding]
    checks = {check.name: check for check in checks}
    assert {name: checks[name].state for name in ("SPM", "MEX")} == {"SPM": OK, "MEX": OK}, checks
    assert "runs SPM's MEX files" in checks["MEX"].finding
    assert checks["TPM"].state in (OK, NOTE)


def test_a_gpu_that_is_asked_for_and_not_there_is_a_fault_that_names_the_containers_option(tmp_path):
    from iqtflow.utils.gpus import resolve_device

    if resolve_device("auto").name == "cuda":
        pytest.skip("this machine has a GPU")
    code, text = screen(tmp_path, run__device="cuda")
    assert code == 1
    assert "FAULT Device" in text and "--gpus all" in text


def test_a_missing_spm_hides_no_missing_octave(no_spm, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    spm, octave = check_spm(required=True)
    assert (spm.name, spm.state, octave.name, octave.state) == ("SPM", FAULT, "Octave", FAULT)
    assert "--spm-dir" in spm.next_step and "apt-get install octave" in octave.next_step


def test_every_fault_of_one_spm_is_named_at_once(no_spm, spm, monkeypatch):
    """No MEX files, no priors, no Octave: three things to do, told in one go."""
    (spm[0] / "spm_bsplinc.mex").unlink()
    (spm[0] / "tpm/TPM.nii").unlink()
    monkeypatch.setenv("PATH", "/nonexistent")
    checks = list(check_spm(required=True, spm_dir=spm[0]))
    assert [check.name for check in checks] == ["SPM", "Octave", "SPM"]
    assert {check.state for check in checks} == {FAULT}
    assert "MEX" in checks[0].finding and "TPM.nii" in checks[2].finding


@pytest.mark.usefixtures("no_spm")
def test_to_enhance_scans_nothing_is_said_of_tissue_maps(tmp_path):
    _, text = screen(tmp_path)
    assert "SPM" not in text and "Octave" not in text and "segmentation" not in text


def test_a_temporary_folder_is_looked_at_for_sockets_too(monkeypatch, tmp_path):
    long = tmp_path / ("x" * 80)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", os.fspath(long))
    check = check_temporary()
    assert check.state == OK and "sockets go to /" in check.finding
    monkeypatch.setattr("iqtflow.utils.environment.SHORT_FOLDERS", ())
    check = check_temporary()
    assert check.state == FAULT and "TMPDIR" in check.next_step


def test_no_temporary_folder_at_all_is_a_fault(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [os.fspath(tmp_path / "gone")])
    assert check_temporary().state == FAULT


def test_a_work_directory_that_others_may_write_is_a_fault(tmp_path):
    (tmp_path / "of a run").touch()
    tmp_path.chmod(0o777)
    check = check_folder("Work", tmp_path)
    assert check.state == FAULT and "others may write" in check.finding
    assert check_folder("Output", tmp_path).state == OK


@pytest.mark.parametrize("content", [b"[1]", b'{"models": [{"k": 4}]}', b'{"models": 3}', b"{"])
def test_a_damaged_index_of_models_is_a_fault(tmp_path, content):
    (make_models(tmp_path / "weights") / "index.json").write_bytes(content)
    assert FAULT in [check.state for check in check_models(required=True, folder=tmp_path / "weights")]


def test_a_model_that_cannot_be_read_is_a_fault(tmp_path):
    (tmp_path / "mine.safetensors").write_bytes(b"no model")
    code, text = screen(tmp_path, enhance__model=tmp_path / "mine.safetensors")
    assert code == 1 and "FAULT Model" in text
