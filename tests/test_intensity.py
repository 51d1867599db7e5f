"""Air belongs at 0 and slices belong in a scan: what is otherwise is mended and said, or refused."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from conftest import make_affine, make_head, write_scan
from scipy import ndimage

from iqtflow.conform import check_scan
from iqtflow.errors import InputError
from iqtflow.intensity import bridge_slices, empty_slices, settle_intensities

SHAPE = (60, 56, 20)


def head_and_air() -> tuple[np.ndarray, np.ndarray]:
    """A head (about 320) in noise (about 20), and where a mask around it with a margin ends."""
    data = np.abs(make_head(SHAPE))
    return data, ~ndimage.binary_dilation(data > 150, iterations=2)


@pytest.mark.parametrize("value", [-1024, -100, -32768, -1e30, 65535, 64512])
def test_a_value_that_fills_up_the_air_becomes_0(value):
    data, outside = head_and_air()
    filled = np.where(outside, np.float32(value), data)
    mended, notes = settle_intensities("x", filled)
    np.testing.assert_array_equal(mended, np.where(outside, 0, data))
    assert len(notes) == 1 and f"{np.float32(value):g}" in notes[0]


def test_a_filling_that_was_resampled_leaves_no_negative_rim():
    data, outside = head_and_air()
    smooth = ndimage.zoom(np.where(outside, np.float32(-1024), data), (1.1, 1.1, 1), order=3)
    mended, notes = settle_intensities("x", smooth)
    assert mended.min() == 0 and len(notes) == 1
    np.testing.assert_array_equal(mended[mended > 0], smooth[smooth > 0])


def test_corners_alone_may_be_filled():
    """As after a rotation: the other air is the scanner's."""
    data, _ = head_and_air()
    data[:8, :8] = -1024
    mended, notes = settle_intensities("x", data)
    assert mended.min() == 0 and len(notes) == 1
    np.testing.assert_array_equal(mended[8:], data[8:])


@pytest.mark.parametrize("offset", [-1024, -100])
def test_an_offset_is_added_back(offset):
    data, _ = head_and_air()
    mended, notes = settle_intensities("x", data + np.float32(offset))
    contrast = mended - np.median(mended[:5, :5, :2])
    np.testing.assert_allclose(contrast, data - np.median(data[:5, :5, :2]), atol=1)
    assert "was added to all voxels" in notes[0]


def test_noise_about_0_and_a_little_undershoot_are_left_alone():
    data, _ = head_and_air()
    for noisy in (data - 20, data, np.where(data < 30, np.float32(-2), data)):
        same, notes = settle_intensities("x", noisy.astype(np.float32))
        assert same is noisy or np.array_equal(same, noisy)
        assert notes == []


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda data: -data, id="inverted"),
        pytest.param(lambda data: -np.round(np.where(data > 150, data, 0), -1), id="inverted, air erased"),
        pytest.param(lambda data: np.where(data > 250, data - 600, data), id="unsigned taken for signed"),
        pytest.param(
            lambda data: data * np.sign(np.sin(np.arange(data.size))).reshape(data.shape), id="phase"
        ),
    ],
)
def test_what_is_no_magnitude_is_refused(tmp_path, spoil):
    data, _ = head_and_air()
    path = write_scan(tmp_path / "x.nii", spoil(data).astype(np.float32), make_affine((3, 3, 8)))
    with pytest.raises(InputError, match="below 0 as far as above; expected magnitudes"):
        check_scan(path)


@pytest.mark.parametrize(
    ("factor", "words"),
    [
        (1e300, "intensities up to 3.*e\\+302; expected between"),
        (1e30, "intensities up to 3.*e\\+32; expected between"),
        (1e-40, "intensities up to 3.*e-38; expected between"),
        (1e-300, "intensities up to|the value 0 in every voxel"),
    ],
)
def test_numbers_beyond_32_bits_are_no_nan(tmp_path, factor, words):
    data, _ = head_and_air()
    nib.Nifti1Image(data.astype(np.float64) * factor, make_affine((3, 3, 8))).to_filename(tmp_path / "x.nii")
    with pytest.raises(InputError, match=words):
        check_scan(tmp_path / "x.nii")


def test_an_image_without_contrast_is_no_image(tmp_path):
    """As of a slope of 1e-8 and an intercept of 3."""
    data = 3 + 1e-6 * head_and_air()[0]
    path = write_scan(tmp_path / "x.nii", data.astype(np.float32), make_affine((3, 3, 8)))
    with pytest.raises(InputError, match="nearly the same in every voxel"):
        check_scan(path)


@pytest.mark.parametrize("slope", [0.0, np.nan, np.inf])
def test_a_slope_that_is_none_leaves_voxels_as_stored(tmp_path, slope):
    data = head_and_air()[0].astype(np.int16)
    path = write_scan(tmp_path / "x.nii", data, make_affine((3, 3, 8)))
    content = bytearray(path.read_bytes())
    content[112:116] = np.float32(slope).tobytes()
    path.write_bytes(content)
    scan = check_scan(path)
    np.testing.assert_array_equal(np.asarray(scan.dataobj), data)
    assert ["scl_slope" in note for note in scan.extra["notes"]] == ([] if slope == 0 else [True])


# --- slices ---


def test_lost_slices_are_named_as_viewers_count_them(tmp_path):
    data, _ = head_and_air()
    for lost, said in (
        ([7, 8], "Slices 8 and 9 are"),
        ([12], "Slice 13 is"),
        ([3, 4, 5], "Slices 4 to 6 are"),
    ):
        spoilt = data.copy()
        spoilt[:, :, lost] = 0
        notes = check_scan(write_scan(tmp_path / "x.nii", spoilt, make_affine((3, 3, 8)))).extra["notes"]
        assert len(notes) == 1
        assert f"{said} empty (counted from 1 along k, of 20)" in notes[0]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_are_lost_between_others_or_beside_the_head(axis):
    data = np.moveaxis(head_and_air()[0], 2, axis)
    assert empty_slices(data, axis) == []
    lost = data.copy()
    np.moveaxis(lost, axis, 0)[[0, 9]] = 5
    assert empty_slices(lost, axis) == [9], "the first slice shows air alone"
    cut = np.moveaxis(np.moveaxis(data, axis, 0)[5:15].copy(), 0, axis)  # a slab through the head
    np.moveaxis(cut, axis, 0)[-1] = 0
    assert empty_slices(cut, axis) == [9]
    assert empty_slices(np.where(data > 150, data, 0), axis) == [], "around a stripped brain all is empty"


def test_a_lost_slice_is_bridged_in_a_straight_line():
    data = np.tile(np.arange(10, dtype=np.float32), (3, 4, 1))
    spoilt = data.copy()
    spoilt[:, :, [4, 5]] = 0
    np.testing.assert_allclose(bridge_slices(spoilt, 2, [4, 5]), data, atol=1e-6)
    spoilt[:, :, 9] = 0
    assert (bridge_slices(spoilt, 2, [4, 5, 9])[:, :, 9] == 8).all()
    assert (spoilt[:, :, 4] == 0).all(), "the scan itself stays as it is"
