"""The page of one subject: ``sub-X.html`` and its figures in ``sub-X/figures``."""

from __future__ import annotations

import re
import textwrap
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from nibabel.affines import voxel_sizes
from nibabel.filebasedimages import ImageFileError

from iqtflow.bids.names import stem_of
from iqtflow.config import SETTINGS
from iqtflow.inference.uncertainty import NOT_COVERED, kind_of_scan
from iqtflow.reports.assemble import facts
from iqtflow.reports.assemble.page import bare_label, render, write_page, write_viewer
from iqtflow.reports.draw.enhanced import Figures, draw_figures, make_scene
from iqtflow.reports.draw.pictures import legend_colours
from iqtflow.reports.draw.prepared import PreparedFigures, draw_prepared
from iqtflow.reports.draw.viewer import Viewer, make_viewer
from iqtflow.reports.draw.volumes import CONVENTIONS, Volumes, load_array, load_volumes
from iqtflow.reports.places import AuditPlace, read_places
from iqtflow.reports.record import (
    STATUSES,
    Place,
    Record,
    Shown,
    Summary,
    fingerprint,
    has_files,
    page_path,
    read_summary,
    summary_path,
)
from iqtflow.reports.verdict import STYLES, Check, Verdict, judge, make_checks
from iqtflow.utils.errors import InputError, IQTFlowError

MAX_BYTES = 6_000_000  #: of a page and its figures
VIEWER_MB = SETTINGS["run"]["viewer_mb"].default  #: of the volumes of a scan for the viewer
PAGE_BYTES = 400_000  #: kept for the page itself, the small plots and the logs
LOG_LINES = 200  #: the end of a longer log is kept
EXCERPT_LINES = 14  #: lines of the log that are shown at once
LOG_BYTES = 100_000

#: Volumes that the page names, with words for them.
_OUTPUTS = (
    ("output", "enhanced volume (IQT)"),
    ("std", "standard deviation"),
    ("residual", "difference from the acquired slices"),
    ("spline", "spline"),
    ("mask", "brain mask"),
    ("wm", "white matter"),
    ("gm", "grey matter"),
    ("csf", "cerebrospinal fluid"),
    ("library", "patch library"),
)
_NO_MESSAGE = {
    "skipped": "Skipped; no reason was recorded.",
    "failed": "Failed; no message was recorded.",
}


@dataclass
class Entry:
    """One scan on the page."""

    record: Record
    anchor: str
    title: str
    sentence: str
    outputs: list[tuple[str, str]]
    checks: list[Check]
    verdict: Verdict | None
    familiar: facts.Familiar | None
    places: list[AuditPlace]
    scan: str
    log: str
    excerpt: str
    log_file: str
    figures: Figures | None = None
    prepared: PreparedFigures | None = None
    viewer: Viewer | None = None
    viewer_fault: str = ""
    picture_fault: str = ""
    tilt_degrees: float = 0.0
    has_mask: bool = True
    warnings: list[str] = field(default_factory=list)

    @property
    def status(self) -> str:
        """Status of the scan."""
        return self.record.status

    @property
    def badge(self) -> str:
        """The verdict in a word or two, or the status of a scan that was not enhanced."""
        return self.verdict.trust if self.verdict else self.status

    @property
    def style(self) -> str:
        """Name of the style of the badge."""
        return STYLES[self.verdict.trust] if self.verdict else self.status

    @property
    def counts(self) -> str:
        """How many checks passed, failed and were not made."""
        words = {True: "passed", False: "failed", None: "not made"}
        found = [(sum(check.passed is key for check in self.checks), word) for key, word in words.items()]
        return ", ".join(f"{n} {word}" for n, word in found if n)


