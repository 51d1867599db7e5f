"""Scans of one session that can be made into one volume."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from iqtflow.bids.scan import Scan

#: Entities in which the scans of one session may differ.
FREE = ("acq", "run")


def find_sessions(scans: Iterable[Scan]) -> list[tuple[Scan, list[Scan]]]:
    """Group scans that differ in ``acq-`` or ``run-`` only.

    Parameters
    ----------
    scans
        Scans of any subjects.

    Returns
    -------
    list of (combined, scans)
        Groups of two scans or more, in the order of the data set. `combined` is the first scan under the name
        of the group: entities that differ are dropped.
    """
    groups: dict[tuple, list[Scan]] = {}
    for scan in scans:
        kept = tuple(item for item in scan.entities.items() if item[0] not in FREE)
        groups.setdefault((kept, scan.suffix), []).append(scan)
    return [(_named(group), group) for group in groups.values() if len(group) > 1]


def _named(group: list[Scan]) -> Scan:
    first, *rest = group
    common = {
        key: label
        for key, label in first.entities.items()
        if all(other.entities.get(key) == label for other in rest)
    }
    return replace(first, entities=common)
