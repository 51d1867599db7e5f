"""The index of a data set, ``index.html``, and the pages of subjects that did not go through as a whole."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from iqtflow.reports.assemble.entries import STATUSES, Record
from iqtflow.reports.assemble.page import bare_label, render, write_page
from iqtflow.reports.assemble.records import complete_record
from iqtflow.reports.assemble.subject import write_subject_page
from iqtflow.reports.assemble.summaries import find_labels, read_summary, summary_path

#: Which subjects the index can be narrowed to: mark and words.
FILTERS = (
    ("failed", "Failed"),
    ("warning", "With warnings"),
    ("enhanced", "Enhanced"),
    ("prepared", "Prepared"),
    ("skipped", "Skipped"),
)


def write_index_page(
    out_dir: str | os.PathLike, subjects: Mapping[str, Sequence[Record]] | Sequence[str] = ()
) -> Path:
    """Write the index of all subjects whose pages are in a folder: who passed, who failed and why, with a
    picture of each.

    Parameters
    ----------
    out_dir
        Derivatives folder with pages by `write_subject_page`.
    subjects
        Labels of the subjects (or records by label) of this run. Those without a page are listed as such, so
        that nobody is missing in silence. Subjects of earlier runs and of other jobs of a cluster are listed
        from what they left in the folder.

    Returns
    -------
    Path
        ``index.html``.
    """
    out_dir = Path(out_dir).absolute()
    asked = [bare_label(subject) for subject in subjects]
    while True:
        before = _state(out_dir)
        page = write_page(out_dir / "index.html", _render_index(out_dir, asked))
        # Jobs of a cluster share the folder. Whichever writes last looks again: nobody's subject is lost.
        if _state(out_dir) == before:
            return page


def _state(out_dir: Path) -> list[tuple[str, int]]:
    """The subjects that have left a summary, and when."""
    found = []
    for label in find_labels(out_dir):
        try:
            found.append((label, summary_path(out_dir, label).stat().st_mtime_ns))
        except FileNotFoundError:
            continue
    return found


def _render_index(out_dir: Path, asked: Sequence[str]) -> str:
    labels = sorted({*find_labels(out_dir), *asked})
    rows = []
    for label in labels:
        scans = read_summary(out_dir, label).get("scans", [])
        found = {scan["status"] for scan in scans}
        status = next((s for s in ("failed", "enhanced", "prepared", "skipped") if s in found), "failed")
        rows.append(
            {
                "label": label,
                "status": status,
                "scans": scans,
                "marks": _marks(status, scans),
                "has_page": (out_dir / f"sub-{label}.html").is_file(),
            }
        )
    order = {"failed": 0, "enhanced": 1, "prepared": 1, "skipped": 2}
    rows.sort(key=lambda row: order[row["status"]])
    counts = {
        status: sum(scan["status"] == status for row in rows for scan in row["scans"]) for status in STATUSES
    }
    counts["missing"] = sum(not row["scans"] for row in rows)
    filters = [("", "All")]
    for mark, words in FILTERS:
        n = sum(mark in row["marks"] for row in rows)
        if 0 < n < len(rows):
            filters.append((mark, f"{words} ({n})"))
    return render(
        "index.html",
        rows=rows,
        counts=counts,
        statuses=STATUSES,
        filters=filters,
        has_group=(out_dir / "group.html").is_file(),
    )


def _marks(status: str, scans: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the index can be narrowed by: outcomes of the scans, and whether any wants attention."""
    marks = {status, *(scan["status"] for scan in scans)}
    if any(scan.get("warnings") or scan.get("verdict_style") == "warn" for scan in scans):
        marks.add("warning")
    return sorted(marks)


def write_pages(out_dir: str | os.PathLike, scans: Sequence[Mapping[str, Any]]) -> Path:
    """Bring all pages of a run up to date at its end: subjects with a failed or skipped scan, then the index.

    Pages that the graph has written already, and that show the same scans with the same outcome, are left
    alone.

    Parameters
    ----------
    out_dir
        Derivatives folder.
    scans
        One record per scan as for `write_subject_page`, each with its ``subject``. An enhanced scan needs
        only ``input`` and ``output``: the rest is found beside the output, or in the summary of the page that
        it was on before.

    Returns
    -------
    Path
        ``index.html``.
    """
    out_dir = Path(out_dir).absolute()
    subjects: dict[str, list[Mapping[str, Any]]] = {}
    for scan in scans:
        subjects.setdefault(bare_label(scan["subject"]), []).append(scan)
    for label, records in subjects.items():
        shown = read_summary(out_dir, label).get("scans", [])
        same = sorted(_outcome(r["status"], r.get("input"), r.get("message")) for r in records) == sorted(
            _outcome(s["status"], s["record"].get("input"), s["sentence"]) for s in shown
        )
        failed = any(record["status"] == "failed" for record in records)  # its log may be a new one
        if failed or not same or not (out_dir / f"sub-{label}.html").is_file():
            known = {scan["record"].get("input"): scan["record"] for scan in shown}
            write_subject_page(
                out_dir,
                label,
                [complete_record(record, known.get(str(record.get("input")), {})) for record in records],
            )
    return write_index_page(out_dir, subjects)


def _outcome(status: str, source: Any, sentence: Any) -> tuple[str, ...]:
    # The sentence of an enhanced scan is the page's own; those of the others tell two failures apart.
    return (status, str(source)) if status == "enhanced" else (status, str(source), str(sentence))
