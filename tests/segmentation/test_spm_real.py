"""SPM's unified segmentation under a real Octave: right maps, the same bits each time, and plain errors.

The tissues of the head (``spm_phantom``) are known. What needs no real SPM is tested in ``test_spm.py``.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import from_matvec
from pretend_spm import make_spm
from scipy.io import loadmat
from spm_phantom import HEAD_SCALE, SAMPLING_MM, Phantom, make_image, make_phantom

from iqtflow.config import SegmentationSettings
from iqtflow.interfaces.spm import UnifiedSegmentation
from iqtflow.segmentation.atropos import TissueMaps, check_plausible
from iqtflow.segmentation.select import engine_for
from iqtflow.segmentation.spm.install import SpmInstallation, SpmNotFoundError, find_spm, tpm_blob_id
from iqtflow.segmentation.spm.job import (
    SpmError,
    UnifiedSegmentationRun,
    run_m_code,
    run_unified_segmentation,
)
from iqtflow.segmentation.spm.script import DEFAULT_TISSUES, UnifiedSegmentationSettings, job_script
from iqtflow.segmentation.spm.segment import MEMORY_GB, segment_with_spm
from iqtflow.utils.errors import InputError
from iqtflow.workflows.segment import init_segment_node

pytestmark = [pytest.mark.spm, pytest.mark.slow]

#: A folder name with quotes, spaces and letters outside ASCII, as users have them.
AWKWARD = 'it\'s "raw" dätä'

#: Every class is written, air too, to test the sum.
SETTINGS = UnifiedSegmentationSettings(
    tissues=tuple(replace(tissue, native=(True, False)) for tissue in DEFAULT_TISSUES),
    sampling_mm=SAMPLING_MM,
    write_bias=(True, True),
    write_deformation=(True, True),
)

DONE = "fprintf('\\nIQTFLOW-SPM-DONE\\n');"


@pytest.fixture(scope="session")
def installation() -> SpmInstallation:
    """Return the SPM of this machine, found like that of a user."""
    try:
        found = find_spm()
    except SpmNotFoundError as fault:
        pytest.skip(f"no SPM to test with: {fault}")
    if found.tpm is None:
        pytest.skip("standalone SPM whose tissue priors are not unpacked yet")
    return found


@pytest.fixture(scope="session")
def phantom(installation: SpmInstallation) -> Phantom:
    return make_phantom(installation.tpm)


@pytest.fixture(scope="session")
def scan(phantom: Phantom, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("spm") / AWKWARD / "sub-01_T1w.nii.gz"
    path.parent.mkdir()
    phantom.image.to_filename(path)
    return path


@pytest.fixture(scope="session")
def run(installation: SpmInstallation, scan: Path, tmp_path_factory) -> UnifiedSegmentationRun:
    """Return the run that most tests use."""
    out_dir = tmp_path_factory.mktemp("alone") / AWKWARD
    return run_unified_segmentation(scan, out_dir, installation=installation, settings=SETTINGS)


@dataclass(frozen=True)
class Pair:
    """Two runs at the same time on the same image."""

    node: object
    maps: TissueMaps


@pytest.fixture(scope="session")
def pair(installation: SpmInstallation, scan: Path, run: UnifiedSegmentationRun, tmp_path_factory) -> Pair:
    folder = tmp_path_factory.mktemp("node")
    node = UnifiedSegmentation(
        channel_files=str(scan),
        channel_info=(0.001, 60, (True, True)),
        sampling_distance=SAMPLING_MM,
        write_deformation_fields=[True, True],
    )
    with ThreadPoolExecutor(1) as pool:
        maps = pool.submit(segment_with_spm, scan, installation=installation, sampling_mm=SAMPLING_MM)
        outputs = node.run(cwd=str(folder)).outputs
        return Pair(outputs, maps.result())


@pytest.fixture(scope="session")
def octave(installation) -> Path:
    if installation.octave is None:
        pytest.skip("standalone SPM needs no Octave")
    return installation.octave


@pytest.fixture
def linux() -> None:
    if not Path("/proc/self/cwd").exists():
        pytest.skip("needs /proc to find Octave's process")


def octaves_in(folder: Path) -> list[int]:
    """Return the ids of the processes whose current folder is `folder` or below it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if Path(os.readlink(process / "cwd")).is_relative_to(folder.resolve()):
                found.append(int(process.name))
        except OSError:  # it ended, or is not ours
            continue
    return found


