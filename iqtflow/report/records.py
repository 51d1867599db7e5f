"""Records of enhanced scans: from what a graph has at hand, or from what lies among the derivatives."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def enhanced_record(
    scan: str | os.PathLike,
    *,
    enhanced: str | os.PathLike,
    std: str | os.PathLike | None = None,
    spline: str | os.PathLike | None = None,
    mask: str | os.PathLike | None = None,
    truth: str | os.PathLike | None = None,
    details: str | os.PathLike | None = None,
    stored_as: str | os.PathLike | None = None,
) -> dict[str, Any]:
    """Record of an enhanced scan.

    Parameters
    ----------
    scan
        The scan as acquired.
    enhanced, std, spline, mask, truth
        Volumes; see `iqtflow.report.subject.write_subject_page`.
    details
        JSON file of the run.
    stored_as
        Where the enhanced volume is stored under its BIDS name: the name that the page shows.
    """
    volumes = {"input": scan, "output": enhanced, "std": std, "spline": spline, "mask": mask, "truth": truth}
    record: dict[str, Any] = {
        "status": "enhanced",
        **{key: None if path is None else os.fspath(path) for key, path in volumes.items()},
    }
    if details is not None:
        record["details"] = json.loads(Path(details).read_text(encoding="utf-8"))
    if stored_as is not None:
        record["names"] = {"output": os.fspath(stored_as)}
        if std is not None:
            record["names"]["std"] = os.fspath(beside(stored_as, "iqtstd"))
    return record


def complete_record(record: Mapping[str, Any], known: Mapping[str, str]) -> dict[str, Any]:
    """Add to the record of an enhanced scan what lies beside its output, and what an earlier page was drawn
    from.

    Parameters
    ----------
    record
        At least ``status``, ``input`` and ``output``; anything but an enhanced scan is returned as it is.
    known
        Paths of volumes that an earlier page of this scan was drawn from.
    """
    record = dict(record)
    if record["status"] != "enhanced" or not record.get("output"):
        return record
    output = Path(record["output"])
    for key in ("spline", "mask", "truth"):
        if not record.get(key) and key in known and Path(known[key]).is_file():
            record[key] = known[key]
    std = beside(output, "iqtstd")
    if not record.get("std") and std != output and std.is_file():
        record["std"] = os.fspath(std)
    sidecar = output.with_name(output.name.split(".")[0] + ".json")
    if not record.get("details") and sidecar.is_file():
        record["details"] = json.loads(sidecar.read_text(encoding="utf-8"))
    return record


def beside(output: str | os.PathLike, desc: str) -> Path:
    """Path of another derivative of the same scan, by its ``desc`` entity."""
    output = Path(output)
    return output.with_name(output.name.replace("_desc-iqt_", f"_desc-{desc}_"))
