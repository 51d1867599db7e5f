"""The page of one subject: ``sub-X.html`` and its figures in ``sub-X/figures``."""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nibabel.filebasedimages import ImageFileError

from iqtflow.errors import InputError, IQTFlowError
from iqtflow.report import facts
from iqtflow.report.figures import Figures, draw_figures
from iqtflow.report.page import bare_label, render, write_page
from iqtflow.report.pictures import legend_colours
from iqtflow.report.summaries import VOLUMES, fingerprint, is_current, read_summary, summary_path
from iqtflow.report.views import CONVENTIONS, Volumes, load_volumes

STATUSES = ("enhanced", "skipped", "failed")
MAX_BYTES = 6_000_000  #: of a page and its figures
PAGE_BYTES = 400_000  #: kept back for the page itself, the small plots and the logs
LOG_LINES = 200  #: the end of a longer log is shown

Record = Mapping[str, Any]


@dataclass
class Entry:
    """One scan on the page, in the words of the page."""

    anchor: str
    title: str
    status: str
    sentence: str
    source: str
    brief: str = ""
    outputs: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    tables: dict[str, list[facts.Row]] = field(default_factory=dict)
    details_json: str = ""
    log: str = ""
    figures: Figures | None = None
    picture_fault: str = ""
    metrics: tuple[list[str], list[list[str]]] = ((), ())
    tilt_degrees: float = 0.0
    has_mask: bool = True


def write_subject_page(
    out_dir: str | os.PathLike,
    subject: str,
    records: Sequence[Record],
    *,
    convention: str = "radiological",
    max_bytes: int = MAX_BYTES,
) -> Path:
    """Write the page of one subject.

    Parameters
    ----------
    out_dir
        Derivatives folder; gets ``sub-X.html``, ``sub-X/figures/*`` and a small
        ``sub-X/figures/sub-X_desc-report.json`` from which `write_index_page` makes the index.
    subject
        Label, with or without ``sub-``.
    records
        One mapping per scan: ``status`` (``enhanced``, ``skipped`` or ``failed``), ``input``, and for an
        enhanced scan the paths ``output``, ``spline``, ``std``, ``mask``, ``truth`` (any but the first may be
        None), ``details`` (mapping: geometry, model, run, ``warnings``), ``metrics`` (``{method: {metric:
        value}}``); ``message`` (why it failed or was skipped) and ``log`` (text, or path of a text file);
        ``names`` (``{key: path}``) gives volumes the names that the page should show, when they are drawn
        from elsewhere.
    convention
        ``radiological`` (the patient's right on the left of the picture) or ``neurological``.
    max_bytes
        Most that the page and its figures may weigh, in bytes; pictures are made fewer and smaller to stay
        below.

    Returns
    -------
    Path
        ``sub-X.html``.

    Raises
    ------
    InputError
        A record has an unknown status, or the label or the convention is none.
    OutputError
        The folder cannot be written to.

    Notes
    -----
    A volume that cannot be read does not fail the page: it says so in place of the pictures, since the page
    is where people look when something went wrong. A page that is there already, of the same records and
    unchanged volumes, is left as it is.
    """
    label = bare_label(subject)
    if convention not in CONVENTIONS:
        raise InputError(
            "convention",
            found=repr(convention),
            expected=" or ".join(CONVENTIONS),
            next_step="Choose one of them.",
        )
    out_dir = Path(out_dir).absolute()
    page, folder = out_dir / f"sub-{label}.html", summary_path(out_dir, label).parent
    mark = fingerprint(records, {"convention": convention, "max_bytes": max_bytes})
    if is_current(out_dir, label, mark):
        return page
    previous = read_summary(out_dir, label)
    enhanced = sum(record.get("status") == "enhanced" for record in records)
    budget = (max_bytes - PAGE_BYTES) // max(enhanced, 1)
    entries: list[Entry] = []
    written: list[str] = []
    for record in records:
        entry = _describe(record, label, out_dir, taken={e.anchor for e in entries})
        if entry.status == "enhanced":
            _draw(entry, record, convention=convention, max_bytes=budget)
        if entry.figures is not None:
            for name, content in entry.figures.files.items():
                write_page(folder / name, content)
            written += entry.figures.files
            entry.figures.files.clear()
        entries.append(entry)
    html = render(
        "subject.html",
        label=label,
        entries=entries,
        folder=f"sub-{label}/figures",
        convention=convention,
        colours=legend_colours(),
        overlay_colours=legend_colours(over_grey=150),
        counts={status: sum(e.status == status for e in entries) for status in STATUSES},
    )
    write_page(page, html)
    write_page(summary_path(out_dir, label), _summary(label, entries, records, written, mark))
    for name in set(previous.get("figures", ())) - set(written):
        (folder / Path(name).name).unlink(missing_ok=True)  # left by an earlier run of this subject
    return page


