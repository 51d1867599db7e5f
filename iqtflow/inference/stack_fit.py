"""Whether scans can be combined, and what is said of each: reasons, lines, fields of the sidecar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iqtflow.bids.names import read_entities, stem_of
from iqtflow.inference.rigid import Alignment

LEAST_COVERAGE = 0.3  #: share of the first scan's brain that another one must show
LEAST_OVERLAP = 0.85  #: Dice overlap of the brains of one person after registration
LEAST_CORRELATION = 0.85  #: of two enhanced scans of one person after registration
NOTABLE_MM, NOTABLE_DEGREES = 2.0, 2.0  #: motion between scans that is worth a note
#: Field strengths of two scans may differ by this share.
SAME_FIELD = 0.05
#: Entities in file names that two scans of one kind have in common.
SHARED_ENTITIES = {"sub": "subject", "ses": "session", "ce": "contrast agent", "rec": "reconstruction"}


@dataclass(frozen=True)
class LeftOut:
    """A scan that is not part of the combined volume: its name, why (sentences), and where it was found."""

    name: str
    reason: str
    alignment: Alignment | None = None


def why_apart(first: str, fields: Mapping[str, Any], other: str, its_fields: Mapping[str, Any]) -> str:
    """Return why two scans are not of one session and contrast, as sentences; empty if nothing says so.

    Parameters
    ----------
    first, other
        Names of the files. Entities of BIDS are compared if both have them.
    fields, its_fields
        BIDS metadata.
    """
    stems = [stem_of(Path(name).name) for name in (first, other)]
    one, two = map(read_entities, stems)
    wrong = []
    if "sub" in one and "sub" in two:
        wrong = [
            f"{words} {two.get(key, 'none')} (the first scan: {one.get(key, 'none')})"
            for key, words in SHARED_ENTITIES.items()
            if one.get(key) != two.get(key)
        ]
        suffixes = [stem.rpartition("_")[2] for stem in stems]
        if suffixes[0] != suffixes[1]:
            wrong.append(f"contrast {suffixes[1]} (the first scan: {suffixes[0]})")
    one_field, two_field = (f.get("MagneticFieldStrength") for f in (fields, its_fields))
    stated = all(isinstance(value, (int, float)) and value > 0 for value in (one_field, two_field))
    if stated and abs(two_field / one_field - 1) > SAME_FIELD:
        wrong.append(f"a field of {two_field:g} T (the first scan: {one_field:g} T)")
    agents = [f.get("ContrastBolusIngredient") or None for f in (fields, its_fields)]
    if agents[0] != agents[1]:
        wrong.append(f"contrast agent {agents[1] or 'none'} (the first scan: {agents[0] or 'none'})")
    if not wrong:
        return ""
    return (
        f"It is of another kind: found {', '.join(wrong)}; expected scans of one person, session and "
        "contrast. Combine it with scans of its own kind."
    )


def why_unfit(found: Alignment) -> str:
    """Return why a registered scan cannot be combined with the first, as sentences; empty if it can."""
    if found.coverage < LEAST_COVERAGE:
        return (
            f"It hardly overlaps with the first scan: found {found.coverage:.0%} of the first scan's brain "
            f"in it; expected {LEAST_COVERAGE:.0%} or more. Check the place of both scans in a viewer."
        )
    if found.overlap < LEAST_OVERLAP or found.correlation < LEAST_CORRELATION:
        return (
            f"The two heads do not match after registration: found an overlap of {found.overlap:.2f} and a "
            f"correlation of {found.correlation:.2f}; expected {LEAST_OVERLAP} and {LEAST_CORRELATION} or "
            "more. Is it the same person? Or one of the two scans shows motion: look at both."
        )
    return ""


def as_fields(found: Alignment | None) -> dict[str, Any]:
    """Return an alignment as fields of the sidecar; none if there is none."""
    if found is None:
        return {}
    return {
        "TranslationMm": round(found.translation_mm, 2),
        "RotationDegrees": round(found.rotation_degrees, 2),
        "Coverage": round(found.coverage, 3),
        "BrainOverlap": round(found.overlap, 3),
        "Correlation": round(found.correlation, 3),
        "Gain": round(found.gain, 4),
        "Matrix": [[round(float(v), 6) for v in row] for row in found.matrix],
    }


def describe_fit(name: str, found: Alignment | None, why: str) -> str:
    """Return one line for the terminal on a scan: `why` is the reason to leave it out, or empty."""
    if found is None:
        return f"{name}: left out. {why}"
    moved = f"moved by {found.translation_mm:.1f} mm and {found.rotation_degrees:.1f} degrees"
    fit = f"overlap {found.overlap:.2f}, correlation {found.correlation:.2f}"
    return f"{name}: {f'left out. {why}' if why else 'used'} ({moved}; {fit})"


def find_warnings(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return sentences on scans that were left out or that show motion, from the field ``Stacks``."""
    found = []
    for one in records:
        if not one["Used"]:
            found.append(f"{one['Scan']} is left out of the combined volume. {one['Reason']}")
        elif one.get("TranslationMm", 0) > NOTABLE_MM or one.get("RotationDegrees", 0) > NOTABLE_DEGREES:
            found.append(
                f"Between the first scan and {one['Scan']} the head moved by {one['TranslationMm']:.1f} mm "
                f"and turned by {one['RotationDegrees']:.1f} degrees; this was corrected."
            )
    return found
