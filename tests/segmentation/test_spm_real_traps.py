"""The known traps of SPM under Octave, one by one, with the real thing: what happens, and what is made of it.

What `test_spm_real` shows is not repeated: the direct call whose errors are caught, heads far from
the origin, tilted, mislabelled or stripped, two runs at the same time, Octave killed, old outputs.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from pretend_spm import make_spm
from scipy.io import loadmat
from spm_fixtures import SETTINGS, killed, octaves_in, wait_for_octave
from spm_phantom import SAMPLING_MM, make_image

from iqtflow.cli.commands.segment import main as segment
from iqtflow.interfaces.spm import UnifiedSegmentation
from iqtflow.segmentation.spm.install import GENUINE_TPM_BLOB, find_spm, tpm_blob_id
from iqtflow.segmentation.spm.job import SpmError, run_m_code, run_unified_segmentation
from iqtflow.segmentation.spm.segment import MEMORY_GB, segment_with_spm
from iqtflow.utils.errors import InputError, OutputError

pytest_plugins = ["spm_fixtures"]
pytestmark = [pytest.mark.spm, pytest.mark.slow]


@pytest.fixture(scope="session")
def octave(installation) -> Path:
    if installation.octave is None:
        pytest.skip("standalone SPM needs no Octave")
    return installation.octave


def ask(installation, folder: Path, code: str) -> str:
    """Run m-code as a job is run; what it printed."""
    return run_m_code(code, folder, installation=installation, name="question")[0]


DONE = "fprintf('\\nIQTFLOW-SPM-DONE\\n');"


# --- starting it ---


def test_octave_refuses_the_options_that_nipype_gives_matlab_and_we_give_none_of_them(octave, installation):
    nipypes = ["-nodesktop", "-nosplash", "-singleCompThread", "-r"]
    refused = subprocess.run([octave, *nipypes, "1"], capture_output=True, text=True, timeout=60)
    assert refused.returncode != 0 and "invalid option" in refused.stderr
    assert not set(nipypes) & set(installation.command)


def test_an_spm_that_lacks_functions_is_reported_by_the_first_that_is_missing(octave, phantom, tmp_path):
    """Not by an error of the error handling, as where an exception class is thrown that Octave lacks."""
    hollow = find_spm(spm_dir=make_spm(tmp_path / "hollow"), octave=octave, environ={})
    with pytest.raises(SpmError, match="spm_get_defaults"):
        run_unified_segmentation(phantom.image, tmp_path / "out", installation=hollow)


def test_the_version_is_read_without_starting_anything_and_is_the_one_that_spm_states(
    octave, installation, tmp_path, monkeypatch
):
    said = ask(installation, tmp_path, f"[v, r] = spm('Ver'); fprintf('IS %s r%s\\n', v, r); {DONE}")
    monkeypatch.setattr("subprocess.Popen", None)  # constructing and asking must not need a process
    node = UnifiedSegmentation(spm_dir=str(installation.spm_dir), octave=str(octave))
    assert f"IS {installation.release} r{installation.revision}" in said
    assert node.version == installation.version


def test_spm_is_found_by_itself_and_the_place_is_said(octave, installation):
    bare = {"PATH": os.environ["PATH"]}
    named = find_spm(environ={**bare, "SPM_DIR": str(installation.spm_dir), "OCTAVE_EXEC": str(octave)})
    assert (named.spm_dir, named.spm_source) == (installation.spm_dir, "$SPM_DIR")
    assert str(named.spm_dir) in named.describe() and named.octave_source == "$OCTAVE_EXEC"
    usual = [Path(folder) for folder in ("/opt/spm12", "/opt/spm") if Path(folder, "spm.m").exists()]
    if usual:
        alone = find_spm(environ=bare)
        assert (alone.spm_dir, alone.spm_source) == (usual[0], str(usual[0]))


def test_the_priors_are_identified_by_the_name_that_git_gives_them(installation):
    try:
        git = ["git", "hash-object", "--no-filters", str(installation.tpm)]
        name = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except FileNotFoundError:
        pytest.skip("no git to compare with")
    assert tpm_blob_id(installation.tpm) == name
    assert len(GENUINE_TPM_BLOB) == len(name) == 40


# --- ending it ---


def test_octave_that_ends_early_with_exit_code_0_has_not_completed(installation, tmp_path):
    with pytest.raises(SpmError, match=r"no completion of SPM \(exit code 0\)"):
        ask(installation, tmp_path, "exit(0);")


def test_octave_that_says_done_and_then_fails_has_not_completed(installation, tmp_path):
    with pytest.raises(SpmError, match="exit code 7"):
        ask(installation, tmp_path, f"{DONE} exit(7);")


def test_the_word_error_on_the_way_does_not_make_a_failure(installation, tmp_path):
    words = "error: ignoring const execution_exception& while preparing to exit"
    said = ask(installation, tmp_path, f"fprintf(stderr, '{words}\\n'); {DONE}")
    assert words in said


@pytest.mark.usefixtures("linux")
def test_a_run_that_takes_too_long_is_ended_and_leaves_nothing_behind(installation, scan, tmp_path):
    with pytest.raises(SpmError, match="still running after 1 s"):
        run_unified_segmentation(scan, tmp_path, installation=installation, settings=SETTINGS, timeout_s=1)
    assert list(tmp_path.iterdir()) == []  # no octave-workspace either
    assert octaves_in(tmp_path) == []


@pytest.mark.usefixtures("linux")
def test_octave_killed_under_a_subjects_segmentation_ends_that_command_within_seconds(
    installation, scan, tmp_path
):
    """The command that a node of the graph runs: exit code 1, one line that says why, no map."""
    command = [sys.executable, "-m", "iqtflow.cli.commands.segment", str(scan), "--engine", "spm"]
    command += ["--out-prefix", str(tmp_path / "sub-01"), "--sampling-distance", str(SAMPLING_MM)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        os.kill(wait_for_octave(tmp_path), signal.SIGKILL)
        start = time.monotonic()
        told = process.communicate(timeout=30)[1]
    assert time.monotonic() - start < 10
    assert process.returncode == 1
    assert "SIGKILL" in told and scan.name in told and "Traceback" not in told
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("linux")
def test_spm_is_told_to_use_one_thread(installation, scan, tmp_path):
    """Its MEX files take every core unasked; the kernel says what the running process was told."""
    environment: list[str] = []

    def look(process: int) -> None:
        environment.extend(Path(f"/proc/{process}/environ").read_bytes().decode(errors="replace").split("\0"))

    call = lambda: run_unified_segmentation(scan, tmp_path, installation=installation, settings=SETTINGS)  # noqa: E731
    killed(call, tmp_path, 9, look=look)
    assert {"OMP_NUM_THREADS=1", "OPENBLAS_NUM_THREADS=1"} <= set(environment)


# --- where it writes ---


def test_a_folder_that_cannot_be_written_is_noticed_before_minutes_are_spent(installation, scan, tmp_path):
    (tmp_path / "file").touch()
    start = time.monotonic()
    with pytest.raises(OutputError):
        run_unified_segmentation(scan, tmp_path / "file" / "out", installation=installation)
    assert time.monotonic() - start < 2


@pytest.fixture(scope="session")
def others(installation, scan, run, phantom, tmp_path_factory) -> SimpleNamespace:
    """Two more runs, at the same time: a node as nipype's users set it up, a stripped image as HCP has it."""
    folder = tmp_path_factory.mktemp("others")
    plain = folder / "read only" / "sub-01_T1w.nii"
    plain.parent.mkdir()
    nib.load(scan).to_filename(plain)
    plain.chmod(0o444)
    plain.parent.chmod(0o555)
    brain = phantom.gm + phantom.wm + phantom.csf > 0.5
    whole = folder / "T1w_acpc_dc_restore.nii.gz"
    stripped = folder / "T1w_acpc_dc_restore_brain.nii.gz"
    nib.load(scan).to_filename(whole)
    data = phantom.image.get_fdata(dtype=np.float32)
    make_image(np.where(brain, data, 0), phantom.image.affine).to_filename(stripped)
    tissues = zip(range(1, 7), (1, 1, 2, 3, 4, 2), strict=True)
    node = UnifiedSegmentation(
        paths=[str(installation.spm_dir)],  # nipype's name for it
        channel_files=[str(plain)],
        channel_info=(0.001, 60, (True, True)),
        tissues=[((str(installation.tpm), frame), n, (True, False), (False, False)) for frame, n in tissues],
        affine_regularization="mni",
        warping_regularization=[0, 0.001, 0.5, 0.05, 0.2],
        sampling_distance=SAMPLING_MM - 6,  # SPM rounds it to whole voxels: 4 and 3 here
        write_deformation_fields=[False, False],
    )
    command = [str(stripped), "--out-prefix", str(folder / "maps" / "hcp"), "--engine", "spm"]
    (folder / "maps").mkdir()
    (folder / "node").mkdir()
    before = {path.name: path.stat().st_mtime_ns for path in plain.parent.iterdir()}
    with ThreadPoolExecutor(1) as pool:
        code = pool.submit(segment, [*command, "--sampling-distance", str(SAMPLING_MM)])
        result = node.run(cwd=str(folder / "node")).outputs
        return SimpleNamespace(
            folder=folder, plain=plain, before=before, brain=brain, node=result, code=code.result()
        )


