"""The index of a data set, ``index.html``, and all pages of a run or of a folder of derivatives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

from iqtflow.bids.names import output_name
from iqtflow.reports.assemble.adaptation import rewrite_adaptation_page
from iqtflow.reports.assemble.calibration import write_calibration_page
from iqtflow.reports.assemble.group import write_training_page
from iqtflow.reports.assemble.page import bare_label, render, write_page
from iqtflow.reports.assemble.scan_table import (
    FIGURES,
    GROUPS,
    ScanRow,
    as_tsv,
    collect_scans,
    data_dictionary,
)
from iqtflow.reports.assemble.subject import VIEWER_MB, write_subject_page
from iqtflow.reports.ratings import RATINGS, Rating, read_ratings
from iqtflow.reports.record import (
    Place,
    Record,
    Shown,
    complete_record,
    find_labels,
    find_records,
    find_source,
    labels_of_derivatives,
    page_path,
    read_summary,
    summary_path,
)
from iqtflow.utils.errors import InputError

#: Keys of the table of scans.
KEYS = (
    ("j", "or ↓ next scan"),
    ("k", "or ↑ scan before"),
    *((key, rating) for rating, key in RATINGS.items()),
    ("n", "note"),
    ("Enter", "open the page"),
    ("/", "find"),
    ("Esc", "back to the table"),
)
#: Other pages of a data set, and words for them.
LINKS = (
    (output_name("group_page"), "Training and evaluation"),
    (output_name("calibration_page"), "Calibration"),
)


def write_index_page(out_dir: Place, subjects: Iterable[str] = ()) -> Path:
    """Write the index of all scans whose pages are in a folder, and the same as a table for programs.

    Parameters
    ----------
    out_dir
        Derivatives folder with pages by `iqtflow.reports.assemble.subject.write_subject_page`. If it has
        ``ratings.tsv``, the ratings are shown.
    subjects
        Labels of the subjects of this run; those without a page are listed, too. Subjects of earlier runs
        and of other jobs are found in the folder.

    Returns
    -------
    Path
        ``index.html``; ``group_iqt.tsv`` and ``group_iqt.json`` are beside it.
    """
    out_dir = Path(out_dir).absolute()
    asked = [bare_label(subject) for subject in subjects]
    while True:
        before = _state(out_dir)
        ratings, faults = read_ratings(out_dir)
        rows, unused = collect_scans(out_dir, sorted({*find_labels(out_dir), *asked}), ratings)
        write_page(out_dir / output_name("scan_table"), as_tsv(rows))
        write_page(out_dir / output_name("scan_table_dictionary"), data_dictionary())
        page = write_page(
            out_dir / output_name("index"), _render_index(out_dir, rows, ratings, [*faults, *unused])
        )
        # Several jobs may write into the folder: the last one looks again, so that no subject is lost.
        if _state(out_dir) == before:
            return page


def _state(out_dir: Path) -> list[tuple[str, int]]:
    """Return the subjects that have a summary, and its time."""
    found = []
    for label in find_labels(out_dir):
        try:
            found.append((label, summary_path(out_dir, label).stat().st_mtime_ns))
        except FileNotFoundError:
            continue
    return found


def _render_index(
    out_dir: Path, rows: Sequence[ScanRow], ratings: Mapping[str, Rating], faults: Sequence[str]
) -> str:
    counts = Counter(row.trust for row in rows)
    shown = {row.name for row in rows if row.rating}
    return render(
        "index.html",
        rows=rows,
        n_subjects=len({row.subject for row in rows}),
        columns=[column for column in FIGURES if column.title and any(map(column.cell, rows))],
        groups=[(key, words, counts[key]) for key, words, _ in GROUPS],
        styles={key: style for key, _, style in GROUPS},
        statuses={row.status for row in rows},
        links=[(file, words) for file, words in LINKS if (out_dir / file).is_file()],
        table=output_name("scan_table"),
        ratings=tuple(RATINGS),
        ratings_file=output_name("ratings"),
        # Exported again, so that no rating is lost.
        others=[[scan, *astuple(rating)] for scan, rating in ratings.items() if scan not in shown],
        faults=faults,
        keys=KEYS,
    )


def write_pages(
    out_dir: Place, scans: Iterable[Record | Mapping[str, Any]], *, viewer_mb: float = VIEWER_MB
) -> Path:
    """Write the pages of subjects with a failed or skipped scan at the end of a run, then the index.

    A page that the graph has written already, and that shows the same scans with the same outcome, is not
    written again.

    Parameters
    ----------
    out_dir
        Derivatives folder.
    scans
        A record of each, or a mapping of its fields, with its ``subject``. An enhanced scan needs only
        ``input`` and ``output``: the rest is found beside the output, or in the summary of its earlier page.
    viewer_mb
        See `iqtflow.reports.assemble.subject.write_subject_page`.

    Returns
    -------
    Path
        ``index.html``.
    """
    out_dir = Path(out_dir).absolute()
    subjects: dict[str, list[Record]] = {}
    for record in map(Record.read, scans):
        subjects.setdefault(bare_label(record.subject), []).append(record)
    for label, own in subjects.items():
        shown = read_summary(out_dir, label).scans
        same = sorted(map(_outcome, own)) == sorted(map(_outcome, shown))
        failed = any(record.status == "failed" for record in own)  # its log may be new
        if failed or not same or not page_path(out_dir, label).is_file():
            known = {scan.record.key: scan.record for scan in shown}
            complete = [complete_record(record, known.get(record.key)) for record in own]
            write_subject_page(out_dir, label, complete, viewer_mb=viewer_mb)
    return write_index_page(out_dir, subjects)


def _outcome(scan: Record | Shown) -> tuple[str, ...]:
    """Return what differs between two outcomes. Words of an enhanced scan do not count."""
    source, words = (
        (scan.input, scan.message) if isinstance(scan, Record) else (scan.record.input, scan.sentence)
    )
    return (scan.status, str(source), "" if scan.status == "enhanced" else words)


def rebuild(output_dir: Place, *, viewer_mb: float = VIEWER_MB) -> Path:
    """Write the pages of all subjects, of the data set, a training and a calibration again, from what is on
    disk.

    The summary beside the figures of a page has its records; scans without one are found by the names of
    their derivatives. If the work directory is gone, the spline is computed again, and without a brain mask
    the grey scale is set on the foreground. The folder may have been moved. Scans are looked for where
    ``DatasetLinks`` of the derivatives says.

    Parameters
    ----------
    output_dir
        Root of the derivatives.
    viewer_mb
        See `iqtflow.reports.assemble.subject.write_subject_page`.

    Returns
    -------
    Path
        ``index.html``; of an adaptation its page; if there is only a calibration, its page.

    Raises
    ------
    InputError
        The folder has nothing to make a page from.
    OutputError
        It cannot be written to.
    """
    output_dir = Path(output_dir).absolute()
    labels = sorted({*find_labels(output_dir), *labels_of_derivatives(output_dir)})
    models = sorted((output_dir / "models").glob("*.safetensors"))
    calibrated = (output_dir / output_name("prior")).is_file()
    if (output_dir / output_name("adaptation")).is_file():
        write_calibration_page(output_dir)
        return rewrite_adaptation_page(output_dir)
    if not labels and not models and not calibrated:
        raise InputError(
            output_dir,
            found="neither pages nor derivatives of iqtflow",
            expected="output of an earlier run",
            next_step="Give the output folder of a run, or run without this option first.",
        )
    for label in labels:
        write_subject_page(output_dir, label, find_records(output_dir, label), viewer_mb=viewer_mb)
    if models:  # the page shows the last one that was trained
        name = last_trained(models).stem
        write_training_page(output_dir, name, scans=find_evaluated(output_dir, name))
    if calibrated:
        page = write_calibration_page(output_dir)
        if not labels and not models:
            return page
    return write_index_page(output_dir, labels)


def last_trained(models: Sequence[Path]) -> Path:
    """Return the newest of the model files in a folder.

    The model of a fold does not count if its final model is there.

    :meta private:
    """
    final = [one for one in models if one.with_stem(one.stem.rpartition("_fold-")[0] or "-") not in models]
    return max(final, key=lambda model: (model.stat().st_mtime_ns, model.name))


def find_evaluated(output_dir: Path, model_name: str) -> list[Record]:
    """Return the evaluation scans of a model whose enhanced volume, simulated scan and truth are there."""
    found = []
    evaluated = output_dir / "models" / f"{model_name}_evaluation"
    for enhanced in sorted(evaluated.glob("sub-*_desc-iqt_T1w.nii.gz")):
        label = enhanced.name.split("_")[0].removeprefix("sub-")
        simulated = enhanced.name.replace("_desc-iqt_", "_desc-sim01_")
        for low in sorted((output_dir / f"sub-{label}").rglob(simulated)):
            truth = find_source(output_dir, low)
            mask = low.with_name(low.name.partition("_desc-sim01_")[0] + "_desc-brain_mask.nii.gz")
            if truth is not None:
                known = mask if mask.is_file() else None
                found.append(Record("enhanced", low, subject=label, truth=truth, mask=known))
    return found