def write_subject_page(
    out_dir: Place,
    subject: str,
    records: Sequence[Record],
    *,
    convention: str = "radiological",
    max_bytes: int = MAX_BYTES,
    viewer_mb: float = VIEWER_MB,
) -> Path:
    """Write the page of one subject.

    Parameters
    ----------
    out_dir
        Derivatives folder; gets ``sub-X.html``, ``sub-X/figures/*`` and a small
        ``sub-X/figures/sub-X_desc-report.json`` from which
        `iqtflow.reports.assemble.index.write_index_page` makes the index.
    subject
        Label, with or without ``sub-``.
    records
        One for each scan.
    convention
        ``radiological`` (the patient's right on the left of the picture) or ``neurological``.
    max_bytes
        Most bytes of the page and its figures; fewer and smaller pictures are drawn to meet it.
    viewer_mb
        Most megabytes of the volumes for the viewer, for each scan; they come on top. 0: no viewer.

    Returns
    -------
    Path
        ``sub-X.html``.

    Raises
    ------
    InputError
        The label or the convention does not exist.
    OutputError
        The folder cannot be written to.

    Notes
    -----
    If a volume cannot be read, the page says so in place of the pictures. A page of the same records and
    unchanged volumes is not written again.
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
    page, folder = page_path(out_dir, label), summary_path(out_dir, label).parent
    mark = fingerprint(records, {"convention": convention, "max_bytes": max_bytes, "viewer_mb": viewer_mb})
    previous = read_summary(out_dir, label)
    program = write_viewer(out_dir) if viewer_mb and any(r.status == "enhanced" for r in records) else ""
    if previous.fingerprint == mark and has_files(out_dir, label, previous):
        return page
    drawn = sum(record.status in ("enhanced", "prepared") for record in records)
    budget = (max_bytes - PAGE_BYTES) // max(drawn, 1)
    entries: list[Entry] = []
    written: list[str] = []
    for record in records:
        entry = _describe(record, label, out_dir, taken={e.anchor for e in entries})
        figures = _draw(entry, convention=convention, max_bytes=budget, viewer_mb=viewer_mb)
        if figures is not None:
            drawings = [figures.files, entry.viewer.files] if entry.viewer else [figures.files]
            for files in drawings:
                for name, content in files.items():
                    write_page(folder / name, content)
                written += files
                files.clear()
        entries.append(entry)
    html = render(
        "subject.html",
        label=label,
        entries=entries,
        folder=f"sub-{label}/figures",
        convention=convention,
        colours=legend_colours(),
        overlay_colours=legend_colours(over_grey=150),
        greys=[f"#{bytes([shade] * 3).hex()}" for shade in range(0, 256, 17)],
        counts={status: sum(e.status == status for e in entries) for status in STATUSES},
        facts=facts,
        program=program,
        has_viewer=any(entry.viewer for entry in entries),
        viewer_layers=_viewer_layers,
        place_rows=_place_rows,
        not_covered=lambda details: NOT_COVERED[kind_of_scan(details)],
    )
    write_page(page, html)
    summary = Summary([_shown(entry) for entry in entries], sorted(written), mark)
    write_page(summary_path(out_dir, label), summary.as_json(label) + "\n")
    for name in set(previous.figures) - set(written):  # of an earlier run
        with suppress(OSError):
            (folder / Path(name).name).unlink()
    return page


def _viewer_layers(viewer: Viewer, folder: str) -> list[dict[str, Any]]:
    """Return what the script of the viewer needs to know of each volume."""
    return [{**vars(layer), "file": quote(f"{folder}/{layer.file}")} for layer in viewer.layers]


def _place_rows(places: Sequence[AuditPlace]) -> list[list[str]]:
    """Return the rows of the table of places, numbered."""
    rows = [place.row for place in places]
    return [[f"{number}: {row[0]}", *row[1:]] for number, row in enumerate(rows, start=1)]


def _draw(
    entry: Entry, *, convention: str, max_bytes: int, viewer_mb: float
) -> Figures | PreparedFigures | None:
    """Draw the figures of a scan; what cannot be drawn is noted in the entry."""
    try:
        if entry.status == "prepared":
            found = draw_prepared(entry.record, entry.anchor, convention=convention, max_bytes=max_bytes)
            scans = f"{found.n_draws} simulated low-field scan{'' if found.n_draws == 1 else 's'}"
            entry.prepared = found
            entry.sentence = entry.sentence or f"Prepared for training: tissue maps, {scans}, patch library."
        elif entry.status == "enhanced":
            volumes = load_volumes(entry.record)
            residual = load_array(entry.record.residual)
            scene = make_scene(volumes, entry.anchor, convention, residual=residual if entry.places else None)
            entry.figures = draw_figures(scene, max_bytes=max_bytes, places=entry.places)
            if viewer_mb:
                entry.viewer = make_viewer(scene, residual, max_megabytes=viewer_mb)
                if entry.viewer is None:
                    entry.viewer_fault = (
                        f"There is no viewer: its volumes would take more than {viewer_mb:g} MB. Write the "
                        "page again with --reports-only and a larger --viewer-mb."
                    )
            entry.tilt_degrees, entry.has_mask = volumes.tilt_degrees, volumes.has_mask
            entry.sentence = entry.sentence or _what_happened(volumes)
    except IQTFlowError as fault:
        entry.picture_fault = str(fault)
    except (ImageFileError, OSError, EOFError, ValueError, zlib.error) as fault:
        entry.picture_fault = f"{type(fault).__name__}: {fault}"
    return entry.figures or entry.prepared


def _describe(record: Record, label: str, out_dir: Path, *, taken: set[str]) -> Entry:
    """Put a record into words; pictures come later. No two anchors of a page are the same."""
    title = stem_of(Path(record.key or record.output or f"sub-{label}").name)
    anchor = stem = re.sub(r"[^A-Za-z0-9_-]+", "-", title).strip("-") or f"sub-{label}"
    number = 2
    while anchor in taken:
        anchor, number = f"{stem}-{number}", number + 1
    message = str(record.message).strip().removeprefix(f"{record.input}: ")
    log, log_file = _read_log(record)
    checks = make_checks(record)
    known = log_file is not None and log_file.is_relative_to(out_dir)
    return Entry(
        record=record,
        anchor=anchor,
        title=title,
        sentence=message or _NO_MESSAGE.get(record.status, ""),
        outputs=list(_outputs(record, out_dir)),
        checks=checks,
        verdict=judge(checks) if checks else None,
        familiar=facts.judge(record.details) if record.status == "enhanced" else None,
        places=read_places(record.details),
        scan=facts.relative_path(record.input),
        log=log,
        excerpt=_excerpt(log),
        log_file=log_file.relative_to(out_dir).as_posix() if log_file and known else "",
        warnings=facts.find_warnings(record.details),
    )


def _shown(entry: Entry) -> Shown:
    figures = entry.figures or entry.prepared
    return Shown(
        title=entry.title,
        anchor=entry.anchor,
        status=entry.status,
        sentence=entry.sentence,
        warnings=entry.warnings,
        verdict=entry.verdict.trust if entry.verdict else "",
        verdict_style=entry.style if entry.verdict else "",
        thumbnail=figures.thumbnail.file if figures else None,
        alt=figures.thumbnail.alt if figures else "",
        record=entry.record,
    )


def _what_happened(volumes: Volumes) -> str:
    """Return voxel sizes, and the number of slices, before and after."""
    after = " × ".join(f"{size:.2f}" for size in volumes.sizes_mm)
    if volumes.acquired is None or volumes.slice_axis is None:
        return f"Enhanced to voxels of {after} mm."
    scan, affine = volumes.acquired
    axis = volumes.slice_axis
    before = " × ".join(f"{size:.2f}" for size in voxel_sizes(affine))
    across = ("left to right", "back to front", "bottom to top")[axis]
    return (
        f"Enhanced from voxels of {before} mm to {after} mm: {scan.shape[axis]} slices ({across}) became "
        f"{volumes.after.shape[axis]}."
    )


def _read_log(record: Record) -> tuple[str, Path | None]:
    """Return the end of a record's log, and its file if the record names one."""
    text = str(record.log)
    file = next((path.absolute() for name, path in record.files() if name == "log"), None)
    if file is not None:
        text = file.read_text(encoding="utf-8", errors="replace")
    lines = text.rstrip().splitlines()
    if len(lines) > LOG_LINES:
        lines = [f"[the first {len(lines) - LOG_LINES} lines are left out]", *lines[-LOG_LINES:]]
    return "\n".join(lines)[-LOG_BYTES:], file


def _excerpt(log: str) -> str:
    """Return the last lines of a log, without those that only point at a place in the line above."""
    lines = [line for line in log.splitlines() if line.strip("^~ \t")]
    return textwrap.dedent("\n".join(lines[-EXCERPT_LINES:]).expandtabs(4))


def _outputs(record: Record, out_dir: Path) -> Iterator[tuple[str, str]]:
    """Yield words for, and path of, each volume in the derivatives; working files are not named."""
    for name, words in _OUTPUTS:
        path = Path(record.names.get(name) or getattr(record, name) or "")
        if path.is_relative_to(out_dir):
            yield words, path.relative_to(out_dir).as_posix()
