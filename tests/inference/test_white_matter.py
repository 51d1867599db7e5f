"""White matter keeps its intensity on scans of the training's kind, and is brought back on others."""

from __future__ import annotations

import numpy as np
import pytest
from phantoms import make_brain

from iqtflow.inference.white_matter import LARGEST_FACTOR, correct_white_matter, white_matter_ratio


@pytest.fixture(scope="module")
def volumes():
    """A thick-slice scan with noise, its truth and brain."""
    brain = make_brain((48, 52, 48))
    thick = brain.intensity.reshape(48, 52, 12, 4).mean(axis=3)
    noise = np.random.default_rng(0).normal(0, 20, thick.shape)
    return thick + noise, brain.intensity, brain.mask.reshape(48, 52, 12, 4).mean(axis=3) > 0.5


def test_the_truth_agrees_with_the_scan_whatever_the_noise(volumes):
    scan, truth, mask = volumes
    assert white_matter_ratio(scan, truth, mask) == pytest.approx(1, abs=0.005)


@pytest.mark.parametrize(("darker", "factor"), [(1.0, 1.0), (0.97, 1.0), (0.8, 1 / 0.8 / 1.05), (0.5, None)])
def test_only_what_leaves_the_usual_range_is_corrected_and_no_further_than_its_border(
    volumes, darker, factor
):
    scan, truth, mask = volumes
    found = correct_white_matter(scan, darker * truth, mask, (0.98, 1.05))
    assert found.factor == pytest.approx(LARGEST_FACTOR if factor is None else factor, rel=0.01)
    assert found.ratio == pytest.approx(1 / darker, rel=0.01)


def test_an_estimate_that_is_too_bright_is_darkened(volumes):
    scan, truth, mask = volumes
    assert correct_white_matter(scan, 1.2 * truth, mask, (0.98, 1.05)).factor == pytest.approx(
        1 / 1.2 / 0.98, rel=0.01
    )


def test_a_changed_grey_matter_is_no_reason(volumes):
    """Networks give grey matter another contrast: that is their task."""
    scan, truth, mask = volumes
    recontrasted = np.where((truth > 500) & (truth < 850), 0.8 * truth, truth)
    assert correct_white_matter(scan, recontrasted, mask, (0.98, 1.05)).factor == 1


def test_without_a_range_the_estimate_stays_and_the_ratio_is_told(volumes):
    scan, truth, mask = volumes
    found = correct_white_matter(scan, 0.5 * truth, mask, None)
    assert found.factor == 1
    assert found.as_sidecar()["ScanOverEstimate"] == pytest.approx(2, rel=0.01)
    assert found.as_sidecar()["UsualRange"] is None


def test_a_scan_without_brain_is_left_alone(volumes):
    scan, truth, mask = volumes
    assert correct_white_matter(scan, truth, np.zeros_like(mask), (0.98, 1.05)).factor == 1
    assert correct_white_matter(scan, 0 * truth, mask, (0.98, 1.05)).factor == 1
