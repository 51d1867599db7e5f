"""SPM's unified segmentation under a real Octave: right maps, the same bits each time, and plain failures.

The head is that of ``spm_phantom``, whose tissues are known.
"""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import from_matvec
from spm_fixtures import SETTINGS, killed
from spm_phantom import HEAD_SCALE, SAMPLING_MM, make_image

from iqtflow.interfaces.spm import UnifiedSegmentation
from iqtflow.segmentation.atropos import TissueMaps, check_plausible
from iqtflow.segmentation.spm.install import SpmInstallation, tpm_blob_id
from iqtflow.segmentation.spm.job import (
    SpmError,
    UnifiedSegmentationRun,
    run_m_code,
    run_unified_segmentation,
)
from iqtflow.segmentation.spm.script import DEFAULT_TISSUES, job_script
from iqtflow.segmentation.spm.segment import segment_with_spm
from iqtflow.utils.errors import InputError

pytest_plugins = ["spm_fixtures"]
pytestmark = [pytest.mark.spm, pytest.mark.slow]


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


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * np.minimum(a, b).sum() / (a.sum() + b.sum()))


def voxels(path: str | os.PathLike) -> np.ndarray:
    return nib.load(path).get_fdata(dtype=np.float32)


def test_tissues_are_found_where_they_are(run, phantom):
    gm, wm, csf = (voxels(run.native[i]) for i in range(3))
    assert dice(gm, phantom.gm) > 0.8
    assert dice(wm, phantom.wm) > 0.8
    assert dice(csf, phantom.csf) > 0.7


def test_the_six_classes_sum_to_one(run):
    total = sum(voxels(path) for path in run.native)
    assert np.abs(total - 1).max() <= 0.0101  # each is rounded to 1/255


def test_everything_asked_for_is_written_under_the_users_name_in_an_awkward_folder(run):
    names = {path.name for path in run.parameters.parent.iterdir()}
    assert names == {
        *(f"c{i}sub-01_T1w.nii" for i in range(1, 7)),
        "msub-01_T1w.nii",
        "BiasField_sub-01_T1w.nii",
        "y_sub-01_T1w.nii",
        "iy_sub-01_T1w.nii",
        "sub-01_T1w_seg8.mat",
    }  # and neither a private folder, nor a log, nor octave-workspace


def test_the_users_folder_holds_nothing_new(run, scan):
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
    assert 0.05 < run.peak_memory_gb < 2


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
    """Segment heads that are badly placed, mislabelled and stripped; two at a time."""
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
    # Priors that go on beyond the brain must not draw it out: its size is known to be the whole head's.
    assert maps.details["tissue_classes"] == 4
    assert maps.details["affine_determinant"] == pytest.approx(HEAD_SCALE**-3, rel=0.1)
    assert dice(maps.gm, np.where(brain, phantom.gm, 0)) > 0.75


@pytest.mark.usefixtures("linux")
def test_octave_killed_in_the_middle_is_a_plain_failure_within_seconds(installation, scan, tmp_path):
    stale = tmp_path / "c1sub-01_T1w.nii"
    stale.write_text("old")  # of an earlier run: not to be taken for new
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


def test_an_error_inside_spm_is_told_in_spms_words_and_old_maps_are_not_taken_for_new(
    installation, scan, tmp_path
):
    stale = tmp_path / "c1sub-01_T1w.nii"
    stale.write_text("old")
    wrong = replace(SETTINGS, tissues=(replace(DEFAULT_TISSUES[0], frame=99),))
    with pytest.raises(SpmError, match="SPM's error") as caught:
        run_unified_segmentation(scan, tmp_path, installation=installation, settings=wrong)
    assert "SIGSEGV" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == [stale.name]
    assert stale.read_text() == "old"