def wait_for_octave(folder: Path, *, seconds: float = 180) -> int:
    """Wait until a process below `folder` has begun to segment; return its id."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for log in folder.glob("**/iqtflow_job.log"):
            if "Segment" in log.read_text(errors="replace"):
                for process in octaves_in(log.parent):
                    return process
        time.sleep(0.05)
    raise AssertionError("Octave did not start")


def killed(call: Callable[[], object], folder: Path, number: signal.Signals) -> tuple[Exception, float]:
    """Run `call` in a thread, end its Octave by a signal; return the exception and the seconds it took."""
    caught: list[Exception] = []

    def body() -> None:
        try:
            call()
        except Exception as fault:
            caught.append(fault)

    thread = threading.Thread(target=body)
    thread.start()
    process = wait_for_octave(folder)
    os.kill(process, number)
    start = time.monotonic()
    thread.join(30)
    assert caught, "the run did not fail"
    return caught[0], time.monotonic() - start


def ask(installation, folder: Path, code: str) -> str:
    """Run m-code like a job; return its output."""
    return run_m_code(code, folder, installation=installation, name="question")[0]


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * np.minimum(a, b).sum() / (a.sum() + b.sum()))


def voxels(path: str | os.PathLike) -> np.ndarray:
    return nib.load(path).get_fdata(dtype=np.float32)


# --- maps ---


def test_tissues_are_found_where_they_are(run, phantom):
    gm, wm, csf = (voxels(run.native[i]) for i in range(3))
    assert dice(gm, phantom.gm) > 0.8
    assert dice(wm, phantom.wm) > 0.8
    assert dice(csf, phantom.csf) > 0.7


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


def test_everything_asked_for_is_written_under_the_users_name_and_the_users_folder_stays_as_it_was(run, scan):
    names = {path.name for path in run.parameters.parent.iterdir()}
    assert names == {
        *(f"c{i}sub-01_T1w.nii" for i in range(1, 7)),
        "msub-01_T1w.nii",
        "BiasField_sub-01_T1w.nii",
        "y_sub-01_T1w.nii",
        "iy_sub-01_T1w.nii",
        "sub-01_T1w_seg8.mat",
    }  # and no private folder, log or octave-workspace
    assert [path.name for path in scan.parent.iterdir()] == [scan.name]


def test_maps_are_on_the_grid_of_the_image(run, scan):
    image = nib.load(scan)
    for path in (run.native[0], run.bias_corrected):
        assert nib.load(path).shape == image.shape
        np.testing.assert_allclose(nib.load(path).affine, image.affine, atol=1e-4)


def test_the_run_tells_what_it_ran_on(run, installation):
    assert run.runner.startswith("MATLAB Runtime" if installation.compiled else "GNU Octave")
    assert run.tpm == installation.tpm
    assert run.seconds > 0.5
    assert 0.05 < run.peak_memory_gb < MEMORY_GB, "the memory that its node reserves"


def test_two_runs_at_the_same_time_give_the_bits_of_one_alone(run, pair):
    for i in range(5):
        assert Path(pair.node.native_class_images[i][0]).read_bytes() == run.native[i].read_bytes()
    assert Path(pair.node.bias_corrected_images).read_bytes() == run.bias_corrected.read_bytes()
    assert Path(pair.node.bias_field_images).read_bytes() == run.bias_field.read_bytes()
    assert Path(pair.node.forward_deformation_field).read_bytes() == run.forward_deformation.read_bytes()
    assert Path(pair.node.inverse_deformation_field).read_bytes() == run.inverse_deformation.read_bytes()
    assert Path(pair.node.transformation_mat).read_bytes() == run.parameters.read_bytes()
    np.testing.assert_array_equal(pair.maps.gm, voxels(run.native[0]))


def test_maps_have_the_order_and_the_form_of_the_embedded_engines(pair, run, phantom):
    maps = pair.maps
    np.testing.assert_array_equal(maps.wm, voxels(run.native[1]))
    np.testing.assert_array_equal(maps.csf, voxels(run.native[2]))
    assert {array.dtype for array in (maps.wm, maps.gm, maps.csf, maps.bias_corrected)} == {np.dtype("f4")}
    brain = phantom.gm + phantom.wm + phantom.csf > 0.5
    assert dice(maps.mask.astype(float), brain.astype(float)) > 0.93
    assert check_plausible(maps, phantom.image) == []


def test_the_record_tells_engine_version_priors_sampling_distance_and_seconds(pair, installation):
    details = pair.maps.details
    assert pair.maps.engine == "SPM unified segmentation"
    assert pair.maps.version == installation.version
    assert details["sampling_distance_mm"] == SAMPLING_MM
    assert details["tpm_git_blob"] == tpm_blob_id(installation.tpm)
    assert any("not SPM's TPM.nii" in r for r in details["remarks"]) == (not details["tpm_genuine"])
    assert details["seconds"]["spm"] > 0.5
    assert details["skull_stripped"] is False


@pytest.fixture(scope="session")
def outcomes(installation, phantom, pair, tmp_path_factory) -> dict[str, TissueMaps | InputError]:
    """Segment a misplaced, a mislabelled and a stripped head; two at a time."""
    affine, data = phantom.image.affine, phantom.image.get_fdata(dtype=np.float32)
    angle = np.radians(30)
    tilt = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    brain = phantom.gm + phantom.wm + phantom.csf > 0.5
    heads = {
        "far": make_image(data, from_matvec(tilt, (0, 0, 200)) @ affine),
        "mislabelled": make_image(data.transpose(0, 2, 1), affine),
        "stripped": make_image(np.where(brain, data, 0), affine),
    }

    def segment(image: nib.Nifti1Image) -> TissueMaps | InputError:
        try:
            return segment_with_spm(image, installation=installation, sampling_mm=SAMPLING_MM)
        except InputError as fault:
            return fault

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(heads, pool.map(segment, heads.values()), strict=True))


def test_a_head_20_cm_from_the_origin_and_tilted_by_30_degrees_is_segmented_all_the_same(outcomes, phantom):
    maps = outcomes["far"]
    assert isinstance(maps, TissueMaps), maps
    assert dice(maps.gm, phantom.gm) > 0.8
    assert 20 < maps.details["affine_rotation_deg"] < 40


def test_axes_mislabelled_by_90_degrees_do_not_pass_unnoticed(outcomes):
    answer = outcomes["mislabelled"]
    noticed = str(answer) if isinstance(answer, InputError) else " ".join(answer.details["remarks"])
    assert "det(affine)" in noticed


def test_a_stripped_brain_is_recognised_and_its_maps_end_where_the_data_end(outcomes, phantom):
    maps = outcomes["stripped"]
    assert isinstance(maps, TissueMaps), maps
    brain = phantom.gm + phantom.wm + phantom.csf > 0.5
    assert maps.details["skull_stripped"] is True
    assert any("skull-stripped" in remark for remark in maps.details["remarks"])
    assert not (maps.gm + maps.wm + maps.csf)[~brain].any()
    # Priors beyond the brain must not stretch it: the size is that of the whole head.
    assert maps.details["tissue_classes"] == 4
    assert maps.details["affine_determinant"] == pytest.approx(HEAD_SCALE**-3, rel=0.1)
    assert dice(maps.gm, np.where(brain, phantom.gm, 0)) > 0.75


# --- settings of nipype, and HCP ---


@pytest.fixture(scope="session")
def others(installation, scan, run, phantom, tmp_path_factory) -> SimpleNamespace:
    """Two more runs: NewSegment's settings, and a stripped HCP image with its whole head."""
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
    choice = engine_for(stripped, SegmentationSettings())
    hcp = init_segment_node(choice, sampling_mm=SAMPLING_MM)
    hcp.base_dir, hcp.inputs.in_file = folder / "work", stripped
    (folder / "node").mkdir()
    before = {path.name: path.stat().st_mtime_ns for path in plain.parent.iterdir()}
    # One after the other: both change the current folder of the process.
    maps, result = hcp.run().outputs, node.run(cwd=str(folder / "node")).outputs
    return SimpleNamespace(plain=plain, before=before, brain=brain, node=result, choice=choice, hcp=maps)


