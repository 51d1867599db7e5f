"""Whether a scan is like the scans that a model was trained on.

A network gives a result for every scan, also for one that is unlike its training data. So a few figures of
the scan are compared with those of simulated scans of the training subjects: the spread of intensities over
the brain, the noise, how much of the brain is in the scan, and the voxels. The score of a figure is its
distance from the middle of the training scans' range, divided by half of that range: up to 1 the figure is
within the range. The largest score of a figure is the score of the scan.

Ranges are used, not a mean and a covariance, because training scans come from few scanners: their figures
form clusters, not a Gaussian. For the same reason a range has a smallest width: scans of another scanner
differ by so much without a larger error of the enhanced volume (``benchmarks/out_of_distribution.py``,
``benchmarks/familiar.py``).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from iqtflow.models.card import Card
from iqtflow.utils.errors import InputError

#: Median of the absolute value of a normal variable over its sigma; four values enter a second difference.
NORMAL_MAD = 0.6745
#: Percentiles of the training scans' figures between which a scan counts as one of them.
RANGE_PERCENTILES = (2.0, 98.0)
#: Ranges of the shipped models, by name; those in a model's own card have priority.
SHIPPED = Path(__file__).parents[1] / "models/weights/familiar.json"


@dataclass(frozen=True)
class Figure:
    """One figure of a scan.

    Attributes
    ----------
    label
        What it is, for a table.
    least_half_range
        Smallest half range that is used for it.
    digits
        Decimals that are shown.
    high, low
        What it means when the value is above or below the training scans' range.
    part
        What to doubt in such a scan.
    check
        What to check.
    """

    label: str
    least_half_range: float
    digits: int
    high: str
    low: str
    part: str
    check: str

    def shown(self, value: float) -> str:
        """Return a value as text."""
        return f"{value:.{self.digits}f}"


ADVICE = ": doubt "  #: in a reason, between what was found and what to do
_IS_T1W = "that this is a T1w scan without contrast agent"
#: What is compared. Intensities are divided by the scale of `iqtflow.image.intensity`, the brain's 80th
#: percentile. "Usual" is what the training scans have.
FIGURES: dict[str, Figure] = {
    "GreyLevel": Figure(
        "Median intensity of the brain",
        0.08,
        2,
        "grey and white matter differ less than usual",
        "half of the brain is darker than usual",
        "the contrast",
        _IS_T1W,
    ),
    "DarkLevel": Figure(
        "Intensity of CSF (10th percentile of the brain)",
        0.2,
        2,
        "CSF is brighter than usual",
        "more of the brain is dark than usual",
        "the contrast",
        _IS_T1W + ", and the brain mask",
    ),
    "BrightLevel": Figure(
        "Brightest tissue (98th percentile of the brain)",
        0.12,
        2,
        "part of the brain is brighter than white matter: bright CSF, contrast agent, or shading",
        "white matter is not as bright as usual",
        "the contrast",
        _IS_T1W + ", and the shading",
    ),
    "Noise": Figure(
        "Noise, divided by white matter",
        0.02,
        3,
        "more noise than usual",
        "less noise than usual, or a smoothed scan",
        "fine detail",
        "the scan for motion, and whether a filter smoothed it",
    ),
    "BrainVolume": Figure(
        "Brain volume (ml)",
        600.0,
        0,
        "the brain volume (ml) is larger than usual",
        "the brain volume (ml) in the field of view is smaller than usual",
        "the brain mask",
        "its outline on the scan",
    ),
    "Coverage": Figure(
        "Length of the brain along the slice axis (mm)",
        40.0,
        0,
        "the brain is longer than usual along the slice axis (mm)",
        "the slices cover less of the brain (mm) than usual",
        "the first and last slices",
        "that the scan is complete",
    ),
    "PixelMm": Figure(
        "Pixel size in plane (mm)",
        0.45,
        2,
        "the pixels in plane (mm) are larger than usual",
        "the pixels in plane (mm) are smaller than usual",
        "fine detail",
        "the voxel size in the header",
    ),
    "SpacingRatio": Figure(
        "Slice spacing, divided by k pixels",
        0.25,
        2,
        "the slices are further apart than usual for this pixel size and k",
        "the slices are closer together than usual for this pixel size and k",
        "detail between the slices",
        "the slice spacing in the header, or choose another model",
    ),
}


@dataclass(frozen=True)
class Familiarity:
    """How far a scan is from the training scans.

    Attributes
    ----------
    score
        Largest score of a figure; 1 is the border of the training scans' range.
    threshold
        Above it the scan is out of distribution.
    scores, values
        By figure.
    reasons
        A sentence for each figure above the threshold, the largest score first.
    reference
        The ranges of the training scans.
    """

    score: float
    threshold: float
    scores: dict[str, float]
    values: dict[str, float]
    reasons: tuple[str, ...]
    reference: Mapping[str, Any]

    @property
    def unfamiliar(self) -> bool:
        """True above the threshold."""
        return self.score > self.threshold

    def sentence(self) -> str:
        """Return one sentence for the user."""
        words = "; ".join(self.reasons[:3])
        return (
            f"Out of distribution (score {self.score:.1f}, threshold {self.threshold:.1f}): {words}. This "
            "scan differs from the training data. Check each finding on the original scan."
        )

    def as_sidecar(self) -> dict[str, Any]:
        """Return the field ``OutOfDistribution`` of a sidecar."""
        return {
            "Flagged": self.unfamiliar,
            "Score": round(self.score, 2),
            "Threshold": round(self.threshold, 2),
            "Reasons": list(self.reasons),
            "Features": {
                name: {
                    "Value": round(value, 4),
                    "TrainingRange": [round(v, 4) for v in self.reference["ranges"][name]],
                    "Score": round(self.scores[name], 2),
                }
                for name, value in self.values.items()
            },
        }


def measure_scan(
    data: np.ndarray,
    mask: np.ndarray,
    *,
    axis: int,
    voxel_mm: Sequence[float],
    k: int,
    pixel_mm: float | None = None,
) -> dict[str, float]:
    """Measure the figures of a scan.

    Parameters
    ----------
    data : ndarray, shape (w, h, d)
        Thick-slice scan, any unit.
    mask : ndarray of bool, shape (w, h, d)
        Brain.
    axis
        Slice axis.
    voxel_mm
        Voxel size along the three axes.
    k
        Upsampling factor of the model.
    pixel_mm
        Edge of a pixel that the network sees; the scan's own (geometric mean) when not given.

    Returns
    -------
    dict
        One number for each of `FIGURES`.

    Raises
    ------
    InputError
        The mask is empty, or its 80th percentile is not positive.
    """
    from iqtflow.image.intensity import PERCENTILE, intensity_scale

    values = np.asarray(data)[mask]
    scale = intensity_scale(values)
    dark, grey, bright = (np.percentile(values, (10, 50, 98)) / scale).tolist()
    inplane = [float(v) for a, v in enumerate(voxel_mm) if a != axis]
    pixel = pixel_mm or math.sqrt(inplane[0] * inplane[1])
    with_brain = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
    return {
        "GreyLevel": grey,
        "DarkLevel": dark,
        "BrightLevel": bright,
        "Noise": _noise(data, mask, axis, np.percentile(values, (60, 100 - (100 - PERCENTILE) / 4))) / scale,
        "BrainVolume": float(mask.sum()) * math.prod(float(v) for v in voxel_mm) / 1000,
        "Coverage": float(with_brain[-1] - with_brain[0] + 1) * float(voxel_mm[axis]),
        "PixelMm": pixel,
        "SpacingRatio": float(voxel_mm[axis]) / (k * pixel),
    }


def make_reference(
    training: Sequence[Mapping[str, float]], evaluation: Sequence[Mapping[str, float]], **facts: Any
) -> dict[str, Any]:
    """Compute the ranges of training scans, and the threshold from scans of other subjects.

    Parameters
    ----------
    training
        Figures (`measure_scan`) of simulated scans of the training subjects.
    evaluation
        The same of evaluation subjects.
    **facts
        More fields to store with the ranges, such as their source.

    Returns
    -------
    dict
        ``ranges`` (figure -> low, high), ``threshold`` (the evaluation scans' 95th percentile, at least
        1.25), ``false_alarms`` (share of the evaluation scans above it), numbers of scans. Goes to a model's
        card under ``familiar``, and to JSON.

    Raises
    ------
    InputError
        There are no training or no evaluation scans.
    """
    if not training or not evaluation:
        raise InputError(
            "scans to compare with",
            found=f"{len(training)} of training, {len(evaluation)} of evaluation subjects",
            expected="some of both",
            next_step="Simulate scans of both.",
        )
    ranges = {}
    for name, figure in FIGURES.items():
        low, high = np.percentile([scan[name] for scan in training], RANGE_PERCENTILES).tolist()
        missing = max(figure.least_half_range - (high - low) / 2, 0)
        ranges[name] = [low - missing, high + missing]
    scores = [max(_scores(scan, ranges).values()) for scan in evaluation]
    threshold = max(float(np.percentile(scores, 95)), 1.25)
    return {
        "ranges": ranges,
        "threshold": threshold,
        "false_alarms": float(np.mean(np.array(scores) > threshold)),
        "n_training_scans": len(training),
        "n_evaluation_scans": len(evaluation),
        **facts,
    }


def compare(
    values: Mapping[str, float], reference: Mapping[str, Any], *, brain_found: bool = True
) -> Familiarity:
    """Compare a scan's figures with those of training scans.

    Parameters
    ----------
    values
        From `measure_scan`.
    reference
        From `make_reference`.
    brain_found
        False when no brain was found in the scan at all; it is out of distribution then, whatever else.
    """
    scores, threshold = _scores(values, reference["ranges"]), float(reference["threshold"])
    reasons = []
    for name in sorted(scores, key=scores.__getitem__, reverse=True):
        low, high = reference["ranges"][name]
        if scores[name] > threshold:
            figure = FIGURES[name]
            words = figure.high if values[name] > high else figure.low
            value, least, most = map(figure.shown, (values[name], low, high))
            reasons.append(
                f"{words} ({value}; expected {least} to {most}){ADVICE}{figure.part}, check {figure.check}"
            )
    score = max(scores.values())
    if not brain_found:
        reasons.insert(0, f"no brain was found{ADVICE}everything, check that the scan shows a head")
        score = max(score, 10 * threshold)
    return Familiarity(score, threshold, scores, dict(values), tuple(reasons), reference)


def find_reference(card: Card) -> Mapping[str, Any] | None:
    """Return the ranges for a model: those in its card, else those that ship for its name and factor."""
    if card.familiar is not None:
        return card.familiar
    try:
        shipped = json.loads(SHIPPED.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    entry = shipped.get(card.name)
    return entry if entry is not None and entry.get("k") == card.k else None


def _scores(values: Mapping[str, float], ranges: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {
        name: abs(values[name] - (low + high) / 2) / ((high - low) / 2)
        for name, (low, high) in ranges.items()
        if name in values
    }


def _noise(data: np.ndarray, mask: np.ndarray, axis: int, bright: np.ndarray) -> float:
    """Sigma from second differences across the plane inside bright tissue; a ramp does not count."""
    volume = np.moveaxis(np.asarray(data, dtype=np.float32), axis, 2)
    smooth = ndimage.uniform_filter(volume, (3, 3, 1))
    region = np.moveaxis(mask, axis, 2) & (smooth > bright[0]) & (smooth < bright[1])
    inside = region[:-1, :-1] & region[1:, :-1] & region[:-1, 1:] & region[1:, 1:]
    if not inside.any():
        return 0.0
    diagonal = volume[:-1, :-1] - volume[1:, :-1] - volume[:-1, 1:] + volume[1:, 1:]
    return float(np.median(np.abs(diagonal[inside]))) / (2 * NORMAL_MAD)
