"""What a person at the terminal reads of finished scans: a line for each, and the table that ends a run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iqtflow.reports.terminal import duration, text_table
from iqtflow.utils.files import read_text

MOST_ROWS = 40  #: a longer run lists those that want attention first, and counts the rest
REMARK_CHARACTERS = 60


@dataclass(frozen=True)
class Outcome:
    """What became of a scan.

    Attributes
    ----------
    name
        Of the scan, without extension.
    status
        ``enhanced``, ``prepared``, ``measured``, ``skipped`` or ``failed``.
    remark
        Why it failed or was skipped.
    sidecar
        JSON file beside what was made of it.
    """

    name: str
    status: str
    remark: str = ""
    sidecar: Path | None = None


def describe_enhancement(details: Mapping[str, Any]) -> list[str]:
    """Return lines that say how a scan was enhanced, and the warnings.

    Parameters
    ----------
    details
        The JSON of ``iqtflow-enhance``.
    """
    model = details["Model"]
    made = (
        f"enhanced by {model['Name']} (k = {details['UpsamplingFactor']}, {model['Members']} network(s)) on "
        f"{details['Device']}, {details['Precision']}, {details['Tiling']}; {details['Seconds']} s, "
        f"{details['PeakMemoryGB']} GB at most ({details['PredictedMemoryGB']} GB predicted for the "
        f"networks, {details['FreeMemoryGB']} GB free)"
    )
    factor = details["WhiteMatter"]["Factor"]
    if factor != 1:
        made += f"; scaled by {factor:.3f} so that white matter keeps its intensity"
    return [made, *(f"note: {warning}" for warning in details["Warnings"])]


def outcome_table(outcomes: Sequence[Outcome]) -> str:
    """Table of a run's scans, those that want attention first; empty when there are none.

    Columns that say nothing about any scan are left out.
    """
    rows = [_row(outcome) for outcome in outcomes]
    order = {"FAILED": 0, "skipped": 3}
    rows.sort(key=lambda row: order.get(row["outcome"], 1 if row["remark"] else 2))
    shown, rest = rows[:MOST_ROWS], rows[MOST_ROWS:]
    columns = [name for name in _COLUMNS if any(row[name] for row in shown)]
    if not shown:
        return ""
    table = text_table(
        columns,
        [[row[name] for name in columns] for row in shown],
        right=[i for i, name in enumerate(columns) if name in ("k", "time", "memory")],
    )
    if rest:
        counts = Counter(row["outcome"] for row in rest)
        table += (
            "\n... and "
            + ", ".join(f"{n} more {status}" for status, n in counts.items())
            + ": see index.html"
        )
    return table


_COLUMNS = ("scan", "outcome", "k", "voxel (mm)", "tissue (ml)", "device", "time", "memory", "remark")


def _row(outcome: Outcome) -> dict[str, str]:
    row = dict.fromkeys(_COLUMNS, "")
    failed = outcome.status == "failed"
    row |= {"scan": outcome.name, "outcome": "FAILED" if failed else outcome.status}
    remarks = [outcome.remark] if outcome.remark else []
    found = _read(outcome.sidecar)
    if not failed and found:
        seconds, memory = found.get("Seconds", found.get("seconds")), found.get("PeakMemoryGB")
        if isinstance(seconds, Mapping):
            seconds = sum(seconds.values())
        voxel, volumes = found.get("VoxelSizeMm"), found.get("volumes_ml")
        row |= {
            "k": str(found.get("UpsamplingFactor", "")),
            "voxel (mm)": " x ".join(f"{v:.2g}" for v in voxel) if voxel else "",
            "tissue (ml)": ", ".join(f"{t} {v:.0f}" for t, v in volumes.items()) if volumes else "",
            "device": str(found.get("Device", "")).split(" (")[0],
            "time": duration(seconds) if isinstance(seconds, (int, float)) else "",
            "memory": f"{memory:.1f} GB" if isinstance(memory, (int, float)) else "",
        }
        remarks += _attention(found)
    text = "; ".join(remarks)
    row["remark"] = text if len(text) <= REMARK_CHARACTERS else text[: REMARK_CHARACTERS - 3].rstrip() + "..."
    return row


def _attention(found: Mapping[str, Any]) -> list[str]:
    remarks = []
    familiar = found.get("OutOfDistribution")
    if isinstance(familiar, Mapping) and familiar.get("Flagged"):
        remarks.append(f"unlike the training scans (score {familiar.get('Score')})")
    warnings = [w for w in found.get("Warnings") or () if not str(w).startswith("Out of distribution")]
    if warnings:
        remarks.append(f"{len(warnings)} warning{'' if len(warnings) == 1 else 's'}")
    return remarks


def _read(path: Path | None) -> dict[str, Any]:
    try:
        return {} if path is None else dict(json.loads(read_text(path)))
    except (OSError, ValueError, TypeError):
        return {}
