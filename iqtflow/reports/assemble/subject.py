"""The page of one subject: ``sub-X.html`` and its figures in ``sub-X/figures``."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from nibabel.filebasedimages import ImageFileError

from iqtflow.reports.assemble.entries import STATUSES, Entry, Record, describe, what_happened
from iqtflow.reports.assemble.figures import draw_figures
from iqtflow.reports.assemble.page import bare_label, render, write_page
from iqtflow.reports.assemble.prepared import PreparedFigures, draw_prepared
from iqtflow.reports.assemble.summaries import (
    VOLUMES,
    fingerprint,
    is_current,
    read_summary,
    storable,
    summary_path,
)
from iqtflow.reports.draw.pictures import legend_colours
from iqtflow.reports.draw.views import CONVENTIONS, load_volumes
from iqtflow.utils.errors import InputError, IQTFlowError

DRAWN = ("enhanced", "prepared")  #: scans with pictures
MAX_BYTES = 6_000_000  #: of a page and its figures
PAGE_BYTES = 400_000  #: kept back for the page itself, the small plots and the logs


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
        One mapping per scan: ``status`` (``enhanced``, ``prepared``, ``skipped`` or ``failed``) and
        ``input``. For an enhanced scan the paths ``output``, ``spline``, ``std``, ``mask``, ``truth`` (any
        but the first may be None), ``details`` (mapping: geometry, model, run, ``Warnings``) and ``metrics``
        (``{method: {metric: value}}``). For a scan that was prepared for training the paths ``wm``, ``gm``,
        ``csf``, ``mask``, ``library``, and ``draws``: mappings with ``image`` (path) and ``sidecar``
        (mapping). For others ``message`` (why it failed or was skipped) and ``log`` (text, or path of a text
        file). ``names`` (``{key: path}``) gives volumes the names that the page should show, when they are
        drawn from elsewhere.
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
    drawn = sum(record.get("status") in DRAWN for record in records)
    budget = (max_bytes - PAGE_BYTES) // max(drawn, 1)
    entries: list[Entry] = []
    written: list[str] = []
    for record in records:
        entry = describe(record, label, out_dir, taken={e.anchor for e in entries})
        if entry.status in DRAWN:
            _draw(entry, record, convention=convention, max_bytes=budget)
        for figures in (entry.figures, entry.prepared):
            if figures is not None:
                for name, content in figures.files.items():
                    write_page(folder / name, content)
                written += figures.files
                figures.files.clear()
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
        with suppress(OSError):  # no figure of the page: what cannot be deleted may stay
            (folder / Path(name).name).unlink()  # left by an earlier run of this subject
    return page


def _draw(entry: Entry, record: Record, *, convention: str, max_bytes: int) -> None:
    try:
        if entry.status == "prepared":
            entry.prepared = draw_prepared(record, entry.anchor, convention=convention, max_bytes=max_bytes)
            entry.sentence = entry.sentence or _what_was_drawn(entry.prepared)
            return
        volumes = load_volumes(record)
        entry.figures = draw_figures(volumes, entry.anchor, convention=convention, max_bytes=max_bytes)
    except IQTFlowError as fault:
        entry.picture_fault = str(fault)
        return
    except (ImageFileError, OSError, EOFError, ValueError, zlib.error) as fault:
        entry.picture_fault = f"{type(fault).__name__}: {fault}"
        return
    entry.tilt_degrees, entry.has_mask = volumes.tilt_degrees, volumes.has_mask
    entry.sentence = entry.sentence or what_happened(volumes)


def _what_was_drawn(figures: PreparedFigures) -> str:
    scans = f"{figures.n_draws} low-field scan{'' if figures.n_draws == 1 else 's'}"
    return f"Prepared for training: tissue maps, {scans} simulated from them, a library of patches."


def _summary(
    label: str, entries: Sequence[Entry], records: Sequence[Record], written: Sequence[str], mark: str
) -> str:
    thumbnails = [(e.figures or e.prepared).thumbnail if e.figures or e.prepared else None for e in entries]
    scans = [
        {
            "title": e.title,
            "anchor": e.anchor,
            "status": e.status,
            "sentence": e.sentence,
            "warnings": e.warnings,
            "verdict": e.verdict.badge if e.verdict else "",
            "verdict_style": e.verdict.style if e.verdict else "",
            "thumbnail": thumbnail.file if thumbnail else None,
            "alt": thumbnail.alt if thumbnail else "",
            "volumes": {key: str(record[key]) for key in VOLUMES if record.get(key)},
            "record": storable(record),
        }
        for e, record, thumbnail in zip(entries, records, thumbnails, strict=True)
    ]
    content = {"subject": label, "scans": scans, "figures": sorted(written), "fingerprint": mark}
    return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
