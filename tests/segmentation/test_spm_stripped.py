"""What SPM is given in the place of a stripped brain: the same brain, a background, and priors that fit."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from phantoms import make_brain

from iqtflow.segmentation.spm.stripped import (
    looks_stripped,
    stripped_settings,
    write_brain_priors,
    write_with_background,
)

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])


@pytest.fixture
def stripped() -> nib.Nifti1Image:
    """Return a brain in zeros, with zeros enclosed in its ventricles."""
    data = make_brain().intensity
    data[38:42, 42:46, 38:42] = 0
    return nib.Nifti1Image(data, AFFINE)


def test_a_brain_in_zeros_is_told_from_a_head_in_zeros_and_from_a_brain_in_noise(stripped):
    present = stripped.get_fdata() != 0
    assert looks_stripped(present, AFFINE)
    assert not looks_stripped(present, np.diag([3.5, 3.5, 3.5, 1.0]))  # 5 l: what is left is a head
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


def test_an_image_without_orientation_does_not_gain_one(stripped, tmp_path):
    bare = nib.Nifti1Image(stripped.get_fdata(dtype=np.float32), None)
    header = nib.load(write_with_background(bare, tmp_path / "a.nii")).header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (0, 0)


def test_all_that_is_no_brain_becomes_one_class_and_the_four_sum_to_one(tmp_path):
    six = np.random.default_rng(0).dirichlet(np.ones(6), (4, 5, 6)).astype(np.float32)
    nib.Nifti1Image(six, AFFINE).to_filename(tmp_path / "TPM.nii")
    four = nib.load(write_brain_priors(tmp_path / "TPM.nii", tmp_path / "four.nii")).get_fdata(
        dtype=np.float32
    )
    np.testing.assert_allclose(four[..., :3], six[..., :3], atol=1e-6)
    np.testing.assert_allclose(four[..., 3], six[..., 3:].sum(axis=-1), atol=1e-5)
    assert len(stripped_settings(tmp_path / "four.nii", sampling_mm=3.0).tissues) == 4