def test_a_read_only_folder_of_the_users_stays_as_it_is(others):
    after = {path.name: path.stat().st_mtime_ns for path in others.plain.parent.iterdir()}
    assert after == others.before


def test_uncompressed_images_and_paths_as_nipype_names_it_are_taken(others):
    names = [Path(images[0]).name for images in others.node.native_class_images]
    assert names == [f"c{i}sub-01_T1w.nii" for i in range(1, 7)]
    assert Path(others.node.bias_field_images).name == "BiasField_sub-01_T1w.nii"


def test_the_sampling_distance_is_not_cosmetic(others, run):
    """Maps of 20 and 14 mm differ as those of 3 and 2 mm do: it belongs to the method and to the record."""
    grey = (run.native[0], others.node.native_class_images[0][0])
    ours, other = (nib.load(path).get_fdata() > 0.5 for path in grey)
    dice = 2 * (ours & other).sum() / (ours.sum() + other.sum())
    assert 0.5 < dice < 0.9999


def test_of_a_stripped_image_with_its_whole_head_beside_it_the_head_is_segmented(others, run):
    assert others.code == 0
    record = json.loads((others.folder / "maps" / "hcp_segmentation.json").read_text())
    assert record["segmented_whole_head"].endswith("T1w_acpc_dc_restore.nii.gz")
    assert record["skull_stripped"] is True and record["sampling_distance_mm"] == SAMPLING_MM
    for label, c in (("GM", 0), ("WM", 1), ("CSF", 2)):
        path = others.folder / "maps" / f"hcp_label-{label}_probseg.nii.gz"
        ours, whole = (nib.load(p).get_fdata(dtype=np.float32) for p in (path, run.native[c]))
        np.testing.assert_allclose(ours, np.where(others.brain, whole, 0), atol=1e-6)


