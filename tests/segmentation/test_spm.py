"""SPM without SPM: how it is found, its job, its input, the checks of its maps, and nipype's NewSegment.

Where a process has to run, a shell script behaves like Octave. Tests with a real SPM under a real Octave are
in ``test_spm_real.py``.
"""

from __future__ import annotations

import gzip
import os
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import write_scan
from nipype import Node, Workflow
from nipype.interfaces.base import isdefined
from nipype.interfaces.spm import NewSegment
from nipype.interfaces.utility import IdentityInterface
from phantoms import make_brain
from pretend_spm import SUCCESS, make_program, make_spm
from scipy.io import savemat

from iqtflow.interfaces.spm import UnifiedSegmentation
from iqtflow.segmentation.spm.checks import SpmFigures, find_unstripped_sibling, judge, measure
from iqtflow.segmentation.spm.install import SpmNotFoundError, find_spm, read_spm_version, tpm_blob_id
from iqtflow.segmentation.spm.job import SpmError, run_m_code, run_unified_segmentation
from iqtflow.segmentation.spm.script import (
    DEFAULT_TISSUES,
    UnifiedSegmentationSettings,
    expected_outputs,
    job_script,
)
from iqtflow.segmentation.spm.segment import brain_from_tissues, segment_with_spm
from iqtflow.segmentation.spm.stripped import (
    looks_stripped,
    stripped_settings,
    write_brain_priors,
    write_with_background,
)
from iqtflow.utils.errors import InputError, OutputError
from iqtflow.utils.system import peak_memory_gb


@pytest.fixture
def head(tmp_path: Path) -> Path:
    """Write a compressed image as large as a head."""
    data = np.random.default_rng(0).uniform(1, 9, (12, 12, 12)).astype("float32")
    return write_scan(tmp_path / "raw" / "sub-01_T1w.nii.gz", data, np.diag([10, 10, 10, 1]))


@pytest.fixture
def octave(tmp_path: Path):
    """Return a function that makes an installation whose Octave is a shell script."""

    def make(body: str):
        spm = tmp_path / "spm" if (tmp_path / "spm").exists() else make_spm(tmp_path / "spm")
        program = make_program(tmp_path / "bin" / "octave-cli", body)
        return find_spm(spm_dir=spm, octave=program, environ={})

    return make


# --- finding SPM ---


DOCUMENTED_OPTIONS = ["--no-init-file", "--no-history", "--no-window-system", "--quiet", "--path"]


def test_spm_is_found_in_the_documented_order(tmp_path, monkeypatch):
    make_program(tmp_path / "bin" / "octave-cli", "true")
    names = ("argument", "SPM_HOME", "SPM_PATH", "SPM_DIR", "opt")
    folders = {name: make_spm(tmp_path / name) for name in names}
    monkeypatch.setattr("iqtflow.segmentation.spm.install.SPM_FOLDERS", (folders["opt"],))
    standalone = tmp_path / "standalone"
    make_program(standalone / "run_spm12.sh", "true")
    environ = {name: str(folders[name]) for name in ("SPM_HOME", "SPM_PATH", "SPM_DIR")}
    environ |= {"PATH": str(tmp_path / "bin"), "SPMSTANDALONE_HOME": str(standalone), "MCR_HOME": "/opt/mcr"}

    found = find_spm(spm_dir=folders["argument"], environ=environ)
    assert (found.spm_dir, found.spm_source) == (folders["argument"], "argument")
    for name in ("SPM_HOME", "SPM_PATH", "SPM_DIR"):
        found = find_spm(environ=environ)
        assert (found.spm_dir, found.spm_source) == (folders[name], f"${name}")
        del environ[name]
    assert find_spm(environ=environ).spm_source == "$SPMSTANDALONE_HOME"
    del environ["MCR_HOME"]
    assert find_spm(environ=environ).spm_dir == folders["opt"]


