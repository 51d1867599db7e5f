"""What a ``desc-iqtstd`` map is the standard deviation of, in words: how it came about, how well it held on
people never seen, and what it cannot show.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: How a map can come about: predicted by the networks, learned on the errors that they made on training
#: people (Kendall & Gal 2017, arXiv:1703.04977); the networks of an ensemble compared with each other; the
#: estimate compared with that of the mirrored scan.
KINDS = ("predicted", "ensemble", "mirrored")

_DESCRIPTIONS = {
    "predicted": "Standard deviation of the error that is to be expected, voxel by voxel, as learned from "
    "the errors made on training people; of several networks, their disagreement is part of it.",
    "ensemble": "Standard deviation over the networks of the ensemble: how far they disagree, which is not "
    "how large the error is.",
    "mirrored": "Standard deviation of the estimate and that of the left-right mirrored scan: how far the "
    "two disagree, which is not how large the error is.",
}

_NEVER_SHOWN = (
    "what training has never shown (lesions, implants, contrast agents, other scanners), what the scan does "
    "not contain (detail between the slices that anatomy does not foretell), motion and artefacts of the "
    "scan itself. A low value is no proof that the estimate is right."
)
_NOT_TWO_THIRDS = "One standard deviation is not a range that the truth lies in two times out of three."

#: What a map of each kind leaves out; stands under every uncertainty map.
NOT_COVERED: dict[str, tuple[str, ...]] = {
    "predicted": (
        "The map tells how large errors usually are, on people like those of training and in scans simulated "
        "from theirs; no real low-field scan has a truth to hold it against. It does not "
        "cover motion and artefacts of the scan itself, nor what training has never shown: "
        "lesions, implants, contrast agents, other scanners. There it can be low where the error is large. "
        "A low value is no proof that the estimate is right.",
        "A lesion in a gap, or much thinner than a slice, leaves no trace: the map then says how sure the "
        "estimate would usually be, were there none.",
        "It holds for single voxels. Errors of neighbours go together, so that a fold can be wrong as a "
        "whole, and a volume or a thickness by more than errors that cancel out.",
    ),
    "ensemble": (
        "The map shows where the networks disagree. It does not show errors that all of them share: "
        + _NEVER_SHOWN,
        "A lesion in a gap, or much thinner than a slice, leaves no trace that networks could disagree on.",
        _NOT_TWO_THIRDS,
    ),
    "mirrored": (
        "The map shows where the estimate and that of the mirrored scan disagree. One network made both, and "
        "errors that they share do not show: " + _NEVER_SHOWN,
        "A lesion in a gap, or much thinner than a slice, leaves no trace on either side.",
        _NOT_TWO_THIRDS,
    ),
}


def kind_of_model(card: Mapping[str, Any], *, mirror: bool = False) -> str | None:
    """Return the kind of map that a model writes, by its card; None when it writes none.

    Parameters
    ----------
    card
        The model's card.
    mirror
        Whether the estimate is averaged with that of the mirrored scan.
    """
    if card.get("predicts_error", card["network"]["kwargs"].get("uncertainty")):
        return "predicted"
    if card["n_members"] > 1:
        return "ensemble"
    return "mirrored" if mirror else None


def kind_of_scan(details: Mapping[str, Any]) -> str:
    """Return the kind of a map by the details that came with it; older files do not state it."""
    stated = details.get("Uncertainty")
    kind = stated.get("Kind") if isinstance(stated, Mapping) else None
    if kind in KINDS:
        return kind
    members = (details.get("Model") or {}).get("Members")
    return "mirrored" if members == 1 and details.get("MirroredAveraging") else "ensemble"


def measured(card: Mapping[str, Any], kind: str) -> dict[str, Any] | None:
    """Return how well maps of this kind held on people that the model has never seen, for a sidecar.

    Returns
    -------
    dict or None
        ``Subjects``, and their means of root mean square error over that of the standard deviation
        (``ErrorOverStd``) and of the share of voxels within one standard deviation (``Within1Std``);
        ``ErrorOverStdWhereSmallest`` in the bin of the smallest standard deviations, the voxels that seem
        sure. None when the card does not say, or says it of maps of another kind.
    """
    found = (card.get("figures") or {}).get("reliability")
    if not found or kind != kind_of_model(card):
        return None
    surest = found["bins"][0]
    return {
        "Subjects": found["n"],
        "ErrorOverStd": round(found["error_over_std"]["mean"], 3),
        "Within1Std": round(found["within_1_std"]["mean"], 3),
        "ErrorOverStdWhereSmallest": round(surest["error"] / surest["std"], 3) if surest["std"] else None,
    }


def as_sidecar(card: Mapping[str, Any], kind: str | None, *, mirror: bool = False) -> dict[str, Any] | None:
    """Return the sidecar's field ``Uncertainty``: kind, description, and ``Measured`` where it is known.

    Parameters
    ----------
    card
        The model's card.
    kind
        One of `KINDS`; None when there is no map.
    mirror
        Whether the estimate is averaged with that of the mirrored scan: then a predicted error was not
        measured as it is.
    """
    if kind is None:
        return None
    found = None if mirror else measured(card, kind)
    return {
        "Kind": kind,
        "Description": _describe(kind, mirror=mirror),
        **({} if found is None else {"Measured": found}),
    }


def description(card: Mapping[str, Any], kind: str, *, mirror: bool = False) -> str:
    """Return what the map is, with its units and how well such maps held, for the map's own sidecar."""
    held = "" if mirror else measured_words(measured(card, kind))
    what = _describe(kind, mirror=mirror)
    return " ".join(filter(None, (what, "In the units of the enhanced volume.", held)))


def _describe(kind: str, *, mirror: bool) -> str:
    also = " How far the estimate differs from that of the mirrored scan is part of it, too."
    return _DESCRIPTIONS[kind] + (also if kind == "predicted" and mirror else "")


def measured_words(found: Mapping[str, Any] | None) -> str:
    """Put `measured` into a sentence; nothing when it is not known."""
    if not found:
        return ""
    people = "1 person" if found["Subjects"] == 1 else f"{found['Subjects']} people"
    smallest = found.get("ErrorOverStdWhereSmallest")
    end = f", and {smallest:.1f} times it in the voxels where it was smallest" if smallest else ""
    return (
        f"In scans simulated from those of {people} never seen in training, the error (root mean square) was "
        f"{found['ErrorOverStd']:.2f} times this standard deviation{end}; "
        f"{100 * found['Within1Std']:.0f} % of voxels were within one."
    )
