"""The places at which an enhanced volume differs from the acquired slices, as the sidecar lists them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: Kinds of places, as the page names and explains them.
KINDS = {
    "missing": "missing",
    "unsupported": "not supported",
}


@dataclass(frozen=True)
class AuditPlace:
    """A place: kind in words, position (mm, world), slices (from 0), volume (ml) and score."""

    kind: str
    position_mm: tuple[float, float, float]
    slices: tuple[int, ...]
    volume_ml: float | None
    score: float

    @property
    def row(self) -> list[str]:
        """Kind, position, slices (from 1), volume and score, as text."""
        ends = (("R", "L"), ("A", "P"), ("S", "I"))
        sides = (f"{pair[v < 0]} {abs(v):.0f}" for pair, v in zip(ends, self.position_mm, strict=True))
        slices = dict.fromkeys(i + 1 for i in (*self.slices[:1], *self.slices[-1:]))
        volume = "" if self.volume_ml is None else f"{self.volume_ml:.2f} ml"
        return [self.kind, ", ".join(sides), " to ".join(map(str, slices)), volume, f"{self.score:.1f}"]


def read_places(details: Mapping[str, Any]) -> list[AuditPlace]:
    """Return the places in the details of a scan, the largest score first; those that cannot be read are left
    out.
    """
    found = details.get("DataConsistency")
    listed = found.get("Places") if isinstance(found, Mapping) else None
    places = []
    for entry in listed if isinstance(listed, list) else ():
        try:
            x, y, z = map(float, entry["PositionMM"])
            ml, kind = entry.get("VolumeML"), str(entry.get("Kind"))
            place = AuditPlace(
                KINDS.get(kind, kind),
                (x, y, z),
                tuple(sorted(int(i) for i in entry.get("Slices") or ())),
                None if ml is None else float(ml),
                abs(float(entry.get("Score") or 0)),
            )
        except (TypeError, ValueError, KeyError, AttributeError):  # somebody has edited the sidecar
            continue
        if all(map(math.isfinite, (x, y, z, place.score))):
            places.append(place)
    return sorted(places, key=lambda place: -place.score)
