"""The brain is found with and without the skull, in thin and thick slices, along any axis."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nilearn import datasets
from scipy import ndimage

from iqtflow.segmentation.brainmask import find_brain_mask, head_mask


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


@pytest.fixture(scope="module")
def template() -> tuple[nib.Nifti1Image, np.ndarray]:
    """Return the MNI brain, 2 mm, skull-stripped, and its mask."""
    image = datasets.load_mni152_template(resolution=2)
    return image, datasets.load_mni152_brain_mask(resolution=2).get_fdata() > 0


def low_field(
    image: nib.Nifti1Image, truth: np.ndarray, *, k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return simulated thick slices along z, with Gaussian noise of WM/60: data, affine, true mask."""
    blurred = ndimage.gaussian_filter1d(image.get_fdata(), 0.75 * k / 2.355, axis=2)
    start, stop = k // 2, image.shape[2] // k * k
    noise = np.random.default_rng(1).normal(0, 0.85 / 60, blurred[:, :, start:stop:k].shape)
    affine = image.affine @ np.diag([1, 1, k, 1])
    affine[:3, 3] += image.affine[:3, 2] * start
    return blurred[:, :, start:stop:k] + noise, affine, truth[:, :, start:stop:k]


def test_the_mask_of_a_stripped_volume_is_its_non_zero_voxels(template):
    image, truth = template
    found = find_brain_mask(image.get_fdata(), image.affine, skull_stripped=True)
    assert (found.method, found.skull_stripped) == ("nonzero", True)
    assert dice(found.mask, truth) > 0.95


def test_skull_stripping_is_recognised_without_being_told(template):
    image, _ = template
    found = find_brain_mask(image.get_fdata(), image.affine)
    assert (found.method, found.skull_stripped) == ("nonzero", True)


def test_a_few_bright_voxels_are_the_head():
    data = np.full((30, 30, 30), 3, np.float32)
    data[10:12, 10:12, 10:12] = 900
    np.testing.assert_array_equal(head_mask(data), data > 100)


def test_lost_slices_do_not_make_a_brain_of_half_a_head(template):
    """Two empty slices cut a whole head into parts as small as brains."""
    image, truth = template
    shell = ndimage.binary_dilation(truth, iterations=8)
    rng = np.random.default_rng(0)
    head = image.get_fdata() + np.where(shell & ~truth, rng.normal(0.7, 0.1, truth.shape), 0)
    affine = image.affine @ np.diag([1, 1, 2, 1])
    thick = (head[:, :, : truth.shape[2] // 2 * 2].reshape(*truth.shape[:2], -1, 2).mean(axis=3)).copy()
    whole = find_brain_mask(thick, affine)
    thick[:, :, 20:22] = 0
    found = find_brain_mask(thick, affine)
    assert (found.skull_stripped, found.method) == (whole.skull_stripped, whole.method) == (False, "deepbet")
    assert not found.mask[:, :, 20:22].any()
    others = [i for i in range(thick.shape[2]) if i not in (20, 21)]
    assert dice(found.mask[:, :, others], whole.mask[:, :, others]) > 0.95


def test_a_ventricle_set_to_zero_belongs_to_the_brain(template):
    image, truth = template
    data = image.get_fdata().copy()
    centre = tuple(int(c.mean()) for c in np.nonzero(truth))
    data[tuple(slice(c - 3, c + 4) for c in centre)] = 0
    found = find_brain_mask(data, image.affine, skull_stripped=True)
    assert found.mask[centre]


def test_noise_around_a_stripped_brain_is_not_brain_whichever_way_the_image_is_stored(template):
    data, affine, truth = low_field(*template, k=4)
    found = find_brain_mask(data, affine)
    assert found.method == "deepbet"
    assert dice(found.mask, truth) > 0.95

    turn = np.array([[2, -1], [0, 1], [1, -1]])
    turned = nib.Nifti1Image(data, affine).as_reoriented(turn)
    expected = nib.Nifti1Image(found.mask.astype(np.uint8), affine).as_reoriented(turn).get_fdata() > 0
    # Also with skull_stripped=True the noise is not brain.
    there = find_brain_mask(turned.get_fdata(), turned.affine, skull_stripped=True)
    assert there.skull_stripped
    assert dice(there.mask, expected) > 0.999


def test_a_bottle_gives_itself_and_a_warning():
    x, y, _ = np.indices((64, 64, 40)) - np.array([32, 32, 20]).reshape(3, 1, 1, 1)
    bottle = x**2 + y**2 < 25
    with pytest.warns(RuntimeWarning, match="whole head is used"):
        found = find_brain_mask(100.0 * bottle, np.diag([3.0, 3.0, 3.0, 1.0]), skull_stripped=False)
    assert found.method == "head"
    assert np.array_equal(found.mask, bottle)


def test_an_empty_volume_is_refused():
    with pytest.raises(ValueError, match="non-empty"):
        find_brain_mask(np.zeros((8, 8, 8)), np.eye(4))


def test_bright_fat_does_not_hide_the_head_from_otsu():
    radius = np.sqrt(sum(axis**2 for axis in np.meshgrid(*[np.linspace(-1.2, 1.2, 48)] * 3, indexing="ij")))
    head = radius < 1
    data = np.where(head, np.where(radius > 0.93, 300.0, 100.0), 0.0)
    data += np.random.default_rng(0).normal(0, 3, data.shape)
    assert dice(head_mask(data), head) > 0.98


def test_a_clinical_head_in_3_mm_slices_gives_a_brain_without_its_fat(real_data: Path):
    image = nib.load(real_data / "mixed/sub-lfC20/anat/sub-lfC20_T1w.nii.gz")
    data = image.get_fdata()
    found = find_brain_mask(data, image.affine)
    volume_ml = found.mask.sum() * np.prod(image.header.get_zooms()) / 1000
    assert (found.method, found.skull_stripped) == ("deepbet", False)
    assert 1000 < volume_ml < 1700
    # Fat is the brightest part of the head. In the brain only a few vessels are as bright.
    fat = data > np.percentile(data[head_mask(data)], 95)
    assert np.mean(fat[found.mask]) < 0.01


def test_four_slices_at_55_mt_are_masked_in_every_slice(real_data: Path):
    image = nib.load(real_data / "mixed/sub-lfD3/anat/sub-lfD3_T1w.nii.gz")
    found = find_brain_mask(image.get_fdata(), image.affine)
    areas_cm2 = found.mask.sum(axis=(0, 1)) * np.prod(image.header.get_zooms()[:2]) / 100
    assert found.method == "deepbet-slab"
    assert np.all((areas_cm2 > 100) & (areas_cm2 < 220))


def test_an_invalid_number_of_threads_is_an_error():
    data = np.random.default_rng(0).random((100, 100, 20))
    with pytest.raises((ValueError, TypeError, OverflowError, RuntimeError)):
        find_brain_mask(data, np.diag([2, 2, 10, 1]), num_threads=-1)
