"""Checks of a trained model on the subjects that it has not seen, for the page of a training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from iqtflow.evaluation.metrics import wilcoxon
from iqtflow.reports.verdict import Check

LEVEL = 0.01  #: of the Wilcoxon test
#: Fewest subjects with which the exact two-tailed test can be below `LEVEL`: if all gain, p = 2 / 2^n.
FEWEST = math.ceil(math.log2(2 / LEVEL))
#: True error over predicted error of a map that is calibrated, as a mean over the subjects.
CALIBRATED = (0.8, 1.25)


def check_training(
    scores: Mapping[str, tuple[Sequence[float], Sequence[float]]], reliability: Mapping[str, Any] | None
) -> list[Check]:
    """Check whether a model is better than the spline, on enough subjects, and its predicted error.

    Parameters
    ----------
    scores
        By the name of the measure: scores of the model and of the spline, one of each subject. Higher is
        better.
    reliability
        As `iqtflow.evaluation.uncertainty_calibration.summarise_reliability` returns it; None if there is
        no standard deviation map, or if it was not compared with the error.

    Returns
    -------
    list of Check
        The most important first.
    """
    if not scores:
        words = "The model was not evaluated on unseen subjects. Name them in the split and evaluate it."
        return [Check("Evaluation", False, "no subject", f"{FEWEST} or more", words)]
    n = max(len(ours) for ours, _ in scores.values())
    return [
        *(_against_spline(name, np.subtract(*pair)) for name, pair in scores.items()),
        _enough(n),
        _predicted_error(reliability),
    ]


def _against_spline(measure: str, gain: np.ndarray) -> Check:
    """Check the gains of one measure over the spline."""
    n, better, mean = len(gain), int((gain > 0).sum()), float(gain.mean())
    expected = f"mean gain above 0, p < {LEVEL:g}"
    found = f"{mean:+.3g} in the mean, better in {better} of {n}"
    name = f"{measure} against the spline"
    if mean <= 0:
        words = f"By {measure}, the model is not better than the cubic spline on average."
        return Check(name, False, found, expected, words, severe=True)
    p = wilcoxon(gain.tolist(), [0.0] * n)[2] if n > 1 else None
    found += "" if p is None else f", p = {p:.2g}"
    words = f"By {measure}, the model is better than the cubic spline in {better} of {n} unseen subjects"
    if p is None or n < FEWEST:
        return Check(name, None, found, expected, f"{words}. These are too few for p < {LEVEL:g}.")
    if p < LEVEL:
        return Check(name, True, found, expected, f"{words} (p = {p:.2g}).")
    return Check(name, False, found, expected, f"{words} (p = {p:.2g}): the gain is not consistent.")


def _enough(n: int) -> Check:
    subjects = f"{n} unseen subject{'' if n == 1 else 's'}"
    words = (
        f"{subjects}: the smallest possible p is {2 / 2**n:.2g}. p < {LEVEL:g} needs at least {FEWEST} "
        f"subjects, if all are better than with the spline (p = 2 / 2^{FEWEST} = {2 / 2**FEWEST:.2g})."
    )
    return Check("Enough unseen subjects", n >= FEWEST, str(n), f"{FEWEST} or more", words)


def _predicted_error(reliability: Mapping[str, Any] | None) -> Check:
    low, high = CALIBRATED
    name, expected = "Predicted error calibrated", f"true / predicted error {low:g} to {high:g}"
    if not reliability:
        words = "There is no predicted error, or it was not compared with the true error."
        return Check(name, None, "", expected, words)
    ratio, within = (float(reliability[key]["mean"]) for key in ("error_over_std", "within_1_std"))
    found = f"{ratio:.2f}; {100 * within:.0f} % of the voxels within 1 SD"
    if low <= ratio <= high:
        words = "The predicted error has the size of the true error."
    elif ratio > high:
        words = f"The predicted error is too small (true / predicted error: {ratio:.2f})."
    else:
        words = f"The predicted error is too large (true / predicted error: {ratio:.2f})."
    return Check(name, low <= ratio <= high, found, expected, words)
