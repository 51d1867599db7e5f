"""Figures of merit against values that can be worked out by hand, and against the literature's own
definitions.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import ndimage, stats

from iqtflow.evaluation.metrics import mssim, mssim_slicewise, psnr, wilcoxon
from iqtflow.utils.errors import InputError


@pytest.fixture(scope="module")
def brain() -> np.ndarray:
    """A textured ball in an empty surround, 24 x 26 x 22 voxels, intensities up to a few hundred."""
    rng = np.random.default_rng(0)
    texture = 200 + 400 * ndimage.gaussian_filter(rng.standard_normal((24, 26, 22)), 1.5)
    axes = np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in texture.shape), indexing="ij")
    return np.where(sum(axis**2 for axis in axes) < 8**2, texture, 0.0)


def test_psnr_of_a_constant_error_is_the_peak_over_that_error():
    reference = np.full((3, 3, 3), 50.0)
    reference[0, 0, 0] = 100
    assert psnr(reference, reference + 10) == pytest.approx(20 * np.log10(100 / 10))


def test_psnr_range_is_the_maximum_and_not_the_spread():
    """Intensities from 90 to 100 with an error of 10: the range is 100, since magnitudes begin at 0."""
    reference = np.linspace(90, 100, 27).reshape(3, 3, 3)
    assert psnr(reference, reference - 10) == pytest.approx(20.0)


def test_errors_outside_the_mask_do_not_count(brain):
    noisy = np.where(brain > 0, brain, 1e4)
    assert psnr(brain, noisy) == np.inf
    assert psnr(brain, noisy, np.ones(brain.shape)) < 0


def test_psnr_sees_the_maximum_inside_the_mask_only():
    reference = np.full((3, 3, 3), 100.0)
    reference[0] = 1e6
    mask = np.ones(reference.shape, bool)
    mask[0] = False
    assert psnr(reference, reference + 10, mask) == pytest.approx(20.0)


def test_identical_volumes_are_perfectly_similar(brain):
    assert mssim(brain, brain) == pytest.approx(1.0, abs=1e-12)
    assert mssim_slicewise(brain, brain) == pytest.approx(1.0, abs=1e-12)


def test_mssim_is_wangs_formula(brain):
    """SSIM from its definition, with Gaussian windows of SciPy: nothing in common with the implementation but
    the formula.
    """
    rng = np.random.default_rng(1)
    estimate = brain + rng.normal(0, 20, brain.shape)
    mask = brain != 0
    span = brain[mask].max() - brain[mask].min()
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2

    def window(volume):
        return ndimage.gaussian_filter(volume, 1.5, truncate=3.5)

    mx, my = window(brain), window(estimate)
    vx, vy, vxy = window(brain**2) - mx**2, window(estimate**2) - my**2, window(brain * estimate) - mx * my
    expected = (2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    assert mssim(brain, estimate) == pytest.approx(expected[mask].mean(), abs=1e-9)


def test_mssim_of_a_uniform_offset_is_the_luminance_term():
    """Structure and contrast agree, so that only (2 m (m + o) + c1) / (m^2 + (m + o)^2 + c1) is left, about
    each voxel's local mean.
    """
    rng = np.random.default_rng(2)
    reference = rng.uniform(100, 200, (15, 15, 15))
    span, offset = np.ptp(reference), 30.0
    local, c1 = ndimage.gaussian_filter(reference, 1.5, truncate=3.5), (0.01 * span) ** 2
    expected = (2 * local * (local + offset) + c1) / (local**2 + (local + offset) ** 2 + c1)
    assert mssim(reference, reference + offset) == pytest.approx(expected.mean(), abs=1e-9)


def test_the_two_kinds_of_mssim_are_not_interchangeable(brain):
    noisy = brain + np.random.default_rng(3).normal(0, 30, brain.shape)
    assert abs(mssim(brain, noisy) - mssim_slicewise(brain, noisy)) > 0.01


def test_slicewise_similarity_is_blind_across_slices(brain):
    """Slices in another order, the same ones in reference and estimate, are as similar as before."""
    noisy = brain + np.random.default_rng(4).normal(0, 30, brain.shape)
    order = np.random.default_rng(5).permutation(brain.shape[2])
    shuffled = [volume[..., order] for volume in (brain, noisy)]
    assert mssim_slicewise(*shuffled) == pytest.approx(mssim_slicewise(brain, noisy))
    assert mssim(*shuffled) != pytest.approx(mssim(brain, noisy), abs=1e-3)


@pytest.mark.parametrize("figure", [psnr, mssim, mssim_slicewise])
def test_units_of_the_scan_do_not_matter(brain, figure):
    noisy = brain + np.random.default_rng(6).normal(0, 30, brain.shape)
    assert figure(brain * 1000, noisy * 1000) == pytest.approx(figure(brain, noisy))


def test_air_around_the_head_does_not_change_the_figures(brain):
    """The map is computed near the mask only; that must not show."""
    noisy = brain + np.random.default_rng(7).normal(0, 30, brain.shape)
    wide = [np.pad(volume, 12) for volume in (brain, noisy)]
    inner = ndimage.binary_erosion(brain > 0, iterations=2)
    assert mssim(*wide, np.pad(inner, 12)) == pytest.approx(mssim(brain, noisy, inner), abs=1e-6)


def test_wilcoxon_of_ten_subjects_that_all_gain():
    """All signs alike happen in 2 of 2^10 cases."""
    result = wilcoxon(np.arange(1, 11), np.zeros(10))
    assert result == (10, 0.0, pytest.approx(2 / 2**10))


def test_wilcoxon_agrees_with_scipy_without_ties():
    rng = np.random.default_rng(8)
    a, b = rng.normal(0.4, 1, 15), rng.normal(0, 1, 15)
    expected = stats.wilcoxon(a, b, alternative="two-sided", method="exact")
    result = wilcoxon(a, b)
    assert result.n == 15
    assert (result.statistic, result.p) == pytest.approx((expected.statistic, expected.pvalue))


def test_wilcoxon_counts_ties_out():
    """Five pairs with tied ranks: the p value over all 32 assignments of signs."""
    difference = np.array([1.0, 1.0, -1.0, 2.0, 3.0])
    ranks = stats.rankdata(np.abs(difference))
    signs = np.array(list(itertools.product((0, 1), repeat=5)))
    smaller = np.minimum(signs @ ranks, (1 - signs) @ ranks)
    assert wilcoxon(difference, np.zeros(5)).p == pytest.approx(np.mean(smaller <= 2.0))


def test_pairs_without_a_difference_are_left_out():
    assert wilcoxon([1, 2, 3, 4], [1, 1, 1, 1]) == wilcoxon([2, 3, 4], [1, 1, 1])
    assert wilcoxon([1, 2], [1, 2]) == (0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: psnr(np.ones((2, 2, 2)), np.ones((2, 2, 3))), "one grid"),
        (lambda: psnr(np.zeros((2, 2, 2)), np.ones((2, 2, 2))), "no voxel"),
        (lambda: psnr(-np.ones((2, 2, 2)), np.ones((2, 2, 2))), "positive intensities"),
        (lambda: mssim(np.ones((12, 12, 12)), np.ones((12, 12, 12))), "one value in the whole mask"),
        (lambda: mssim(np.arange(64.0).reshape(4, 4, 4), np.ones((4, 4, 4))), "at least 11 voxels"),
        (lambda: wilcoxon([1, 2], [1]), "one length"),
    ],
)
def test_what_cannot_be_compared_is_refused_with_a_reason(call, words):
    with pytest.raises(InputError, match=words):
        call()