def test_octave_is_found_in_the_documented_order(tmp_path):
    spm = make_spm(tmp_path / "spm")
    for name in ("octave", "octave-cli", "from-variable", "from-argument"):
        make_program(tmp_path / "bin" / name, "true")
    environ = {"PATH": str(tmp_path / "bin"), "OCTAVE_EXEC": "from-variable"}

    def taken(**kwargs) -> str:
        return find_spm(spm_dir=spm, environ=environ, **kwargs).octave.name

    assert taken(octave="from-argument") == "from-argument"
    assert taken() == "from-variable"
    del environ["OCTAVE_EXEC"]
    assert taken() == "octave-cli"
    (tmp_path / "bin" / "octave-cli").unlink()
    assert taken() == "octave"
    (tmp_path / "bin" / "octave").unlink()
    with pytest.raises(SpmNotFoundError, match="neither octave-cli nor octave"):
        taken()


def test_octave_runs_without_start_files_history_and_display_and_knows_spm_by_its_path_option(tmp_path):
    spm = make_spm(tmp_path / "spm")
    installation = find_spm(spm_dir=spm, octave=make_program(tmp_path / "octave", "true"), environ={})
    assert list(installation.command[1:]) == [*DOCUMENTED_OPTIONS, str(installation.spm_dir)]


def test_a_folder_named_by_hand_is_never_replaced_by_another(tmp_path):
    good = make_spm(tmp_path / "good")
    program = make_program(tmp_path / "octave", "true")
    with pytest.raises(SpmNotFoundError, match="spm_preproc_run"):
        find_spm(spm_dir=tmp_path, octave=program, environ={"SPM_HOME": str(good)})


def test_a_variable_with_a_wrong_path_is_skipped_and_reported(tmp_path):
    good = make_spm(tmp_path / "good")
    program = make_program(tmp_path / "octave", "true")
    found = find_spm(octave=program, environ={"SPM_HOME": str(tmp_path / "gone"), "SPM_DIR": str(good)})
    assert found.spm_dir == good
    assert "$SPM_HOME" in found.skipped[0]


def test_spm_not_compiled_for_octave_says_how_to_compile_it(tmp_path):
    spm = make_spm(tmp_path / "spm", compiled=False)
    with pytest.raises(SpmNotFoundError, match="PLATFORM=octave"):
        find_spm(spm_dir=spm, octave=make_program(tmp_path / "octave", "true"), environ={})


@pytest.mark.parametrize(
    ("line", "release", "revision", "version"),
    [
        ("% Version 7771 (SPM12) 13-Jan-20", "SPM12", "7771", "SPM12 r7771"),
        ("% Version 25.01.02 (SPM25) 23-Jan-2025", "SPM25", "25.01.02", "SPM25 25.01.02"),
        ("% Version 00.00 (SPM26) <date>", "SPM26", "00.00", "SPM26 00.00"),
        ("% Version dev (SPM12) 01-Mar-2024", "SPM12", "dev", "SPM12 dev"),
        ("nothing of the kind", "unknown", "unknown", "unknown"),
    ],
)
def test_the_version_is_that_of_contents_m(tmp_path, line, release, revision, version):
    spm = make_spm(tmp_path / "spm", contents=line)
    assert read_spm_version(spm) == (release, revision)
    assert find_spm(spm_dir=spm, octave=make_program(tmp_path / "o", "true"), environ={}).version == version


def test_no_process_is_started_to_construct_the_node_or_to_learn_the_version(tmp_path):
    spm = make_spm(tmp_path / "spm")
    trap = make_program(tmp_path / "octave", f"touch {tmp_path / 'started'}")
    node = UnifiedSegmentation(spm_dir=str(spm), octave=str(trap))
    assert node.version == "SPM12 r7771"
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("inputs", [{}, {"spm_dir": "nothing"}])
def test_a_node_without_spm_says_which_inputs_to_set_and_names_no_options_of_commands(
    no_spm, tmp_path, inputs
):
    (tmp_path / "T1w.nii").touch()
    node = UnifiedSegmentation(channel_files=str(tmp_path / "T1w.nii"), **inputs)
    assert node.version is None
    with pytest.raises(SpmNotFoundError, match="the input spm_dir") as caught:
        node.run(cwd=str(tmp_path))
    assert "--" not in str(caught.value)


def test_tissue_priors_are_identified_as_git_does(tmp_path):
    # `printf 'hello\n' | git hash-object --stdin`
    (tmp_path / "TPM.nii").write_bytes(b"hello\n")
    (tmp_path / "TPM.nii.gz").write_bytes(gzip.compress(b"hello\n"))
    assert tpm_blob_id(tmp_path / "TPM.nii") == "ce013625030ba8dba906f756967f9e9ca394464a"
    assert tpm_blob_id(tmp_path / "TPM.nii.gz") == tpm_blob_id(tmp_path / "TPM.nii")


