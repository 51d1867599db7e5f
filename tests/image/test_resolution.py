"""The resolution of a volume is measured from its voxels; an interpolated one comes back to its slices."""

from __future__ import annotations

import re

import nibabel as nib
import numpy as np
import pytest
from conftest import make_affine
from nibabel.affines import apply_affine, voxel_sizes
from phantoms import make_tissue
from scipy import ndimage

from iqtflow.image.acquired_slices import advise, as_acquired, back_to_slices
from iqtflow.image.geometry import find_slice_geometry
from iqtflow.image.resolution import find_slices, measure_resolution
from iqtflow.utils.errors import InputError

SHAPE, STEP = (100, 104, 100), 5  #: voxels of 1 mm; slices that are 5 mm apart
PHASE = 1.3  #: place of the first slice, in voxels


@pytest.fixture(scope="module")
def head() -> np.ndarray:
    return make_tissue(SHAPE)


def interpolated(head: np.ndarray, axis: int, order: int) -> np.ndarray:
    """Average the head over slices 5 mm thick, and interpolate these to 1 mm again."""
    slices = ndimage.uniform_filter1d(head, STEP, axis=axis)
    at = np.arange(PHASE, head.shape[axis] - 1, STEP)
    slices = ndimage.map_coordinates(slices, _grid(head.shape, axis, at), order=1)
    back = np.clip((np.arange(head.shape[axis]) - PHASE) / STEP, 0, len(at) - 1)
    return ndimage.map_coordinates(slices, _grid(slices.shape, axis, back), order=order, mode="nearest")


def _grid(shape: tuple[int, ...], axis: int, at: np.ndarray) -> np.ndarray:
    places = [at if a == axis else np.arange(n) for a, n in enumerate(shape)]
    return np.stack(np.meshgrid(*places, indexing="ij"))


@pytest.fixture(scope="module")
def spline(head) -> nib.Nifti1Image:
    """The head, interpolated by cubic splines along the third axis, oblique in the world."""
    return nib.Nifti1Image(interpolated(head, 2, 3), make_affine((1.0, 1.0, 1.0)))


def test_an_isotropic_scan_is_not_taken_for_interpolated(head):
    found = measure_resolution(head, make_affine((1.0, 1.0, 1.0)))
    assert found.mm == pytest.approx((1, 1, 1), abs=0.05)
    assert found.coarse_axis is None
    assert advise(found) is None


def test_a_scan_that_is_smooth_in_all_directions_was_not_interpolated_from_slices(head):
    found = measure_resolution(ndimage.gaussian_filter(head, 1.5), np.eye(4))
    assert min(found.mm) > 1.5
    assert found.coarse_axis is None


@pytest.mark.parametrize(("axis", "order"), [(0, 3), (1, 1), (2, 3), (2, 1), (2, 0)])
def test_axis_spacing_and_places_of_interpolated_slices_are_found(head, axis, order):
    volume = interpolated(head, axis, order)
    found = measure_resolution(volume, np.eye(4))
    assert found.coarse_axis == axis
    assert found.mm[axis] == pytest.approx(STEP, rel=0.03)
    first, how = find_slices(volume, np.eye(4), axis, STEP)
    assert how != "centred"
    assert abs((first - PHASE + STEP / 2) % STEP - STEP / 2) < 0.5


def test_an_axis_with_few_voxels_is_not_measured(head):
    found = measure_resolution(head[..., ::10], np.diag([1.0, 1, 10, 1]))
    assert found.mm[2] is None
    assert found.coarse_axis is None


def test_a_spline_comes_back_to_the_very_slices(head, spline):
    scan, _, slices = as_acquired(spline, STEP)
    blurred = ndimage.uniform_filter1d(head, STEP, axis=2)
    at = PHASE + STEP * np.arange(scan.shape[2])
    truth = ndimage.map_coordinates(blurred, _grid(SHAPE, 2, at), order=1)
    inner = (slice(20, 80), slice(20, 80), slice(2, -2))
    assert slices.first == pytest.approx(PHASE, abs=0.1)
    assert np.std(np.asarray(scan.dataobj)[inner] - truth[inner]) < 0.1 * np.std(truth[inner])
    geometry = find_slice_geometry(scan, {"SliceThickness": 4})
    assert (geometry.axis, geometry.spacing_mm, geometry.thickness_mm) == (2, pytest.approx(STEP), 4)