def _describe(record: Record, label: str, out_dir: Path, *, taken: set[str]) -> Entry:
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
    outputs = []
    for key, words in (
        ("output", "estimate (IQT)"),
        ("std", "uncertainty"),
        ("spline", "spline"),
        ("mask", "mask"),
    ):
        path = Path((record.get("names") or {}).get(key) or record.get(key) or "")
        if path.is_relative_to(out_dir):  # what lies elsewhere is a working file, which the user never sees
            outputs.append((words, path.relative_to(out_dir).as_posix()))
    return Entry(
        anchor=anchor,
        title=title,
        status=status,
        sentence=_sentence(record),
        source=str(record.get("input") or "not recorded"),
        brief=facts.brief(details),
        outputs=outputs,
        warnings=facts.find_warnings(record),
        tables=facts.fact_tables(details),
        details_json=facts.as_json(details) if details else "",
        log=_log(record),
        metrics=facts.metric_rows(record.get("metrics")),
    )


def _draw(entry: Entry, record: Record, *, convention: str, max_bytes: int) -> None:
    try:
        volumes = load_volumes(record)
        entry.figures = draw_figures(volumes, entry.anchor, convention=convention, max_bytes=max_bytes)
    except IQTFlowError as fault:
        entry.picture_fault = str(fault)
        return
    except (ImageFileError, OSError, EOFError, ValueError, zlib.error) as fault:
        entry.picture_fault = f"{type(fault).__name__}: {fault}"
        return
    entry.tilt_degrees, entry.has_mask = volumes.tilt_degrees, volumes.has_mask
    entry.sentence = entry.sentence or _what_happened(volumes)


def _what_happened(volumes: Volumes) -> str:
    after = volumes.sizes_mm
    if volumes.acquired is None:
        return f"Estimated on voxels of {' × '.join(f'{s:.2f}' for s in after)} mm."
    axis = volumes.slice_axis
    spacing = float((volumes.acquired[1][:3, axis] ** 2).sum() ** 0.5)
    across = ("left to right", "back to front", "bottom to top")[axis]
    n_before, n_after = volumes.acquired[0].shape[axis], volumes.after.shape[axis]
    old = f"{n_before} slices {spacing:.2f} mm apart ({across})"
    return f"{old} became {n_after} slices {after[axis]:.2f} mm apart."


def _sentence(record: Record) -> str:
    message = str(record.get("message") or "").strip()
    if message:
        return message
    return {
        "enhanced": "",
        "skipped": "Skipped; no reason was recorded.",
        "failed": "Failed; no message was recorded.",
    }[record["status"]]


def _log(record: Record) -> str:
    log = record.get("log") or (record.get("details") or {}).get("log") or ""
    text = str(log)
    if "\n" not in text and 0 < len(text) < 4096 and Path(text).is_file():
        text = Path(text).read_text(encoding="utf-8", errors="replace")
    lines = text.rstrip().splitlines()
    if len(lines) > LOG_LINES:
        lines = [f"[the first {len(lines) - LOG_LINES} lines are left out]", *lines[-LOG_LINES:]]
    return "\n".join(lines)[-PAGE_BYTES // 4 :]


def _summary(
    label: str, entries: Sequence[Entry], records: Sequence[Record], written: Sequence[str], mark: str
) -> str:
    scans = [
        {
            "title": e.title,
            "anchor": e.anchor,
            "status": e.status,
            "sentence": e.sentence,
            "warnings": e.warnings,
            "thumbnail": e.figures.thumbnail.file if e.figures else None,
            "alt": e.figures.thumbnail.alt if e.figures else "",
            "volumes": {key: str(record[key]) for key in VOLUMES if record.get(key)},
        }
        for e, record in zip(entries, records, strict=False)
    ]
    content = {"subject": label, "scans": scans, "figures": sorted(written), "fingerprint": mark}
    return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
