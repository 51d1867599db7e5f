"""In words: is this scan like those that its model was trained on, and what does the uncertainty map show?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from iqtflow.inference.ood import FIGURES
from iqtflow.inference.uncertainty import kind_of_scan, measured_words
from iqtflow.reports.assemble.facts import plain

#: How `iqtflow.inference.ood` begins its warning; the page has a place of its own for what it says.
WARNING_BEGINS = "Out of distribution"


@dataclass(frozen=True)
class Verdict:
    """Whether a scan is like the training scans.

    Attributes
    ----------
    badge
        Two or three words.
    style
        Name of the badge's style: ``enhanced`` (good), ``warn`` or ``skipped`` (not known).
    sentence
        What was found.
    reasons
        Why, when it is unlike them.
    rows
        For each figure: what it is, its value, the training scans' range, its score.
    """

    badge: str
    style: str
    sentence: str
    reasons: tuple[str, ...] = ()
    rows: tuple[tuple[str, str, str, str], ...] = ()


def judge(details: Mapping[str, Any]) -> Verdict | None:
    """Put the field ``OutOfDistribution`` of a sidecar into words.

    Returns
    -------
    Verdict or None
        None when there are no details at all. A field that is missing or empty gives a verdict that says so.
    """
    if not details:
        return None
    found = details.get("OutOfDistribution")
    if not isinstance(found, Mapping) or "Score" not in found:
        why = "the model does not say what they were like" if not found else f"it says {plain(found)}"
        words = "Nobody has compared this scan with those that the model was trained on"
        return Verdict("not compared", "skipped", f"{words}: {why}.")
    score, threshold = float(found["Score"]), float(found.get("Threshold") or 1.0)
    numbers = (
        f"Out-of-distribution score {score:.1f}: up to 1 a scan is within the training scans’ range, and "
        f"above {threshold:.1f} it is flagged."
    )
    worst_first = sorted(_features(found).items(), key=lambda item: -_score(item[1]))
    rows = tuple(_row(name, value) for name, value in worst_first)
    reasons = tuple(str(reason) for reason in found.get("Reasons") or ())
    if found.get("Flagged", score > threshold):
        badge, style = "unlike the training scans", "warn"
        words = (
            "This scan is unlike those that the model was trained on. Its estimate may look convincing and "
            "be wrong: doubt it."
        )
    elif score > 1:
        badge, style = "at the edge of the training scans", "warn"
        words = "This scan is at the edge of what the model was trained on."
    else:
        badge, style = "like the training scans", "enhanced"
        words = (
            "In contrast, noise, coverage and voxels this scan is like those that the model was trained on. "
            "Whether its anatomy is, too, this cannot tell."
        )
    return Verdict(badge, style, f"{words} {numbers}", reasons, rows)


def without_verdict(warnings: Sequence[str]) -> list[str]:
    """Warnings without the one that the verdict repeats."""
    return [warning for warning in warnings if not warning.startswith(WARNING_BEGINS)]


def spread_words(details: Mapping[str, Any]) -> str:
    """What the standard deviation is that of."""
    kind = kind_of_scan(details)
    if kind == "predicted":
        return "How large an error is to be expected here (standard deviation), learned on training people"
    if kind == "mirrored":
        return "How far the estimate and that of the mirrored scan disagree (standard deviation)"
    members = (details.get("Model") or {}).get("Members")
    count = f"the {members} networks" if isinstance(members, int) and members > 1 else "the networks"
    return f"How far {count} of the ensemble disagree (standard deviation)"


def spread_held(details: Mapping[str, Any]) -> str:
    """How well such standard deviations held on people whose truth is known; nothing when nobody noted it."""
    stated = details.get("Uncertainty")
    found = stated.get("Measured") if isinstance(stated, Mapping) else None
    try:
        return measured_words(found)
    except (TypeError, KeyError, ValueError):  # a sidecar that somebody has edited
        return ""


def spread_inside(details: Mapping[str, Any]) -> str:
    """What colour deep inside the brain means."""
    if kind_of_scan(details) == "predicted":
        return (
            "Colour within deep white matter means that an error is to be expected there: go back to the "
            "original scan. A lesion can be wrong without any colour."
        )
    return (
        "Colour within deep white matter, or around a lesion, means disagreement about what is there: go "
        "back to the original scan."
    )


def _features(found: Mapping[str, Any]) -> Mapping[str, Any]:
    features = found.get("Features")
    return features if isinstance(features, Mapping) else {}


def _score(feature: Any) -> float:
    try:
        return float(feature["Score"])
    except (TypeError, KeyError, ValueError):
        return 0.0


def _row(name: str, feature: Any) -> tuple[str, str, str, str]:
    figure = FIGURES.get(name)
    label, show = (name, plain) if figure is None else (figure.label, figure.shown)
    try:
        span = " to ".join(show(float(v)) for v in feature["TrainingRange"])
        return label, show(float(feature["Value"])), span, plain(feature["Score"])
    except (TypeError, KeyError, ValueError):  # a sidecar that somebody has edited
        return label, plain(feature), "", ""