# --- what it writes, and what it costs ---


def test_maps_are_bytes_of_255_steps_that_sum_to_one(run):
    images = [nib.load(path) for path in run.native]
    assert {image.get_data_dtype() for image in images} == {np.dtype("u1")}
    steps = [image.dataobj.slope for image in images]
    np.testing.assert_allclose(steps, 1 / 255, rtol=1e-3)
    off = np.abs(sum(image.get_fdata() for image in images) - 1)
    assert off.max() <= 6 * 0.5 / 255 + 1e-6 and off.mean() < 0.004


def test_the_classes_have_spm12s_gaussians(run):
    classes = loadmat(run.parameters, variable_names=["lkp"])["lkp"].ravel()
    assert [int((classes == i).sum()) for i in range(1, 7)] == [1, 1, 2, 3, 4, 2]


def test_a_run_stays_within_the_memory_that_its_node_claims(run):
    assert run.peak_memory_gb < MEMORY_GB


# --- what it must not be given ---


def spoilt(phantom, kind: str, path: Path) -> Path:
    data, affine = phantom.image.get_fdata(dtype=np.float32), phantom.image.affine
    wrong = {
        "single slice": data[:, :, 20:21],
        "4-D": np.stack([data, data], axis=3),
        "all zero": 0 * data,
        "constant": 0 * data + 7,
        "NaN only": np.nan * data,
    }
    image = nib.Nifti1Image(wrong.get(kind, data), None if kind == "no orientation" else affine)
    if kind == "no orientation":
        image.header["sform_code"] = image.header["qform_code"] = 0
        image.header.set_zooms(np.abs(np.diag(affine)[:3]))
    image.to_filename(path)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-4000])
    return path


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("single slice", "single slice"),
        ("4-D", "dimensions"),
        ("all zero", "value 0 in every voxel"),
        ("constant", "value 7 in every voxel"),
        ("NaN only", "NaN"),
        ("truncated", "complete"),
        ("no orientation", "left and right are a guess"),
    ],
)
def test_what_spm_answers_with_garbage_or_a_crash_is_refused_in_plain_words_at_once(
    installation, phantom, tmp_path, kind, words
):
    path = spoilt(phantom, kind, tmp_path / "sub-01_T1w.nii")
    start = time.monotonic()
    with pytest.raises(InputError, match=words) as caught:
        segment_with_spm(path, installation=replace(installation, command=("must-not-start",)))
    assert path.name in str(caught.value)
    assert time.monotonic() - start < 5
