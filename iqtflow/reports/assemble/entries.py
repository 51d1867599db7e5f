"""One scan on a subject's page, in the words of the page: what happened, what came out, the end of its
log.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from iqtflow.inference.uncertainty import NOT_COVERED, kind_of_scan
from iqtflow.reports.assemble import facts, familiar
from iqtflow.reports.assemble.figures import Figures
from iqtflow.reports.assemble.prepared import PreparedFigures
from iqtflow.reports.draw.views import Volumes
from iqtflow.utils.errors import InputError

STATUSES = ("enhanced", "prepared", "skipped", "failed")
LOG_LINES = 200  #: the end of a longer log is kept
EXCERPT_LINES = 14  #: lines that are shown without asking
LOG_BYTES = 100_000

Record = Mapping[str, Any]

#: Volumes that the page names, with words for them.
_OUTPUTS = (
    ("output", "estimate (IQT)"),
    ("std", "uncertainty"),
    ("spline", "spline"),
    ("mask", "brain mask"),
    ("wm", "white matter"),
    ("gm", "grey matter"),
    ("csf", "cerebrospinal fluid"),
    ("library", "patch library"),
)


@dataclass
class Entry:
    """One scan on the page."""

    anchor: str
    title: str
    status: str
    sentence: str
    source: str
    brief: str = ""
    outputs: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    verdict: familiar.Verdict | None = None
    spread_words: str = ""
    spread_held: str = ""
    spread_inside: str = ""
    not_covered: Sequence[str] = ()
    tables: dict[str, list[facts.Row]] = field(default_factory=dict)
    details_json: str = ""
    log: str = ""
    excerpt: str = ""
    log_file: str = ""
    figures: Figures | None = None
    prepared: PreparedFigures | None = None
    picture_fault: str = ""
    metrics: tuple[Sequence[str], Sequence[list[str]]] = ((), ())
    tilt_degrees: float = 0.0
    has_mask: bool = True


def describe(record: Record, label: str, out_dir: Path, *, taken: set[str]) -> Entry:
    """Put a record into words; pictures come later.

    Parameters
    ----------
    record
        As for `iqtflow.reports.assemble.subject.write_subject_page`.
    label
        The subject's.
    out_dir
        Derivatives folder: files in it are named on the page, others are working files that nobody sees.
    taken
        Anchors that are in use on the page.

    Raises
    ------
    InputError
        The status is unknown.
    """
    status = record.get("status")
    if status not in STATUSES:
        raise InputError(
            f"record of sub-{label}",
            found=f"status {status!r}",
            expected=", ".join(STATUSES),
            next_step="Correct the record.",
        )
    source = Path(record.get("input") or record.get("output") or f"sub-{label}")
    title = re.sub(r"\.nii(\.gz)?$", "", source.name)
    anchor = stem = re.sub(r"[^A-Za-z0-9_-]+", "-", title).strip("-") or f"sub-{label}"
    number = 2
    while anchor in taken:
        anchor, number = f"{stem}-{number}", number + 1
    details = record.get("details") or {}
    prepared = status == "prepared"
    log, log_file = read_log(record)
    return Entry(
        anchor=anchor,
        title=title,
        status=status,
        sentence=_sentence(record),
        source=str(record.get("input") or "not recorded"),
        brief="" if prepared else facts.brief(details),
        outputs=list(_outputs(record, out_dir)),
        warnings=familiar.without_verdict(facts.find_warnings(record)),
        verdict=familiar.judge(details) if status == "enhanced" else None,
        spread_words=familiar.spread_words(details),
        spread_held=familiar.spread_held(details),
        spread_inside=familiar.spread_inside(details),
        not_covered=NOT_COVERED[kind_of_scan(details)],
        tables=facts.fact_tables(details, facts.PREPARED_TABLES if prepared else facts.SCAN_TABLES),
        details_json=facts.as_json(details) if details else "",
        log=log,
        excerpt=_excerpt(log),
        log_file=log_file.relative_to(out_dir).as_posix()
        if log_file and log_file.is_relative_to(out_dir)
        else "",
        metrics=facts.metric_rows(record.get("metrics")),
    )


def what_happened(volumes: Volumes) -> str:
    """How many slices became how many."""
    after = volumes.sizes_mm
    if volumes.acquired is None:
        return f"Estimated on voxels of {' × '.join(f'{s:.2f}' for s in after)} mm."
    axis = volumes.slice_axis
    spacing = float((volumes.acquired[1][:3, axis] ** 2).sum() ** 0.5)
    across = ("left to right", "back to front", "bottom to top")[axis]
    n_before, n_after = volumes.acquired[0].shape[axis], volumes.after.shape[axis]
    old = f"{n_before} slices {spacing:.2f} mm apart ({across})"
    return f"{old} became {n_after} slices {after[axis]:.2f} mm apart."


def read_log(record: Record) -> tuple[str, Path | None]:
    """Return the end of a record's log, and its file when the record names one."""
    log = record.get("log") or (record.get("details") or {}).get("log") or ""
    text, file = str(log), None
    if "\n" not in text and 0 < len(text) < 4096 and Path(text).is_file():
        file = Path(text).absolute()
        text = file.read_text(encoding="utf-8", errors="replace")
    lines = text.rstrip().splitlines()
    if len(lines) > LOG_LINES:
        lines = [f"[the first {len(lines) - LOG_LINES} lines are left out]", *lines[-LOG_LINES:]]
    return "\n".join(lines)[-LOG_BYTES:], file


def _excerpt(log: str) -> str:
    """The last lines of a log, without those that only point at a place in the line above."""
    lines = [line for line in log.splitlines() if line.strip("^~ \t")]
    return textwrap.dedent("\n".join(lines[-EXCERPT_LINES:]).expandtabs(4))


def _outputs(record: Record, out_dir: Path) -> Sequence[tuple[str, str]]:
    found = []
    for key, words in _OUTPUTS:
        path = Path((record.get("names") or {}).get(key) or record.get(key) or "")
        if path.is_relative_to(out_dir):
            found.append((words, path.relative_to(out_dir).as_posix()))
    return found


def _sentence(record: Record) -> str:
    message = str(record.get("message") or "").strip().removeprefix(f"{record.get('input')}: ")
    if message:
        return message
    return {
        "enhanced": "",
        "prepared": "",
        "skipped": "Skipped; no reason was recorded.",
        "failed": "Failed; no message was recorded.",
    }[record["status"]]
