"""Figures for methods whose intensities differ."""

from __future__ import annotations

import numpy as np
import pytest
from phantoms import make_brain

from iqtflow.evaluation.across_methods import (
    FIGURES,
    figures_of,
    fit_linear,
    fit_monotone,
    mae,
    nmse,
    ulf_enc_score,
)
from iqtflow.evaluation.metrics import psnr
from iqtflow.utils.errors import InputError


@pytest.fixture(scope="module")
def brain():
    return make_brain((40, 44, 36))


@pytest.fixture(scope="module")
def noisy(brain):
    noise = 20 * np.random.default_rng(0).standard_normal(brain.intensity.shape)
    return brain.intensity + noise


def test_gain_and_offset_do_not_count_after_the_linear_fit(brain, noisy):
    truth, mask = brain.intensity, brain.mask
    as_it_is, changed = (figures_of(truth, image, mask) for image in (noisy, 0.3 * noisy + 70))
    for figure in ("psnr_linear", "psnr_monotone", "mssim_linear"):
        assert changed[figure] == pytest.approx(as_it_is[figure], rel=1e-6), figure
    assert changed["nmse"] > 5 * as_it_is["nmse"] and changed["mae"] > 2 * as_it_is["mae"]
    assert figures_of(truth, noisy, mask).keys() == FIGURES.keys()


def test_any_rising_curve_does_not_count_after_the_monotone_fit(brain):
    truth, mask = brain.intensity, brain.mask
    bent = (truth / truth.max()) ** 3
    assert psnr(truth, fit_monotone(truth, bent, mask), mask) > 60
    assert psnr(truth, fit_linear(truth, bent, mask), mask) < 40
    upside_down = fit_monotone(truth, -truth, mask)
    assert np.ptp(upside_down[mask]) == pytest.approx(0, abs=1e-6), "a falling curve is no fit"


def test_errors_of_known_size(brain):
    truth, mask = brain.intensity.astype(float), brain.mask
    peak, power = truth[mask].max(), np.mean(truth[mask] ** 2)
    assert mae(truth, truth + 5, mask) == pytest.approx(5 / peak)
    assert nmse(truth, truth + 5, mask) == pytest.approx(25 / power)
    assert nmse(truth, np.zeros_like(truth), mask) == pytest.approx(1)


def test_the_score_of_the_challenge_on_an_example_by_hand():
    """One voxel of 1000 is off by half of the range; SSIM is left to its own tests."""
    from skimage.metrics import structural_similarity

    truth = np.random.default_rng(1).uniform(0.2, 1, (10, 10, 10))
    truth[0, 0, 0], truth[9, 9, 9] = 0, 1
    guess = truth.copy()
    guess[5, 5, 5] = truth[5, 5, 5] = 0.25
    guess[5, 5, 5] += 0.5
    mask = np.ones(truth.shape, bool)
    ssim = structural_similarity(guess, truth, data_range=1.0, full=True)[1].mean()
    own_psnr = (999 * 80 + 10 * np.log10(4)) / 1000
    expected = 0.7 * ssim + 0.1 * (own_psnr / 32 + (1 - 0.0005) + (1 - 0.25 / (truth**2).sum()))
    assert ulf_enc_score(truth, guess, mask) == pytest.approx(expected, abs=1e-6)
    in_other_units = ulf_enc_score(truth, 40 * guess - 3, mask)
    assert in_other_units == pytest.approx(expected, abs=1e-6)


def test_what_has_no_score_is_refused():
    flat = np.ones((8, 8, 8))
    with pytest.raises(InputError, match="ranges 0"):
        ulf_enc_score(flat, flat, flat > 0)