def test_standalone_spm_with_the_matlab_runtime_by_clinicas_variables(tmp_path):
    home = tmp_path / "standalone"
    launcher = make_program(home / "run_spm25.sh", "true")
    inner = make_spm(home / "spm_mcr" / "spm25" / "spm25", contents="% Version 25.01.02 (SPM25) 23-Jan-2025")
    found = find_spm(environ={"SPMSTANDALONE_HOME": str(home), "MCR_HOME": "/opt/mcr/R2024b"})
    assert found.command == (str(launcher), "/opt/mcr/R2024b", "script")
    assert found.compiled
    assert found.octave is None
    assert found.tpm == inner / "tpm" / "TPM.nii"
    assert found.version == "SPM25 25.01.02"


def test_standalone_spm_by_nipypes_variables_only_when_forced(tmp_path):
    launcher = make_program(tmp_path / "run_spm12.sh", "true")
    spm = make_spm(tmp_path / "spm")
    program = make_program(tmp_path / "octave", "true")
    environ = {"SPMMCRCMD": f"{launcher} /opt/mcr/v713 script", "SPM_HOME": str(spm)}
    assert find_spm(octave=program, environ=environ).spm_source == "$SPM_HOME"
    forced = find_spm(environ={**environ, "FORCE_SPMMCR": "1"})
    assert forced.command == (str(launcher), "/opt/mcr/v713", "script")


# --- the job ---


def test_standalone_spm_runs_the_job_with_its_own_priors(tmp_path, head):
    record = tmp_path / "arguments"
    said = f"echo IQTFLOW-SPM-TPM /somewhere/TPM.nii; echo $# $1 $2 $3 > {record}; {SUCCESS}"
    launcher = make_program(tmp_path / "mcr" / "run_spm12.sh", said)
    found = find_spm(environ={"FORCE_SPMMCR": "1", "SPMMCRCMD": f"{launcher} /opt/mcr script"})
    run = run_unified_segmentation(head, tmp_path / "out", installation=found)
    assert record.read_text().split() == ["3", "/opt/mcr", "script", "iqtflow_job.m"]
    assert run.tpm == Path("/somewhere/TPM.nii")


def test_the_job_calls_unified_segmentation_with_spm12s_settings_and_plain_names():
    code = job_script(UnifiedSegmentationSettings(sampling_mm=2.0), ["TPM1.nii"] * 6)
    assert "job.warp.samp = 2.0;" in code
    assert [tissue.gaussians for tissue in DEFAULT_TISSUES] == [1, 1, 2, 3, 4, 2]
    assert code.isascii()
    assert "spm_preproc_run(job)" in code
    assert "jobman" not in code  # its failures crash Octave up to 10.1
    assert {line.split("'")[1] for line in code.splitlines() if ".vols" in line} == {"T1.nii,1"}
    for callback in ("crash_dumps_octave_core(false)", "sigterm_dumps_octave_core(false)"):
        assert callback in code


def test_the_child_process_has_one_thread(octave, head, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    run_unified_segmentation(
        head, tmp_path / "out", installation=octave(f"env > {tmp_path / 'env'}; {SUCCESS}")
    )
    environment = (tmp_path / "env").read_text().splitlines()
    assert {"OMP_NUM_THREADS=1", "OPENBLAS_NUM_THREADS=1"} <= set(environment)


def test_the_private_folder_is_empty_but_for_plain_names_and_the_image_is_unpacked_in_it(
    octave, head, tmp_path
):
    listing = tmp_path / "listing"
    look = f"ls -A > {listing}; head -c 352 T1.nii > {tmp_path / 'header'}; {SUCCESS}"
    run_unified_segmentation(head, tmp_path / "out", installation=octave(look))
    assert set(listing.read_text().split()) == {"T1.nii", "TPM1.nii", "iqtflow_job.m", "iqtflow_job.log"}
    assert (tmp_path / "header").read_bytes() == gzip.decompress(head.read_bytes())[:352]


def test_outputs_arrive_together_under_the_users_name_and_the_users_folder_stays_as_it_was(
    octave, head, tmp_path
):
    before = {p.name: p.read_bytes() for p in head.parent.iterdir()}
    run = run_unified_segmentation(head, tmp_path / "out", installation=octave(SUCCESS))
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        *(f"c{i}sub-01_T1w.nii" for i in range(1, 6)),
        "msub-01_T1w.nii",
        "sub-01_T1w_seg8.mat",
    }
    assert run.native[0].name == "c1sub-01_T1w.nii"
    assert run.native[5] is None
    assert {p.name: p.read_bytes() for p in head.parent.iterdir()} == before