def test_a_read_only_folder_of_the_users_stays_as_it_is(others):
    after = {path.name: path.stat().st_mtime_ns for path in others.plain.parent.iterdir()}
    assert after == others.before


def test_uncompressed_images_and_nipypes_input_paths_are_accepted(others):
    names = [Path(images[0]).name for images in others.node.native_class_images]
    assert names == [f"c{i}sub-01_T1w.nii" for i in range(1, 7)]
    assert Path(others.node.bias_field_images).name == "BiasField_sub-01_T1w.nii"


def test_the_sampling_distance_is_not_cosmetic(others, run):
    """Maps with 20 and 14 mm differ, like those with 3 and 2 mm."""
    grey = (run.native[0], others.node.native_class_images[0][0])
    ours, other = (nib.load(path).get_fdata() > 0.5 for path in grey)
    dice = 2 * (ours & other).sum() / (ours.sum() + other.sum())
    assert 0.5 < dice < 0.9999


def test_for_a_stripped_hcp_image_the_whole_head_is_segmented_and_the_maps_end_with_the_brain(others, run):
    assert others.choice.engine == "spm"
    record = json.loads(Path(others.hcp.details_file).read_text())
    assert record["Engine"] == "SPM unified segmentation"
    assert record["EngineVersion"] == others.choice.spm.version
    assert record["spm_found_by"] == others.choice.spm.spm_source
    assert record["segmented_whole_head"].endswith("T1w_acpc_dc_restore.nii.gz")
    assert record["skull_stripped"] is True and record["sampling_distance_mm"] == SAMPLING_MM
    assert isinstance(record["tpm_genuine"], bool)
    assert record["seconds"]["spm"] > 0
    files = (others.hcp.gm_file, others.hcp.wm_file, others.hcp.csf_file)
    for path, native in zip(files, run.native[:3], strict=True):
        np.testing.assert_allclose(voxels(path), np.where(others.brain, voxels(native), 0), atol=1e-6)
    mask = nib.load(others.hcp.mask_file).get_fdata() > 0
    assert not (mask & ~others.brain).any()
    assert mask.sum() > 0.9 * others.brain.sum()