def test_a_blob_keeps_its_place_in_the_world(spline):
    """Half a voxel of shift would be seen: the slices are 1.3 voxels from the edge, and obliquely."""
    place = np.array([50.0, 50.0, 52.0])
    apart = _grid(SHAPE, 2, np.arange(SHAPE[2])) - place[:, None, None, None]
    blob = np.asarray(spline.dataobj) * 1e-6 + np.exp(-(apart**2).sum(axis=0) / (2 * 6.0**2))
    image = nib.Nifti1Image(blob.astype(np.float32), spline.affine)
    found = measure_resolution(np.asarray(spline.dataobj), spline.affine)
    scan, _ = back_to_slices(image, STEP, "z", resolution=found)
    data = np.asarray(scan.dataobj, dtype=float)
    centre = [np.sum(i * data) / data.sum() for i in np.indices(data.shape)]
    assert apply_affine(scan.affine, centre) == pytest.approx(apply_affine(image.affine, place), abs=0.1)
    assert voxel_sizes(scan.affine) == pytest.approx((1, 1, STEP))


def test_slices_whose_places_leave_no_trace_are_taken_centred_and_that_is_said(head):
    smooth = ndimage.gaussian_filter1d(head, 5, axis=1)
    scan, _, slices = as_acquired(nib.Nifti1Image(smooth, np.eye(4)), 5.2, "y")
    assert slices.how == "centred"
    assert any("centred" in note for note in slices.notes)
    middle = apply_affine(scan.affine, (np.array(scan.shape) - 1) / 2)
    assert middle == pytest.approx((np.array(SHAPE) - 1) / 2, abs=0.3)


def test_another_spacing_than_the_one_found_is_told(spline):
    notes = as_acquired(spline, 6.0)[2].notes
    told = next(note for note in notes if "--acquired-spacing" in note)
    stated, found = map(float, re.findall(r"([\d.]+) mm", told))
    assert (stated, found) == (6, pytest.approx(STEP, rel=0.02))


def test_slices_coarser_than_the_detail_of_the_volume_are_told(head):
    notes = as_acquired(nib.Nifti1Image(head, np.eye(4)), 1.8, "z")[2].notes
    assert any("--acquired-spacing is 1.8 mm" in note and "along z is 1 mm" in note for note in notes)


@pytest.mark.parametrize(
    ("spacing", "axis", "named"),
    [
        (0.6, "z", "already"),
        (1.2, "z", "--acquired-spacing"),
        (1.0, "z", "already"),
        (29.0, "z", "slices"),
        (float("nan"), "z", "acquired_spacing"),
        (-5, "z", "acquired_spacing"),
        ("thick", "z", "acquired_spacing"),
        (5, "k", "acquired_axis"),
        (None, "z", "acquired_axis"),
        (5, "x", "--acquired-axis"),
    ],
)
def test_a_spacing_or_an_axis_that_does_not_fit_is_refused(spline, spacing, axis, named):
    with pytest.raises(InputError, match=named):
        as_acquired(spline, spacing, axis)


def test_no_axis_is_guessed_in_an_isotropic_scan(head):
    with pytest.raises(InputError, match="--acquired-axis"):
        as_acquired(nib.Nifti1Image(head, np.eye(4)), 5)


def test_real_scans_are_not_taken_for_interpolated(real_data):
    """Among them are three-dimensional scans whose third axis is softer."""
    for path in sorted((real_data / "mixed").glob("sub-hf*/anat/*_T1w.nii.gz"))[::3]:
        image = nib.load(path)
        found = measure_resolution(np.asarray(image.dataobj, dtype=np.float32), image.affine)
        assert found.coarse_axis is None, path.name