def test_an_error_in_octaves_farewell_is_no_error(octave, head, tmp_path):
    farewell = "echo 'error: ignoring const execution_exception& while preparing to exit' >&2"
    run = run_unified_segmentation(head, tmp_path / "out", installation=octave(f"{SUCCESS}; {farewell}"))
    assert run.parameters.exists()


@pytest.mark.parametrize(
    ("behaviour", "complaint"),
    [
        ("exit 0", "no completion"),
        (f"{SUCCESS}; exit 1", "exit code 1"),
        ("kill -SEGV $$", "SIGSEGV"),
        ("kill -KILL $$", "SIGKILL .out of memory"),
        ("exit 139", "SIGSEGV"),
        ("echo IQTFLOW-SPM-ERROR spm:bad '| Cannot read volume'; exit 3", "Cannot read volume"),
        (f"{SUCCESS}; rm c2T1.nii", "no new c2T1.nii"),
        (f"{SUCCESS}; touch -d 2001-01-01 c3T1.nii", "no new c3T1.nii"),
        (f"{SUCCESS}; : > mT1.nii", "no new mT1.nii"),
    ],
)
def test_after_a_failed_run_old_outputs_are_not_taken_for_new_ones(
    octave, head, tmp_path, behaviour, complaint
):
    out = tmp_path / "out"
    stale = expected_outputs(out, "sub-01_T1w", UnifiedSegmentationSettings())
    out.mkdir()
    for path in [*stale["native"][:5], stale["bias_corrected"], stale["parameters"]]:
        path.write_text("old")
    with pytest.raises(SpmError, match=complaint):
        run_unified_segmentation(head, out, installation=octave(behaviour))
    assert {p.read_text() for p in out.iterdir()} == {"old"}  # no new file, no private folder left behind


def test_a_run_that_takes_too_long_is_ended(octave, head, tmp_path):
    start = time.monotonic()
    with pytest.raises(SpmError, match=r"still running after 0\.3 s"):
        run_unified_segmentation(head, tmp_path / "out", installation=octave("exec sleep 60"), timeout_s=0.3)
    assert time.monotonic() - start < 10


def test_octave_that_cannot_be_started_is_an_error_with_a_next_step(octave, head, tmp_path):
    installation = octave("true")
    installation.octave.write_bytes(b"\x7fELF no program")
    with pytest.raises(SpmError, match="doctor"):
        run_unified_segmentation(head, tmp_path / "out", installation=installation)


def test_an_unwritable_folder_is_noticed_before_anything_is_started(octave, head, tmp_path):
    (tmp_path / "file").touch()
    installation = octave(f"touch {tmp_path / 'started'}; {SUCCESS}")
    with pytest.raises(OutputError):
        run_unified_segmentation(head, tmp_path / "file" / "out", installation=installation)
    with pytest.raises(OutputError):
        segment_with_spm(head, installation=installation, work_dir=tmp_path / "gone")
    if os.geteuid() != 0:  # root may write anywhere
        (tmp_path / "locked").mkdir(mode=0o555)
        with pytest.raises(OutputError):
            run_unified_segmentation(head, tmp_path / "locked", installation=installation)
    assert not (tmp_path / "started").exists()


# --- the image ---


def write(path: Path, data: np.ndarray, voxel_mm: float = 10.0, **header) -> Path:
    # With an affine, nibabel writes an sform.
    affine = None if "sform_code" in header else np.diag([voxel_mm] * 3 + [1])
    image = nib.Nifti1Image(data.astype("float32"), affine)
    image.header.set_zooms([voxel_mm] * 3 + [1] * (data.ndim - 3))
    for key, value in header.items():
        image.header[key] = value
    image.to_filename(path)
    return path


NOISE = np.random.default_rng(1).uniform(1, 9, (12, 12, 12))


