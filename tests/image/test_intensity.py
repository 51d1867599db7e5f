"""Offsets of air, outliers and empty slices are corrected and noted, or the scan is refused."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import make_affine, make_head, write_scan
from scipy import ndimage

from iqtflow.image.intensity import correct_intensities, empty_slices, interpolate_slices
from iqtflow.image.validate import check_scan
from iqtflow.utils.errors import InputError

SHAPE = (60, 56, 20)


def head_and_air() -> tuple[np.ndarray, np.ndarray]:
    """Return a head (about 320) in noise (about 20), and the voxels outside a margin around it."""
    data = np.abs(make_head(SHAPE))
    return data, ~ndimage.binary_dilation(data > 150, iterations=2)


@pytest.mark.parametrize("value", [-1024, -100, -32768, -1e30, 65535, 64512])
def test_a_value_that_fills_up_the_air_becomes_0(value):
    data, outside = head_and_air()
    filled = np.where(outside, np.float32(value), data)
    mended, notes = correct_intensities("x", filled)
    np.testing.assert_array_equal(mended, np.where(outside, 0, data))
    assert len(notes) == 1 and f"{np.float32(value):g}" in notes[0]


def test_a_filling_that_was_resampled_leaves_no_negative_rim():
    data, outside = head_and_air()
    smooth = ndimage.zoom(np.where(outside, np.float32(-1024), data), (1.1, 1.1, 1), order=3)
    mended, notes = correct_intensities("x", smooth)
    assert mended.min() == 0 and len(notes) == 1
    np.testing.assert_array_equal(mended[mended > 0], smooth[smooth > 0])


def test_corners_alone_may_be_filled():
    """For example after a rotation: the rest of the air has noise."""
    data, _ = head_and_air()
    data[:8, :8] = -1024
    mended, notes = correct_intensities("x", data)
    assert mended.min() == 0 and len(notes) == 1
    np.testing.assert_array_equal(mended[8:], data[8:])


@pytest.mark.parametrize("offset", [-1024, -100])
def test_an_offset_is_added_back(offset):
    data, _ = head_and_air()
    mended, notes = correct_intensities("x", data + np.float32(offset))
    contrast = mended - np.median(mended[:5, :5, :2])
    np.testing.assert_allclose(contrast, data - np.median(data[:5, :5, :2]), atol=1)
    assert "was added to all voxels" in notes[0]


@pytest.mark.parametrize("offset", [1024, 1e6])
def test_an_offset_that_moved_air_above_0_is_taken_off(offset):
    data = rician(np.where(head_and_air()[0] > 150, np.float32(1000), np.float32(0)), 20)
    mended, notes = correct_intensities("x", data + np.float32(offset))
    np.testing.assert_allclose(mended, data, atol=2)  # 0.2 % of the tissue
    assert len(notes) == 1 and "subtracted from all voxels" in notes[0]


@pytest.mark.parametrize("coils", [1, 8, 32])
@pytest.mark.parametrize("snr", [3, 10, 50])
def test_the_noise_floor_of_a_magnitude_image_is_no_offset(coils, snr):
    head = np.where(head_and_air()[0] > 150, np.float32(1000), np.float32(0))
    data = rician(head, 1000 / snr, coils)
    same, notes = correct_intensities("x", data)
    assert same is data and notes == []


def rician(head: np.ndarray, sigma: float, coils: int = 1) -> np.ndarray:
    """Return a magnitude image of a head: the sum of squares of equal coils, with noise."""
    rng = np.random.default_rng(1)
    squares = (head / np.sqrt(coils) + sigma * rng.standard_normal((coils, *head.shape))) ** 2
    squares += (sigma * rng.standard_normal((coils, *head.shape))) ** 2
    return np.sqrt(squares.sum(axis=0)).astype(np.float32)


@pytest.mark.parametrize(("place", "value"), [((30, 28, 10), -1e6), ((0, 0, 0), 1e9), ((30, 28, 10), 1e5)])
def test_a_wild_voxel_is_set_to_what_is_around_it(place, value):
    data, _ = head_and_air()
    spoilt = data.copy()
    spoilt[place] = value
    mended, notes = correct_intensities("x", spoilt)
    assert abs(mended[place] - data[place]) < 30
    mended[place] = data[place]
    np.testing.assert_array_equal(mended, data)
    assert spoilt[place] == np.float32(value), "the array that was given stays as it is"
    assert len(notes) == 1 and notes[0].startswith("1 voxel far beyond") and str(place) in notes[0]


def test_many_wild_voxels_are_damage():
    data, _ = head_and_air()
    data.ravel()[::500] = 1e7
    with pytest.raises(InputError, match=r"135 voxels far beyond all others .first: 1e.07 at"):
        correct_intensities("x", data)


def test_noise_about_0_and_a_little_undershoot_are_left_alone():
    data, _ = head_and_air()
    for noisy in (data - 20, data, np.where(data < 30, np.float32(-2), data)):
        same, notes = correct_intensities("x", noisy.astype(np.float32))
        assert same is noisy or np.array_equal(same, noisy)
        assert notes == []


NO_MAGNITUDES = "below 0 as far as above; expected magnitudes"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        pytest.param(lambda data, _: -data, NO_MAGNITUDES, id="negative"),
        pytest.param(
            lambda data, _: -np.round(np.where(data > 150, data, 0), -1), NO_MAGNITUDES, id="air erased"
        ),
        pytest.param(
            lambda data, _: np.where(data > 250, data - 600, data), NO_MAGNITUDES, id="unsigned as signed"
        ),
        pytest.param(
            lambda data, _: data * np.sign(np.sin(np.arange(data.size))).reshape(data.shape),
            NO_MAGNITUDES,
            id="phase",
        ),
        pytest.param(lambda data, _: data.max() - data, r"brighter than the head .*inverted", id="inverted"),
        pytest.param(
            lambda data, outside: data.max() - np.where(outside, 0, data),
            r"brighter than the head .*inverted",
            id="inverted, air erased",
        ),
        pytest.param(lambda data, _: np.digitize(data, [150]), "2 different values", id="mask"),
        pytest.param(lambda data, _: np.digitize(data, [150, 300, 320]), "4 different values", id="labels"),
        pytest.param(lambda data, _: 3 + 1e-6 * data, "nearly the same in every voxel", id="no contrast"),
    ],
)
def test_what_is_no_scan_is_refused(tmp_path, spoil, words):
    spoilt = spoil(*head_and_air()).astype(np.float32)
    with pytest.raises(InputError, match=words):
        check_scan(write_scan(tmp_path / "x.nii", spoilt, make_affine((3, 3, 8))))


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
    data = head_and_air()[0].astype(np.float64) * factor
    with pytest.raises(InputError, match=words):
        check_scan(write_scan(tmp_path / "x.nii", data, make_affine((3, 3, 8))))


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
    np.testing.assert_allclose(interpolate_slices(spoilt, 2, [4, 5]), data, atol=1e-6)
    spoilt[:, :, 9] = 0
    assert (interpolate_slices(spoilt, 2, [4, 5, 9])[:, :, 9] == 8).all()
    assert (spoilt[:, :, 4] == 0).all(), "the scan itself stays as it is"