# --- start and end ---


def test_octave_refuses_the_options_that_nipype_gives_matlab_and_we_give_none_of_them(octave, installation):
    nipypes = ["-nodesktop", "-nosplash", "-singleCompThread", "-r"]
    refused = subprocess.run([octave, *nipypes, "1"], capture_output=True, text=True, timeout=60)
    assert refused.returncode != 0 and "invalid option" in refused.stderr
    assert not set(nipypes) & set(installation.command)


def test_of_an_incomplete_spm_the_first_missing_function_is_named(octave, phantom, tmp_path):
    """Not by an error in the error handling, for example an exception class that Octave lacks."""
    hollow = find_spm(spm_dir=make_spm(tmp_path / "hollow"), octave=octave, environ={})
    with pytest.raises(SpmError, match="spm_get_defaults"):
        run_unified_segmentation(phantom.image, tmp_path / "out", installation=hollow)


def test_the_version_is_read_without_starting_anything_and_is_the_one_that_spm_states(
    octave, installation, tmp_path, monkeypatch
):
    said = ask(installation, tmp_path, f"[v, r] = spm('Ver'); fprintf('IS %s r%s\\n', v, r); {DONE}")
    monkeypatch.setattr("subprocess.Popen", None)  # no process may be started
    node = UnifiedSegmentation(spm_dir=str(installation.spm_dir), octave=str(octave))
    assert f"IS {installation.release} r{installation.revision}" in said
    assert node.version == installation.version


@pytest.mark.parametrize(
    ("code", "words"), [("exit(0);", "exit code 0"), (f"{DONE} exit(7);", "exit code 7")]
)
def test_octave_that_ends_early_or_fails_at_the_end_has_not_completed(installation, tmp_path, code, words):
    with pytest.raises(SpmError, match=words):
        ask(installation, tmp_path, code)


@pytest.mark.usefixtures("linux")
def test_a_run_that_takes_too_long_is_ended_and_leaves_nothing_behind(installation, scan, tmp_path):
    with pytest.raises(SpmError, match="still running after 1 s"):
        run_unified_segmentation(scan, tmp_path, installation=installation, settings=SETTINGS, timeout_s=1)
    assert list(tmp_path.iterdir()) == []  # also no octave-workspace
    assert octaves_in(tmp_path) == []


@pytest.mark.usefixtures("linux")
def test_octave_killed_under_a_subjects_segmentation_ends_that_command_within_seconds(
    installation, scan, tmp_path
):
    """The command of a node ends with exit code 1, one line with the reason, and no map."""
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
def test_octave_killed_in_the_middle_is_an_error_within_seconds(installation, scan, tmp_path):
    stale = tmp_path / "c1sub-01_T1w.nii"
    stale.write_text("old")  # of an earlier run
    fault, seconds = killed(
        lambda: run_unified_segmentation(scan, tmp_path, installation=installation, settings=SETTINGS),
        tmp_path,
        signal.SIGKILL,
    )
    assert isinstance(fault, SpmError)
    assert "SIGKILL" in str(fault)
    assert scan.name in str(fault)
    assert seconds < 5
    assert [path.name for path in tmp_path.iterdir()] == [stale.name]
    assert stale.read_text() == "old"


@pytest.mark.usefixtures("linux")
def test_octave_terminated_leaves_no_workspace_files(installation, phantom, tmp_path):
    phantom.image.to_filename(tmp_path / "T1.nii")
    (tmp_path / "TPM1.nii").symlink_to(installation.tpm)
    code = job_script(SETTINGS, ["TPM1.nii"] * 6)
    fault, seconds = killed(
        lambda: run_m_code(code, tmp_path, installation=installation, name="T1.nii"), tmp_path, signal.SIGTERM
    )
    assert isinstance(fault, SpmError)
    assert seconds < 15
    assert not list(tmp_path.glob("octave-workspace*"))


def test_an_error_of_spm_is_quoted_and_old_maps_are_not_taken_for_new(installation, scan, tmp_path):
    stale = tmp_path / "c1sub-01_T1w.nii"
    stale.write_text("old")
    wrong = replace(SETTINGS, tissues=(replace(DEFAULT_TISSUES[0], frame=99),))
    with pytest.raises(SpmError, match="SPM's error") as caught:
        run_unified_segmentation(scan, tmp_path, installation=installation, settings=wrong)
    assert "SIGSEGV" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == [stale.name]
    assert stale.read_text() == "old"