@pytest.mark.parametrize(
    ("name", "data", "header", "complaint"),
    [
        ("4-D", np.stack([NOISE, NOISE], axis=3), {}, "dimensions"),
        ("single slice", NOISE[:, :, :1], {}, "single slice"),
        ("slab of 40 mm", NOISE[:, :, :4], {}, "field of view"),
        ("zeros", 0 * NOISE, {}, "value 0 in every voxel"),
        ("constant", 0 * NOISE + 7, {}, "value 7 in every voxel"),
        ("NaN", np.nan * NOISE, {}, "NaN"),
        ("neither sform nor qform", NOISE, {"sform_code": 0, "qform_code": 0}, "left and right are a guess"),
    ],
)
def test_an_image_that_spm_cannot_segment_is_refused_before_it_starts(
    octave, tmp_path, name, data, header, complaint
):
    path = write(tmp_path / "T1w.nii.gz", data, **header)
    installation = octave(f"touch {tmp_path / 'started'}; {SUCCESS}")
    with pytest.raises(InputError, match=complaint):
        segment_with_spm(path, installation=installation)
    assert not (tmp_path / "started").exists()


def test_an_image_in_memory_without_a_place_in_the_world_is_refused_too(octave, tmp_path):
    path = write(tmp_path / "T1w.nii.gz", NOISE, sform_code=0, qform_code=0)
    with pytest.raises(InputError, match="left and right are a guess"):
        segment_with_spm(nib.load(path), installation=octave(SUCCESS))


def test_a_truncated_image_is_refused_by_name(octave, head, tmp_path):
    cut = tmp_path / "cut.nii.gz"
    cut.write_bytes(head.read_bytes()[:-2000])
    with pytest.raises(InputError, match=r"cut\.nii\.gz"):
        segment_with_spm(cut, installation=octave(SUCCESS))
    with pytest.raises(InputError, match="damaged"):
        run_unified_segmentation(cut, tmp_path / "out", installation=octave(SUCCESS))


def test_the_whole_head_beside_a_stripped_hcp_image_is_preferred(tmp_path):
    stripped = tmp_path / "T1w_acpc_dc_restore_brain.nii.gz"
    whole = tmp_path / "T1w_acpc_dc_restore.nii.gz"
    stripped.touch()
    assert find_unstripped_sibling(stripped) is None
    whole.touch()
    assert find_unstripped_sibling(stripped) == whole
    assert find_unstripped_sibling(whole) is None
    assert find_unstripped_sibling(tmp_path / "sub-01_T1w.nii.gz") is None


# --- the maps ---


PLAUSIBLE = dict(
    determinant=1.2,
    rotation_deg=15.0,
    stretch=1.1,
    gm_ml=750.0,
    wm_ml=460.0,
    csf_ml=350.0,
    explained=0.87,
    coverage=1.0,
)


def test_a_usual_head_passes_without_remark():
    assert judge(SpmFigures(**PLAUSIBLE), "T1w.nii") == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"determinant": -1.2},
        {"determinant": 3.0},
        {"stretch": 2.0},
        {"gm_ml": 0.0, "wm_ml": 0.0, "csf_ml": 0.0},
        {"gm_ml": 2500.0},
        {"explained": 0.3},
        {"coverage": 0.4},
    ],
)
def test_maps_of_no_head_are_refused_with_the_figures(wrong):
    with pytest.raises(InputError, match=r"det\(affine\).*GM.*coverage"):
        judge(SpmFigures(**{**PLAUSIBLE, **wrong}), "T1w.nii")


@pytest.mark.parametrize(
    ("odd", "remark"),
    [
        ({"determinant": 1.8}, "size"),
        ({"rotation_deg": 92.0}, "mislabelled"),
        ({"stretch": 1.5}, "shape"),
        ({"explained": 0.7}, "loosely"),
        ({"coverage": 0.8}, "outside the image"),
    ],
)
def test_an_unusual_head_passes_with_a_remark(odd, remark):
    (said,) = judge(SpmFigures(**{**PLAUSIBLE, **odd}), "T1w.nii")
    assert remark in said


