"""Stripes of interleaved slices are found and removed; brains without stripes stay as they are."""

from __future__ import annotations

import numpy as np
import pytest
from phantoms import make_brain

from iqtflow.image.slice_intensity import (
    SliceIntensity,
    describe_slices,
    equalise_slices,
    measure_slice_intensity,
)


@pytest.fixture(scope="module")
def scan() -> tuple[np.ndarray, np.ndarray]:
    """40 slices of a phantom in noise of 2 % of white matter, on axis 2, and the brain."""
    brain = make_brain((40, 44, 160))
    thick = brain.intensity.reshape(40, 44, 40, 4).mean(axis=3)
    noise = np.random.default_rng(0).normal(0, 20, thick.shape)
    mask = brain.mask.reshape(40, 44, 40, 4).mean(axis=3) > 0.5
    return (thick + noise).astype(np.float32), mask


def with_stripes(data: np.ndarray, share: float, *, first: int = 0) -> np.ndarray:
    """Make every other slice brighter by a share."""
    striped = data.copy()
    striped[:, :, first::2] *= np.float32(1 + share)
    return striped


@pytest.mark.parametrize("share", [0.02, 0.04, 0.08])
@pytest.mark.parametrize("first", [0, 1])
def test_stripes_are_measured_and_removed(scan, share, first):
    data, mask = scan
    striped = with_stripes(data, share, first=first)
    found = measure_slice_intensity(striped, mask, 2)
    assert found.striped
    assert found.share == pytest.approx(share, abs=0.004)
    assert (found.difference > 0) == (first == 0)
    even = equalise_slices(striped, 2, found)
    assert even.dtype == np.float32
    assert not measure_slice_intensity(even, mask, 2).striped
    scaled = data * (striped[mask].mean() / data[mask].mean())  # one factor for all slices is no stripe
    assert np.abs(even - scaled)[mask].mean() < 0.2 * np.abs(striped - scaled)[mask].mean()


def test_a_brain_without_stripes_is_not_corrected(scan):
    data, mask = scan
    found = measure_slice_intensity(data, mask, 2)
    assert not found.striped
    assert describe_slices(found, corrected=False) == []


def test_shading_along_the_slices_is_no_stripe(scan):
    data, mask = scan
    ramp = np.linspace(0.7, 1.3, data.shape[2], dtype=np.float32) ** 2
    assert not measure_slice_intensity(data * ramp, mask, 2).striped


def test_one_bright_slice_is_no_stripe(scan):
    """A single slice with another gain, or a large lesion in it."""
    data, mask = scan
    changed = data.copy()
    changed[:, :, 17] *= np.float32(1.2)
    assert not measure_slice_intensity(changed, mask, 2).striped


def test_units_and_slice_axis_do_not_matter(scan):
    data, mask = scan
    striped = with_stripes(data, 0.04)
    found = measure_slice_intensity(striped, mask, 2)
    turned = measure_slice_intensity(1000 * np.moveaxis(striped, 2, 0), np.moveaxis(mask, 2, 0), 0)
    assert turned.difference == pytest.approx(found.difference, rel=1e-3)
    shifted = measure_slice_intensity(
        np.pad(striped, ((0, 0), (0, 0), (1, 0))), np.pad(mask, ((0, 0), (0, 0), (1, 0))), 2
    )
    assert shifted.difference == pytest.approx(-found.difference, rel=1e-3), "now the odd slices are bright"


@pytest.mark.parametrize("case", ["four slices", "no brain", "no tissue"])
def test_without_enough_tissue_there_is_no_test(scan, case):
    data, mask = scan
    if case == "four slices":
        data, mask = data[..., 18:22], mask[..., 18:22]
    elif case == "no brain":
        mask = np.zeros_like(mask)
    else:
        data = np.zeros_like(data)
    found = measure_slice_intensity(data, mask, 2)
    assert found == SliceIntensity()
    assert found.as_sidecar(corrected=False) == {"AlternatingShare": None, "PValue": None, "Corrected": False}


def test_a_lost_slice_does_not_hide_stripes(scan):
    data, mask = scan
    striped = with_stripes(data, 0.08)
    striped[:, :, 18] = 0
    assert measure_slice_intensity(striped, mask, 2).striped


def test_the_note_names_the_brighter_slices():
    (note,) = describe_slices(SliceIntensity(-0.05, 1e-6), corrected=True)
    assert "odd slices" in note
    assert "5.1%" in note
    (note,) = describe_slices(SliceIntensity(0.05, 1e-6), corrected=False)
    assert "--slice-intensity" in note


@pytest.mark.parametrize(("name", "striped"), [("lfC01", True), ("lfC20", False)])
def test_a_real_scan_with_stripes_and_one_without(real_data, name, striped):
    import nibabel as nib

    image = nib.load(real_data / f"mixed/sub-{name}/anat/sub-{name}_T1w.nii.gz")
    data = np.asarray(image.dataobj, dtype=np.float32)
    # The middle of the head stands for the brain: finding the brain takes a minute.
    mask = np.zeros(data.shape, bool)
    mask[tuple(slice(n * 3 // 10, n * 7 // 10) for n in data.shape[:2])] = True
    mask &= data > 0.5 * np.percentile(data[mask], 80)
    assert measure_slice_intensity(data, mask, int(np.argmax(image.header.get_zooms()))).striped == striped
