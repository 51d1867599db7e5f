"""What the terminal shows of finished scans: lines on one scan, and the table at the end of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iqtflow.reports.record import read_details
from iqtflow.reports.terminal import duration, plain_table

MOST_ROWS = 40  #: further scans are counted
REMARK_CHARACTERS = 60


@dataclass(frozen=True)
class Outcome:
    """The outcome of one scan.

    Attributes
    ----------
    name
        Of the scan, without extension.
    status
        ``enhanced``, ``prepared``, ``measured``, ``skipped`` or ``failed``.
    remark
        Why it failed or was skipped.
    sidecar
        JSON file beside the result.
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
        f"{details['PeakMemoryGB']} GB at most ({details['PredictedMemoryGB']} GB predicted, "
        f"{details['FreeMemoryGB']} GB free)"
    )
    factor = details["WhiteMatter"]["Factor"]
    if factor != 1:
        made += f"; scaled by {factor:.3f} so that white matter keeps its intensity"
    return [made, *(f"note: {warning}" for warning in details["Warnings"])]


def describe_measurement(record: Mapping[str, Any]) -> str:
    """Return the measurement of a scan, the JSON of ``iqtflow-calibrate scan``, on one line."""
    snr, noise = record["SNR"], record["Noise"]
    region = noise.get("region", "air")
    where = (
        ", measured in air"
        if region == "air"
        else f". Background unusable for noise; measured in {region} instead."
    )
    return f"{record['Scan']}: SNR WM {snr['WM']:.1f}, GM {snr['GM']:.1f}; noise {noise['sigma']:.4g}{where}"


def outcome_table(outcomes: Sequence[Outcome]) -> str:
    """Return the table of a run's scans, failed ones first; empty if there are none.

    A column that is empty for all scans is left out.
    """
    if not outcomes:
        return ""
    rows = [_row(outcome) for outcome in outcomes]
    order = {"FAILED": 0, "skipped": 3}
    rows.sort(key=lambda row: order.get(row["outcome"], 1 if row["remark"] else 2))
    shown, rest = rows[:MOST_ROWS], rows[MOST_ROWS:]
    columns = [name for name in _COLUMNS if any(row[name] for row in shown)]
    lines = plain_table(columns, [[row[name] for name in columns] for row in shown], numbers=_NUMBERS)
    if rest:
        counts = Counter(row["outcome"] for row in rest)
        more = ", ".join(f"{n} more {status}" for status, n in counts.items())
        lines.append(f"... and {more}: see index.html")
    return "\n".join(lines)


_COLUMNS = (
    "scan",
    "outcome",
    "SNR WM",
    "SNR GM",
    "k",
    "voxel (mm)",
    "tissue (ml)",
    "device",
    "main step",
    "memory",
    "remark",
)
#: Columns of numbers.
_NUMBERS = ("SNR WM", "SNR GM", "k", "main step", "memory")


def _row(outcome: Outcome) -> dict[str, str]:
    row = dict.fromkeys(_COLUMNS, "")
    failed = outcome.status == "failed"
    row |= {"scan": outcome.name, "outcome": "FAILED" if failed else outcome.status}
    remarks = [outcome.remark] if outcome.remark else []
    found = read_details(outcome.sidecar) if outcome.sidecar else {}
    if not failed and found:
        seconds, memory = found.get("Seconds", found.get("seconds")), found.get("PeakMemoryGB")
        if isinstance(seconds, Mapping):
            seconds = sum(seconds.values())
        snr = found.get("SNR")
        voxel, volumes = found.get("VoxelSizeMm"), found.get("volumes_ml")
        row |= {
            **({f"SNR {tissue}": f"{snr[tissue]:.1f}" for tissue in ("WM", "GM")} if snr else {}),
            "k": str(found.get("UpsamplingFactor", "")),
            "voxel (mm)": " x ".join(f"{v:.2g}" for v in voxel) if voxel else "",
            "tissue (ml)": ", ".join(f"{t} {v:.0f}" for t, v in volumes.items()) if volumes else "",
            "device": str(found.get("Device", "")).split(" (")[0],
            "main step": duration(seconds) if isinstance(seconds, (int, float)) else "",
            "memory": f"{memory:.1f} GB" if isinstance(memory, (int, float)) else "",
        }
        remarks += _attention(found)
    text = "; ".join(remarks)
    row["remark"] = text if len(text) <= REMARK_CHARACTERS else text[: REMARK_CHARACTERS - 3].rstrip() + "..."
    return row


def _attention(found: Mapping[str, Any]) -> list[str]:
    """Return remarks on a scan that somebody should look at."""
    from iqtflow.reports.assemble.facts import find_warnings

    remarks = []
    familiar = found.get("OutOfDistribution")
    if isinstance(familiar, Mapping) and familiar.get("Flagged"):
        remarks.append(f"unlike the training data (score {familiar.get('Score')})")
    n = len(find_warnings(found))
    return [*remarks, f"{n} warning{'' if n == 1 else 's'}"] if n else remarks