def ball(radius_mm: float, mm: float = 4.0, n: int = 50) -> tuple[np.ndarray, np.ndarray]:
    centre = (n - 1) / 2 * mm
    grid = np.indices((n, n, n)) * mm - centre
    affine = np.diag([mm, mm, mm, 1])
    affine[:3, 3] = -centre
    return (grid**2).sum(axis=0) < radius_mm**2, affine


def test_rotation_and_scale_are_read_from_spms_affine(tmp_path):
    inside, affine = ball(60)
    turn = nib.affines.from_matvec(1.1 * np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1.0]]))  # 90 degrees about z
    savemat(tmp_path / "seg8.mat", {"Affine": turn})
    image = nib.Nifti1Image(inside.astype("float32"), affine)
    gm = inside.astype("float32")
    figures = measure(tmp_path / "seg8.mat", image, (gm, 0 * gm, 0 * gm), gm, None)
    assert figures.rotation_deg == pytest.approx(90, abs=0.01)
    assert figures.determinant == pytest.approx(1.1**3)
    assert figures.stretch == pytest.approx(1)
    assert figures.gm_ml == pytest.approx(4 / 3 * np.pi * 6**3, rel=0.02)


def test_a_brain_half_outside_the_image_is_half_covered(tmp_path):
    inside, affine = ball(60)
    savemat(tmp_path / "seg8.mat", {"Affine": np.eye(4)})
    gm = inside[:, :, 25:].astype("float32")
    affine[2, 3] += 25 * affine[2, 2]
    image = nib.Nifti1Image(gm, affine)
    coverage = measure(tmp_path / "seg8.mat", image, (gm, 0 * gm, 0 * gm), gm, None).coverage
    assert 0.4 < coverage < 0.7


def test_maps_that_follow_the_image_explain_its_intensities_and_others_do_not(tmp_path):
    outer, affine = ball(70)
    middle, inner = ball(60)[0], ball(45)[0]
    savemat(tmp_path / "seg8.mat", {"Affine": np.eye(4)})
    noise = np.random.default_rng(0).normal(0, 3, outer.shape)
    intensity = np.where(
        outer, 100.0 * inner + 65 * (middle & ~inner) + 30 * (outer & ~middle) + noise + 5, 0
    )
    image = nib.Nifti1Image(intensity.astype("float32"), affine)
    true = [m.astype("float32") for m in (middle & ~inner, inner, outer & ~middle)]
    moved = [np.roll(m, 15, axis=0) for m in true]
    assert measure(tmp_path / "seg8.mat", image, true, intensity, None).explained > 0.95
    assert measure(tmp_path / "seg8.mat", image, moved, intensity, None).explained < 0.5


def test_the_brain_mask_is_one_piece_without_holes_and_keeps_brains_that_touch_the_border():
    inside, _ = ball(60)
    probability = inside.astype("float32")
    probability[25, 25, 25] = 0  # a hole
    probability[0, 0, 0] = 1  # a speck
    assert (brain_from_tissues(probability) & ~inside).sum() < 0.02 * inside.sum()
    assert brain_from_tissues(probability)[25, 25, 25]
    assert not brain_from_tissues(probability)[0, 0, 0]
    assert brain_from_tissues(inside[:, :, 25:].astype("float32"))[25, 25, 0]


# --- nipype's NewSegment ---


def test_settings_reach_the_job_as_newsegment_users_state_them(octave, head, tmp_path, monkeypatch):
    installation = octave(
        f"cp iqtflow_job.m {tmp_path}; {SUCCESS}; cp c1T1.nii rc2T1.nii; cp c1T1.nii iy_T1.nii"
    )
    tpm = str(installation.tpm)
    monkeypatch.chdir(tmp_path)
    node = UnifiedSegmentation(
        spm_dir=str(installation.spm_dir),
        octave=str(installation.octave),
        channel_files=str(head),
        channel_info=(0.0001, 30, (False, True)),
        tissues=[
            ((tpm, 1), 2, (True, False), (False, False)),
            ((tpm, 2), 2, (True, True), (False, False)),
            ((tpm, 3), 2, (False, False), (False, False)),
        ],
        affine_regularization="eastern",
        sampling_distance=2,
        warping_regularization=2.0,
        write_deformation_fields=[True, False],
        check_plausibility=False,
    )
    outputs = node.run().outputs
    code = (tmp_path / "iqtflow_job.m").read_text()
    for line in (
        "channel.biasreg = 0.0001;",
        "channel.biasfwhm = 30.0;",
        "tissue(2).native = [1 1];",
        "tissue(3).ngaus = 2;",
        "warp.affreg = 'eastern';",
        "warp.samp = 2.0;",
        "warp.reg = [0.0 0.002 1.0 0.1 0.4];",
        "warp.write = [1 0];",
    ):
        assert line in code
    here = str(tmp_path)
    assert outputs.native_class_images == [[f"{here}/c1sub-01_T1w.nii"], [f"{here}/c2sub-01_T1w.nii"], []]
    assert outputs.dartel_input_images == [[], [f"{here}/rc2sub-01_T1w.nii"], []]
    assert outputs.bias_corrected_images == f"{here}/msub-01_T1w.nii"
    assert outputs.inverse_deformation_field == f"{here}/iy_sub-01_T1w.nii"
    assert outputs.transformation_mat == f"{here}/sub-01_T1w_seg8.mat"


