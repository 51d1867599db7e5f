"""A scanner is measured from its scans: thickness, in-plane blur, bias field, stripes and kind of noise."""

from __future__ import annotations

import numpy as np
import pytest

from iqtflow.simulation.artifacts import bias_field, blur_in_plane, draw_bias
from iqtflow.simulation.bias_estimation import measure_bias
from iqtflow.simulation.noise_estimation import NoiseEstimate
from iqtflow.simulation.scanner import HIGH_FIELD_MM, ScannerMeasure, measure_scanner, pool_scanner
from iqtflow.simulation.slice_profile import apply_profile, profile_matrix
from iqtflow.simulation.slice_width import (
    DETAIL_EXPONENT,
    DETAIL_Q,
    EXPONENT,
    Q_OF_AXIS,
    detail_ratio,
    likeness,
    measure_widths,
)

SPACING_MM = 6.0
NOISE = 3.0


@pytest.fixture(scope="module")
def tissue() -> np.ndarray:
    """A block whose detail has the power spectrum of a brain along inferior-superior; voxels of 1 mm."""
    shape = (128, 128, 108)
    fx, fy, fz = np.meshgrid(*(np.fft.fftfreq(n) for n in shape), indexing="ij", sparse=True)
    plane = (fx**2 + fy**2 + DETAIL_Q**2) ** -(DETAIL_EXPONENT + 0.5)
    amplitude = np.sqrt(plane * (fz**2 + Q_OF_AXIS[2] ** 2) ** -EXPONENT)
    rng = np.random.default_rng(0)
    volume = np.fft.ifftn(np.fft.fftn(rng.standard_normal(shape)) * amplitude).real
    return (100 + 15 * volume / volume.std()).astype(np.float32)


def thick_slices(tissue: np.ndarray, fraction: float, *, blur_mm: float = 1.5, noise: float = NOISE):
    """Slices of `fraction` times their spacing, with white noise; scan and affine."""
    matrix = profile_matrix(tissue.shape[2], SPACING_MM, fraction * SPACING_MM)
    scan = blur_in_plane(apply_profile(tissue, 2, matrix), blur_mm, (1.0, 1.0))
    scan = scan + noise * np.random.default_rng(1).standard_normal(scan.shape)
    return scan.astype(np.float32), np.diag([-1, 1, SPACING_MM, 1])


def widths_of(scan, affine, sigma=NOISE):
    return measure_widths(scan, np.ones(scan.shape, bool), affine, axis=2, sigma=sigma)


@pytest.mark.parametrize("fraction", [0.6, 0.9])
def test_the_slice_thickness_is_found_in_noise(tissue, fraction):
    found = widths_of(*thick_slices(tissue, fraction))
    assert found.thickness_mm == pytest.approx(fraction * SPACING_MM, rel=0.1)
    assert found.notes == ()


def test_more_blur_in_the_plane_is_told_and_hardly_changes_the_thickness(tissue):
    sharp, blurred = (widths_of(*thick_slices(tissue, 0.75, blur_mm=mm)) for mm in (1.0, 2.2))
    assert blurred.inplane_mm > sharp.inplane_mm + 0.5
    assert blurred.thickness_mm == pytest.approx(sharp.thickness_mm, rel=0.08)


def test_the_direction_of_the_slices_in_the_array_does_not_matter(tissue):
    scan, affine = thick_slices(tissue, 0.75)
    turned = measure_widths(
        np.transpose(scan, (2, 0, 1)),
        np.ones((18, 128, 128), bool),
        affine[:, [2, 0, 1, 3]],
        axis=0,
        sigma=NOISE,
    )
    assert turned.thickness_mm == pytest.approx(widths_of(scan, affine).thickness_mm, rel=1e-3)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda scan: scan[..., :5], "too few slices"),
        (lambda scan: scan[:12, :12], "too few voxels"),
        (lambda scan: np.random.default_rng(2).normal(100, NOISE, scan.shape).astype("f4"), "noise hides"),
        (lambda scan: np.repeat(scan[..., ::3], 3, axis=2), "alike"),
    ],
    ids=["slab", "small brain", "noise only", "copied slices"],
)
def test_what_cannot_be_measured_is_said_with_its_reason(tissue, spoil, reason):
    scan, affine = thick_slices(tissue, 0.75)
    found = widths_of(spoil(scan), affine)
    assert found.thickness_mm is None and any(reason in note for note in found.notes)


