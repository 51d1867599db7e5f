"""SPM, what runs it and its tissue priors are found in the documented order, without starting anything."""

from __future__ import annotations

import gzip

import pytest
from pretend_spm import make_program, make_spm

from iqtflow.interfaces.spm import UnifiedSegmentation
from iqtflow.segmentation.spm.install import SpmNotFoundError, find_spm, read_spm_version, tpm_blob_id

DOCUMENTED_OPTIONS = ["--no-init-file", "--no-history", "--no-window-system", "--quiet", "--path"]


def test_spm_is_found_in_the_documented_order(tmp_path):
    make_program(tmp_path / "bin" / "octave-cli", "true")
    folders = {name: make_spm(tmp_path / name) for name in ("argument", "SPM_HOME", "SPM_PATH", "SPM_DIR")}
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


def test_a_variable_that_leads_nowhere_is_passed_over_and_reported(tmp_path):
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