def test_two_images_of_the_same_name_do_not_overwrite_each_other(octave, head, tmp_path, monkeypatch):
    other = tmp_path / "other" / head.name
    other.parent.mkdir()
    other.write_bytes(head.read_bytes())
    installation = octave(SUCCESS)
    monkeypatch.chdir(tmp_path)
    node = UnifiedSegmentation(
        spm_dir=str(installation.spm_dir),
        octave=str(installation.octave),
        channel_files=[str(head), str(other)],
        check_plausibility=False,
    )
    node.inputs.channel_info = (0.001, 60, (False, True))
    first, second = node.run().outputs.native_class_images[0]
    assert first != second


def test_m_code_that_is_run_leaves_its_log_in_its_folder(octave, tmp_path):
    (tmp_path / "job").mkdir()
    log, seconds, peak_gb = run_m_code(
        "x = 1;", tmp_path / "job", installation=octave("echo hello; echo IQTFLOW-SPM-DONE"), name="test"
    )
    assert "hello" in log
    assert seconds < 30
    # The peak of a child starts with the memory of its parent: here a process full of tests.
    assert 0 < peak_gb < 1 + peak_memory_gb()


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Return a folder with empty files for two images and priors."""
    monkeypatch.chdir(tmp_path)
    for name in ("sub-01_T1w.nii", "sub-02_T1w.nii", "TPM.nii"):
        (tmp_path / name).touch()
    return tmp_path


def tissues(*flags):
    gaussians = (1, 1, 2, 3)
    return [(("TPM.nii", i + 1), gaussians[i], *flag) for i, flag in enumerate(flags)]


#: Settings of nipype's users. The first is the example in the documentation of NewSegment.
SETTINGS = {
    "its documentation": {
        "channel_info": (0.0001, 60, (True, True)),
        "tissues": tissues(
            ((True, False), (False, False)),
            ((True, True), (True, False)),
            ((False, False), (True, True)),
            ((False, False), (False, False)),
        ),
    },
    "no settings": {},
    "two images": {"channel_files": ["sub-01_T1w.nii", "sub-02_T1w.nii"]},
    "field only": {"channel_info": (0.001, 30, (True, False))},
    "inverse field": {"write_deformation_fields": [True, False]},
    "both fields": {"write_deformation_fields": [True, True], "sampling_distance": 2.0},
    "strong warping": {
        "warping_regularization": [0, 0.001, 0.5, 0.05, 0.2],
        "affine_regularization": "eastern",
    },
    "one weight": {"warping_regularization": 4.0, "affine_regularization": "none"},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_the_same_settings_promise_the_same_files_in_the_same_outputs(folder, settings):
    settings = {"channel_files": ["sub-01_T1w.nii"], **settings}
    theirs, ours = NewSegment(**settings)._list_outputs(), UnifiedSegmentation(**settings)._list_outputs()
    assert set(theirs) == set(ours)
    for name, value in theirs.items():
        assert base_names(ours[name]) == base_names(value), name


def base_names(value):
    return [base_names(v) for v in value] if isinstance(value, list) else Path(value).name


def test_every_input_has_the_type_that_newsegment_gives_it(folder):
    theirs, ours = (
        {name: type(inputs.trait(name).trait_type) for name in NewSegment().inputs.copyable_trait_names()}
        for inputs in (NewSegment().inputs, UnifiedSegmentation().inputs)
    )
    assert ours == theirs


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("channel_info", (0.001, 60)),
        ("tissues", [(("TPM.nii", 1), 2, (True, False))]),
        ("affine_regularization", "martian"),
        ("write_deformation_fields", [True]),
        ("channel_files", "gone.nii"),
    ],
)
def test_what_newsegment_refuses_is_refused(folder, name, wrong):
    for interface in (NewSegment(), UnifiedSegmentation()):
        with pytest.raises(Exception, match=name):
            setattr(interface.inputs, name, wrong)


def test_a_workflow_written_for_newsegment_connects_to_it_unchanged(folder):
    """All outputs are connected, and inputs come from another node."""
    source = Node(IdentityInterface(["image", "distance"]), name="source")
    sink = Node(IdentityInterface(sorted(NewSegment.output_spec().copyable_trait_names())), name="sink")
    segment = Node(UnifiedSegmentation(), name="segment")
    workflow = Workflow("w", base_dir=str(folder))
    workflow.connect(
        [
            (source, segment, [("image", "channel_files"), ("distance", "sampling_distance")]),
            (segment, sink, [(n, n) for n in sorted(NewSegment.output_spec().copyable_trait_names())]),
        ]
    )
    assert len(workflow.list_node_names()) == 3
    assert not isdefined(segment.inputs.channel_files)


def test_outputs_are_lists_of_lists_by_tissue_as_code_that_indexes_them_expects(folder):
    outputs = UnifiedSegmentation(channel_files=["sub-01_T1w.nii", "sub-02_T1w.nii"])._list_outputs()
    assert np.shape(outputs["native_class_images"]) == (5, 2)
    assert outputs["native_class_images"][1][0].endswith("c2sub-01_T1w.nii")


# --- a brain without its skull ---

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])


@pytest.fixture
def stripped() -> nib.Nifti1Image:
    """Return a brain in zeros, with zeros inside its ventricles."""
    data = make_brain().intensity
    data[38:42, 42:46, 38:42] = 0
    return nib.Nifti1Image(data, AFFINE)


def test_a_brain_in_zeros_is_told_from_a_head_in_zeros_and_from_a_brain_in_noise(stripped):
    present = stripped.get_fdata() != 0
    assert looks_stripped(present, AFFINE)
    assert not looks_stripped(present, np.diag([3.5, 3.5, 3.5, 1.0]))  # 5 l: a head
    assert not looks_stripped(np.ones_like(present), AFFINE)


def test_the_brain_stays_as_it_is_and_the_noise_around_it_is_below_any_tissue(stripped, tmp_path):
    data = stripped.get_fdata(dtype=np.float32)
    filled = nib.load(write_with_background(stripped, tmp_path / "a.nii")).get_fdata(dtype=np.float32)
    brain = data != 0
    np.testing.assert_array_equal(filled[brain], data[brain])
    assert 0 < filled[0, 0, 0] < 0.1 * np.median(data[brain])
    assert filled[~brain].max() < 0.1 * np.median(data[brain])


def test_zeros_enclosed_by_brain_stay_missing_data(stripped, tmp_path):
    filled = nib.load(write_with_background(stripped, tmp_path / "a.nii")).get_fdata()
    assert not filled[38:42, 42:46, 38:42].any()
    assert filled[0].all()


def test_the_same_brain_gets_the_same_background(stripped, tmp_path):
    files = [write_with_background(stripped, tmp_path / name) for name in ("a.nii", "b.nii")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_all_that_is_no_brain_becomes_one_class_and_the_four_sum_to_one(tmp_path):
    six = np.random.default_rng(0).dirichlet(np.ones(6), (4, 5, 6)).astype(np.float32)
    nib.Nifti1Image(six, AFFINE).to_filename(tmp_path / "TPM.nii")
    four = nib.load(write_brain_priors(tmp_path / "TPM.nii", tmp_path / "four.nii")).get_fdata(
        dtype=np.float32
    )
    np.testing.assert_allclose(four[..., :3], six[..., :3], atol=1e-6)
    np.testing.assert_allclose(four[..., 3], six[..., 3:].sum(axis=-1), atol=1e-5)
    assert len(stripped_settings(tmp_path / "four.nii", sampling_mm=3.0).tissues) == 4
