"""Words for the standard deviation map ``desc-iqtstd``: how it was made, how it was tested, and what it does
not show.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from iqtflow.models.card import Card

#: How a map was made. ``predicted``: the networks predict their error, learned from their errors on training
#: subjects (Kendall & Gal 2017, arXiv:1703.04977). ``ensemble``: the networks are compared with each other.
#: ``mirrored``: the enhanced volume is compared with that of the mirrored scan.
KINDS = ("predicted", "ensemble", "mirrored")

_DESCRIPTIONS = {
    "predicted": "Predicted error (standard deviation) of the enhanced volume in each voxel, learned from "
    "the errors on training subjects. If the model has several networks, their disagreement is included.",
    "ensemble": "Standard deviation over the networks of the ensemble. It shows how much they disagree, not "
    "how large the error is.",
    "mirrored": "Standard deviation of the enhanced volumes of the scan and of the left-right mirrored scan. "
    "It shows how much the two disagree, not how large the error is.",
}

_NO_PROOF = "A low value is no proof that the enhanced volume is right."
_NEVER_SHOWN = (
    "lesions, implants, contrast agents and other scanners that were not in the training data, detail "
    f"between the slices, motion and artefacts of the scan. {_NO_PROOF}"
)
_GAP = "A lesion between two slices, or much thinner than a slice, leaves no trace in the scan"
_NOT_TWO_THIRDS = "Do not expect the true value within one standard deviation in 68 % of the voxels."

#: What a map of each kind does not show. These sentences stand under every map.
NOT_COVERED: dict[str, tuple[str, ...]] = {
    "predicted": (
        "The map shows how large errors usually are. It was learned and tested on simulated scans; the true "
        "error of a real low-field scan is not known. The map does not cover motion and artefacts of the "
        "scan, or anything that was not in the training data: lesions, implants, contrast agents, other "
        f"scanners. There it can be low although the error is large. {_NO_PROOF}",
        f"{_GAP}. The map then shows the error as if there were no lesion.",
        "The map is valid for single voxels. Errors of neighbouring voxels are related: a whole fold can be "
        "wrong, and a volume or a thickness can be wrong by more than the single voxels suggest.",
    ),
    "ensemble": (
        "The map shows where the networks disagree. It does not show errors that all networks make: "
        + _NEVER_SHOWN,
        f"{_GAP}, so the networks do not disagree there.",
        _NOT_TWO_THIRDS,
    ),
    "mirrored": (
        "The map shows where the enhanced volumes of the scan and of the mirrored scan disagree. One network "
        "made both. The map does not show errors that are in both: " + _NEVER_SHOWN,
        f"{_GAP}, so the two do not disagree there.",
        _NOT_TWO_THIRDS,
    ),
}


def kind_of_scan(details: Mapping[str, Any]) -> str:
    """Return the kind of a map from the details of its scan; older files do not state it."""
    stated = details.get("Uncertainty")
    kind = stated.get("Kind") if isinstance(stated, Mapping) else None
    if kind in KINDS:
        return kind
    members = (details.get("Model") or {}).get("Members")
    return "mirrored" if members == 1 and details.get("MirroredAveraging") else "ensemble"


def measured(card: Card, kind: str) -> dict[str, Any] | None:
    """Return how maps of this kind compare with the true error in unseen subjects, for a sidecar.

    Returns
    -------
    dict or None
        ``Subjects``, and their means of root mean square error over that of the standard deviation
        (``ErrorOverStd``) and of the share of voxels within one standard deviation (``Within1Std``);
        ``ErrorOverStdWhereSmallest`` is for the voxels with the smallest standard deviation. None when the
        card does not have it, or has it for maps of another kind.
    """
    found = card.reliability
    if not found or kind != card.uncertainty():
        return None
    surest = found["bins"][0]
    return {
        "Subjects": found["n"],
        "ErrorOverStd": round(found["error_over_std"]["mean"], 3),
        "Within1Std": round(found["within_1_std"]["mean"], 3),
        "ErrorOverStdWhereSmallest": round(surest["error"] / surest["std"], 3) if surest["std"] else None,
    }


def as_sidecar(card: Card, kind: str | None, *, mirror: bool = False) -> dict[str, Any] | None:
    """Return the sidecar's field ``Uncertainty``: kind, description, and ``Measured`` where it is known.

    Parameters
    ----------
    card
        The model's card.
    kind
        One of `KINDS`; None when there is no map.
    mirror
        Whether the result is averaged with that of the mirrored scan. Predicted errors were not tested
        with this.
    """
    if kind is None:
        return None
    found = None if mirror else measured(card, kind)
    return {
        "Kind": kind,
        "Description": _describe(kind, mirror=mirror),
        **({} if found is None else {"Measured": found}),
    }


def description(card: Card, kind: str, *, mirror: bool = False) -> str:
    """Return what the map is, its units and how it was tested, for the sidecar of the map."""
    held = "" if mirror else measured_words(measured(card, kind))
    what = _describe(kind, mirror=mirror)
    return " ".join(filter(None, (what, "In the units of the enhanced volume.", held)))


def _describe(kind: str, *, mirror: bool) -> str:
    also = " The difference from the enhanced volume of the mirrored scan is included."
    return _DESCRIPTIONS[kind] + (also if kind == "predicted" and mirror else "")


def measured_words(found: Mapping[str, Any] | None) -> str:
    """Return the result of `measured` as a sentence; empty when it is not known."""
    if not found:
        return ""
    subjects = "1 unseen subject" if found["Subjects"] == 1 else f"{found['Subjects']} unseen subjects"
    smallest = found.get("ErrorOverStdWhereSmallest")
    end = f" ({smallest:.1f} times where it is smallest)" if smallest else ""
    return (
        f"In simulated scans of {subjects}, the true error (root mean square) was "
        f"{found['ErrorOverStd']:.2f} times this standard deviation{end}; "
        f"{100 * found['Within1Std']:.0f} % of the voxels were within one standard deviation."
    )
