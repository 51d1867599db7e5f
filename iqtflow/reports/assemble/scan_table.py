"""The scans of a data set as a table: for the index page, and as ``group_iqt.tsv`` with its dictionary."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from iqtflow.reports.ratings import Rating, result_mark
from iqtflow.reports.record import Shown, page_path, read_summary
from iqtflow.reports.verdict import Check, Verdict, judge, make_checks

NOT_KNOWN = "n/a"  #: as in BIDS
#: Verdict or status, words for it, and style of its badge; what needs attention is first.
GROUPS = (
    ("missing", "missing", "bad"),
    ("failed", "failed", "bad"),
    ("do not use", "do not use", "bad"),
    ("look closer", "look closer", "warn"),
    ("good", "good", "good"),
    ("prepared", "prepared", "prepared"),
    ("skipped", "skipped", "skipped"),
)


@dataclass(frozen=True)
class ScanRow:
    """One scan of the table. A subject of whom nothing was written has one row without a scan.

    Attributes
    ----------
    subject
        Label.
    shown
        What the summary of the subject's page says of the scan.
    checks, verdict
        Of an enhanced scan.
    mark
        `iqtflow.reports.ratings.result_mark`; empty if there is no result to rate.
    rating
        What a reader said of this result.
    has_page
        Whether the subject's page is there.
    """

    subject: str
    shown: Shown | None = None
    checks: Sequence[Check] = ()
    verdict: Verdict | None = None
    mark: str = ""
    rating: Rating | None = None
    has_page: bool = False

    @property
    def name(self) -> str:
        """Name of the scan, without extension."""
        return self.shown.title if self.shown else f"sub-{self.subject}"

    @property
    def status(self) -> str:
        """Status of the scan; ``missing`` without a scan."""
        return self.shown.status if self.shown else "missing"

    @property
    def trust(self) -> str:
        """Verdict on an enhanced scan, else the status."""
        return self.verdict.trust if self.verdict else self.status

    @property
    def reason(self) -> str:
        """Reason of the verdict, or what became of the scan."""
        if self.verdict:
            return self.verdict.reason
        if self.shown:
            return self.shown.sentence
        return "Nothing was written; the run may have been interrupted. Look in the logs folder."

    def figure(self, *keys: str) -> Any:
        """Return a value of the sidecar, or None."""
        value: Any = self.shown.record.details if self.shown else None
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value


@dataclass(frozen=True)
class Column:
    """A column of the table: name, entry of the data dictionary, and how the value is found.

    Attributes
    ----------
    name
        In ``group_iqt.tsv``.
    value
        Value for a scan; None if it is not known.
    description, units, levels
        For the data dictionary.
    title, form
        Heading on the page, and format of a number there. Columns without a title are not on the page, or
        have a place of their own.
    """

    name: str
    value: Callable[[ScanRow], Any]
    description: str
    units: str = ""
    levels: Mapping[str, str] = field(default_factory=dict)
    title: str = ""
    form: str = "{}"

    def number(self, row: ScanRow) -> float | int | None:
        """Return the value if it is a number. Sidecars that somebody has edited may have anything."""
        try:
            value = self.value(row)
        except (TypeError, ValueError, ArithmeticError, AttributeError):
            return None
        return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None

    def cell(self, row: ScanRow) -> str:
        """Return the value as the page shows it."""
        value = self.number(row)
        return "" if value is None else self.form.format(value)


def _places(kind: str) -> Callable[[ScanRow], Any]:
    def count(row: ScanRow) -> int | None:
        places = row.figure("DataConsistency", "Places")
        return None if places is None else sum(kind in ("", place["Kind"]) for place in places)

    return count


def _white_matter_change(row: ScanRow) -> float | None:
    ratio = row.figure("WhiteMatter", "ScanOverEstimate")
    return None if not ratio else 100 / float(ratio) - 100


#: Figures of the sidecars, in the order of the table.
FIGURES = (
    Column(
        "residual_rms",
        lambda row: row.figure("DataConsistency", "ResidualRMS"),
        "How much the enhanced volume, averaged again over the thick slices of the scan, differs from the "
        "acquired slices: root mean square in the brain, in standard deviations of the scan's noise. 1 is "
        "expected",
        title="Residual (× noise)",
        form="{:.1f}",
    ),
    Column(
        "places",
        _places(""),
        "Number of places where the enhanced volume differs from the acquired slices",
        title="Places",
        form="{:d}",
    ),
    Column(
        "places_missing",
        _places("missing"),
        "Of these, places that were acquired but are missing in the enhanced volume",
    ),
    Column(
        "places_unsupported",
        _places("unsupported"),
        "Of these, places in the enhanced volume that the acquired slices do not support",
    ),
    Column(
        "unchecked_share",
        lambda row: row.figure("DataConsistency", "UncheckedShare"),
        "Share of the enhanced volume that lies in gaps between the slices, 0 to 1",
    ),
    Column(
        "ood_score",
        lambda row: row.figure("OutOfDistribution", "Score"),
        "How far the scan differs from the training scans; they have at most 1",
        title="Out-of-distribution score",
        form="{:.1f}",
    ),
    Column(
        "ood_threshold",
        lambda row: row.figure("OutOfDistribution", "Threshold"),
        "Value of ood_score above which the scan counts as unlike the training scans",
    ),
    Column(
        "white_matter_change",
        _white_matter_change,
        "Change of the intensity of white matter by the network, before it was corrected",
        units="percent",
        title="White matter change (%)",
        form="{:+.0f}",
    ),
    Column(
        "white_matter_factor",
        lambda row: row.figure("WhiteMatter", "Factor"),
        "Factor that the enhanced volume was multiplied by, so that white matter keeps its intensity",
    ),
    Column(
        "alternating_share",
        lambda row: row.figure("SliceIntensity", "AlternatingShare"),
        "Relative difference of intensity between odd and even slices",
    ),
    Column(
        "seconds",
        lambda row: row.figure("Seconds"),
        "Time for enhancing the scan",
        units="s",
        title="Time (s)",
        form="{:.0f}",
    ),
)

COLUMNS = (
    Column("participant_id", lambda row: f"sub-{row.subject}", "Subject"),
    Column("scan", lambda row: row.name, "Name of the scan, without extension"),
    Column(
        "status",
        lambda row: row.status,
        "What was done with the scan",
        levels={
            "enhanced": "There is an enhanced volume",
            "prepared": "There are tissue maps and simulated scans for training",
            "skipped": "The scan was not processed; the reason says why",
            "failed": "The scan was not processed because of an error; the reason says which",
            "missing": "Nothing was written for the subject",
        },
    ),
    Column(
        "trust",
        lambda row: row.verdict and row.verdict.trust,
        "Verdict of the automatic checks on the enhanced volume",
        levels={
            "good": "No check failed",
            "look closer": "A check failed or could not be made; the reason says which",
            "do not use": "A check failed by far; the reason says which",
        },
    ),
    Column("reason", lambda row: row.reason, "The reason for the verdict or the status"),
    *FIGURES,
    Column("model", lambda row: row.figure("Model", "Name"), "Model that enhanced the scan"),
    Column(
        "rating",
        lambda row: row.rating and row.rating.rating,
        "Rating by a reader, from ratings.tsv",
        levels={
            "pass": "The enhanced volume can be used",
            "doubt": "The reader is not sure",
            "fail": "The enhanced volume must not be used",
        },
    ),
    Column("note", lambda row: row.rating and row.rating.note, "Note of the reader, from ratings.tsv"),
)


def collect_scans(
    output_dir: Path, labels: Iterable[str], ratings: Mapping[str, Rating]
) -> tuple[list[ScanRow], list[str]]:
    """Read the scans of a data set from the summaries of its pages.

    Parameters
    ----------
    output_dir
        Root of the derivatives.
    labels
        Of the subjects.
    ratings
        `iqtflow.reports.ratings.read_ratings`.

    Returns
    -------
    rows : list of ScanRow
        Sorted by what needs attention first, then by name.
    faults : list of str
        Ratings that belong to no row, in sentences.
    """
    rows = []
    for label in labels:
        has_page = page_path(output_dir, label).is_file()
        scans = read_summary(output_dir, label).scans
        rows += [_read_row(label, scan, ratings, has_page=has_page) for scan in scans]
        if not scans:
            rows.append(ScanRow(label, has_page=has_page))
    order = [trust for trust, *_ in GROUPS]
    rows.sort(key=lambda row: (order.index(row.trust), row.name))
    marks = {row.name: row.mark for row in rows if row.mark}
    faults = [
        f"{name}: the rating is of another result of this scan. Rate it again."
        if name in marks
        else f"{name}: there is no result of this scan."
        for name, rating in ratings.items()
        if rating.result not in ("", marks.get(name)) or name not in marks
    ]
    return rows, faults


def _read_row(label: str, scan: Shown, ratings: Mapping[str, Rating], *, has_page: bool) -> ScanRow:
    mark = result_mark(scan.record.details) if scan.status in ("enhanced", "prepared") else ""
    checks = make_checks(scan.record)
    rating = ratings.get(scan.title) if mark else None
    if rating and rating.result not in ("", mark):
        rating = None
    verdict = judge(checks) if scan.status == "enhanced" else None
    return ScanRow(label, scan, checks, verdict, mark, rating, has_page)


def as_tsv(rows: Sequence[ScanRow]) -> str:
    """Return the table as tab-separated text, with the columns `COLUMNS`."""
    stream = io.StringIO()
    writer = csv.writer(stream, delimiter="\t", lineterminator="\n")
    writer.writerow([column.name for column in COLUMNS])
    for row in rows:
        cells = [column.number(row) if column in FIGURES else column.value(row) for column in COLUMNS]
        writer.writerow([_plain(cell) for cell in cells])
    return stream.getvalue()


def _plain(value: Any) -> str:
    if value is None or value == "":
        return NOT_KNOWN
    return f"{value:.6g}" if isinstance(value, float) else " ".join(str(value).split())


def data_dictionary() -> str:
    """Return the description of the columns as JSON, as in BIDS."""
    described = {
        column.name: {
            "Description": column.description,
            **({"Units": column.units} if column.units else {}),
            **({"Levels": dict(column.levels)} if column.levels else {}),
        }
        for column in COLUMNS
    }
    return json.dumps(described, indent=2) + "\n"
