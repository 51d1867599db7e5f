"""Is a scan like those that a model was trained on? Told from the scan alone.

A network answers every scan, also those of which it knows nothing, and its ensemble may well agree on a wrong
answer. So a few figures of the scan are compared with the same figures of simulated scans of the training
subjects: how its intensities are spread over the brain, its noise, how much of a brain it shows, and its
voxels. Each figure's score is its distance from the middle of the training scans' range, over half of that
range: up to 1 it is among them. The largest one is the scan's score.

Ranges are taken in place of a mean and a covariance because training scans come from few scanners: their
figures lie in clumps, not in a Gaussian.
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

from iqtflow.utils.errors import InputError

#: Median of the absolute value of a normal variable over its sigma; four values enter a second difference.
NORMAL_MAD = 0.6745
#: Percentiles of the training scans' figures between which a scan counts as one of them.
RANGE_PERCENTILES = (2.0, 98.0)
#: Ranges of the models that ship, by name; a model's own card goes before.
SHIPPED = Path(__file__).parents[1] / "models/weights/familiar.json"


@dataclass(frozen=True)
class Figure:
    """One figure of a scan: the least half range that is taken for it, its format, and words for too much and
    too little of it.
    """

    least_half_range: float
    shown: str
    high: str
    low: str


#: What is compared. Intensities are over the scale of `iqtflow.image.normalisation`, the brain's 80th
#: percentile.
FIGURES: dict[str, Figure] = {
    "GreyLevel": Figure(
        0.03,
        "median of the brain {:.2f} of its bright tissue",
        "grey and white matter differ less than in the training scans",
        "half of the brain is darker than in the training scans",
    ),
    "DarkLevel": Figure(
        0.06,
        "10th percentile of the brain {:.2f} of its bright tissue",
        "fluid is not as dark as in the training scans",
        "more of the brain is dark than in the training scans",
    ),
    "BrightLevel": Figure(
        0.06,
        "98th percentile of the brain {:.2f} of its bright tissue",
        "part of the brain is brighter than white matter: fluid (another contrast than T1w), contrast "
        "agent, or shading",
        "nothing is as bright as white matter is in the training scans",
    ),
    "Noise": Figure(
        0.01,
        "noise {:.3f} of white matter",
        "noisier than the training scans",
        "less noisy, or smoother, than the training scans",
    ),
    "BrainVolume": Figure(
        200.0,
        "{:.0f} ml of brain",
        "more brain than in the training scans: its mask may be wrong",
        "less brain in the field of view than in the training scans",
    ),
    "Coverage": Figure(
        10.0,
        "brain over {:.0f} mm along the slice axis",
        "the brain is longer along the slice axis than in the training scans",
        "the slices cover less of the brain than in the training scans",
    ),
    "SlicesOfBrain": Figure(
        4.0,
        "{:.0f} slices with brain",
        "more slices than in the training scans",
        "fewer slices than in the training scans",
    ),
    "PixelMm": Figure(
        0.25,
        "{:.2f} mm in plane",
        "coarser in plane than the training scans",
        "finer in plane than the training scans",
    ),
    "SpacingRatio": Figure(
        0.18,
        "slices {:.2f} times as far apart, in pixels, as the model's k",
        "slices further apart, for their plane, than in the training scans",
        "slices closer, for their plane, than in the training scans",
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
        Words for each figure above the threshold, the worst first.
    reference
        The ranges that it was compared with.
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
        """One line for people."""
        words = "; ".join(self.reasons[:3])
        return (
            f"Out of distribution (score {self.score:.1f}, threshold {self.threshold:.1f}): {words}. The "
            "model knows no such scans; look at its estimate with doubt."
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
        Up-scaling factor of the model.
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
    from iqtflow.image.normalisation import PERCENTILE, intensity_scale

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
        "SlicesOfBrain": float(with_brain.size),
        "PixelMm": pixel,
        "SpacingRatio": float(voxel_mm[axis]) / (k * pixel),
    }


def make_reference(
    training: Sequence[Mapping[str, float]], evaluation: Sequence[Mapping[str, float]], **facts: Any
) -> dict[str, Any]:
    """Make the ranges of training scans and the threshold that scans of other people stay below.

    Parameters
    ----------
    training
        Figures (`measure_scan`) of simulated scans of the training subjects.
    evaluation
        The same of people that the model was not trained on.
    facts
        More to be kept with the ranges: where they come from.

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
            value = figure.shown.format(values[name])
            words = figure.high if values[name] > high else figure.low
            reasons.append(f"{words} ({value}; training {low:.4g} to {high:.4g})")
    score = max(scores.values())
    if not brain_found:
        reasons.insert(0, "no brain was found in it")
        score = max(score, 10 * threshold)
    return Familiarity(score, threshold, scores, dict(values), tuple(reasons), reference)


def find_reference(card: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the ranges for a model: those in its card, else those that ship for its name and factor."""
    if "familiar" in card:
        return card["familiar"]
    try:
        shipped = json.loads(SHIPPED.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    entry = shipped.get(card.get("name"))
    return entry if entry is not None and entry.get("k") == card["k"] else None


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