def test_thicker_slices_are_expected_to_be_more_alike_and_blurred_planes_to_have_less_detail():
    alike = [likeness(t, SPACING_MM, q) for q in Q_OF_AXIS for t in (2.0, 4.0, 6.0)]
    assert np.all(np.diff(np.reshape(alike, (3, 3)), axis=1) > 0.05)
    assert np.all(np.diff([detail_ratio(mm) for mm in (0.0, 1.0, 2.0, 3.0)]) < 0)


def test_the_amplitude_of_the_bias_field_is_found(tissue):
    """On average over fields: the amplitude is at a corner of the volume, outside of the brain."""
    shape = (48, 48, 24)
    axes = np.meshgrid(*(np.linspace(-1.6, 1.6, n) for n in shape), indexing="ij")
    wm = (sum(a**2 for a in axes) < 1).astype(np.float32)
    rng = np.random.default_rng(5)
    put_in, found = [], []
    for _ in range(12):
        field = bias_field(draw_bias(rng, 0.6), shape)
        put_in.append(np.abs(np.log(field)).max())
        found.append(measure_bias(100 * field + rng.normal(0, NOISE, shape), wm))
    assert np.median(found) == pytest.approx(np.median(put_in), rel=0.2)
    assert np.corrcoef(put_in, found)[0, 1] > 0.85
    assert measure_bias(np.ones(shape), np.zeros(shape)) is None


def test_a_scan_tells_stripes_and_the_kind_of_noise(tissue):
    scan, affine = thick_slices(tissue, 0.75)
    scan[..., ::2] *= 1.06
    everywhere = np.ones(scan.shape, bool)

    def measure(method: str) -> ScannerMeasure:
        noise = NoiseEstimate(NOISE, method, 1000, "", correlated=method == "tissue-mad")
        return measure_scanner(scan, everywhere.astype("f4"), everywhere, affine, axis=2, noise=noise)

    found = measure("air-rayleigh")
    assert found.stripes == pytest.approx(0.06, abs=0.01) and found.noise_distribution == "rician"
    unknown = measure("tissue-mad")
    assert unknown.noise_distribution is None and any("background" in note for note in unknown.notes)
    assert any("interpolated" in note for note in unknown.notes) and found.notes == ()


def test_a_scanner_is_the_median_of_its_scans_and_says_what_few_of_them_tell():
    scans = [
        ScannerMeasure(
            "rician", fraction, None if i else 1.2, 0.2, 0.0, ("Not this one.",) if i else ()
        ).as_dict()
        for i, fraction in enumerate((0.70, 0.74, 0.75, 0.76, 1.4))
    ]
    pooled = pool_scanner(scans)
    assert pooled["noise_distribution"] == "rician" and pooled["n_scans"] == 5
    thickness = pooled["thickness_fraction"]
    assert thickness["median"] == 0.75 and thickness["range"][0] < 0.7 and thickness["range"][1] <= 1
    assert pooled["inplane_fwhm_mm"] is None and pooled["bias_amplitude"]["largest"] == pytest.approx(0.4)
    assert any("4 of 5" in note for note in pooled["notes"])
    # The blur and the high-field image's own width make the measured width.
    plane = pool_scanner([{**scan, "inplane_fwhm_mm": 2.5} for scan in scans])["inplane_fwhm_mm"]
    assert np.hypot(plane["blur_mm"], HIGH_FIELD_MM) == pytest.approx(2.5)
