"""The small JSON file beside a subject's figures: what its page shows, for the index, for cleaning up, and
for not drawing twice.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any

from iqtflow import __version__
from iqtflow.utils.files import read_text

#: Keys of a record that hold paths of volumes.
VOLUMES = ("input", "output", "spline", "std", "mask", "truth", "wm", "gm", "csf", "library")


def summary_path(out_dir: Path, label: str) -> Path:
    """Where the summary of a subject's page lies."""
    return out_dir / f"sub-{label}" / "figures" / f"sub-{label}_desc-report.json"


def read_summary(out_dir: Path, label: str) -> dict[str, Any]:
    """Read the summary of a subject's page; empty when there is none, or none that can be used."""
    try:
        found = json.loads(read_text(summary_path(out_dir, label)))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if _is_summary(found) else {}


#: What pages and the index read of each scan.
_OF_A_SCAN: dict[str, type | tuple[type, ...]] = {
    "title": str,
    "anchor": str,
    "status": str,
    "sentence": str,
    "warnings": list,
    "verdict": str,
    "verdict_style": str,
    "thumbnail": (str, NoneType),
    "alt": str,
    "record": dict,
}


def _is_summary(found: Any) -> bool:
    if not (isinstance(found, dict) and isinstance(found.get("figures"), list)):
        return False
    scans = found.get("scans")
    return (
        isinstance(scans, list)
        and all(isinstance(name, str) for name in found["figures"])
        and all(
            isinstance(scan, dict) and all(isinstance(scan.get(k), t) for k, t in _OF_A_SCAN.items())
            for scan in scans
        )
    )


def storable(record: Mapping[str, Any]) -> dict[str, Any]:
    """What of a record is kept, for its page to be made again: all but a log that was given as text."""
    kept = {key: value for key, value in record.items() if key != "log" or "\n" not in str(value)}
    return json.loads(json.dumps(kept, default=str))


def find_labels(out_dir: Path) -> list[str]:
    """Labels of all subjects in a folder that have a summary, sorted."""
    return sorted(
        path.name.removeprefix("sub-")
        for path in out_dir.glob("sub-*")
        if summary_path(out_dir, path.name.removeprefix("sub-")).is_file()
    )


def fingerprint(records: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> str:
    """SHA-256 over what a page depends on: records, sizes and times of files, options, version."""
    stats = []
    for record in records:
        paths = [(key, record.get(key)) for key in (*VOLUMES, "log")]
        paths += [("draw", draw.get("image")) for draw in record.get("draws") or ()]
        for key, name in paths:
            path = Path(str(name)) if name and "\n" not in str(name) else None
            if path is not None and len(str(path)) < 4096 and path.is_file():
                stats.append((key, path.stat().st_size, path.stat().st_mtime_ns))
    content = json.dumps([list(records), stats, options, __version__], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()


def is_current(out_dir: Path, label: str, mark: str) -> bool:
    """True when the page with this fingerprint is there, with all its figures."""
    summary = read_summary(out_dir, label)
    return summary.get("fingerprint") == mark and _has_files(out_dir, label, summary)


def is_complete(out_dir: str | os.PathLike, label: str, statuses: Sequence[str]) -> bool:
    """True when a page is there that tells of scans with these statuses, with all its figures."""
    out_dir = Path(out_dir)
    summary = read_summary(out_dir, label)
    told = [scan.get("status") for scan in summary.get("scans", ())]
    return told == list(statuses) and _has_files(out_dir, label, summary)


def _has_files(out_dir: Path, label: str, summary: Mapping[str, Any]) -> bool:
    folder = summary_path(out_dir, label).parent
    return (out_dir / f"sub-{label}.html").is_file() and all(
        (folder / name).is_file() for name in summary.get("figures", ())
    )
