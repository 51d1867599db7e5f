"""The page and the card of an adaptation: what was measured, and the model before against the adapted one."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from iqtflow.bids.names import output_name
from iqtflow.reports.assemble import facts
from iqtflow.reports.assemble.group import Evaluated, find_examples
from iqtflow.reports.assemble.model_card import card_markdown, write_picture
from iqtflow.reports.assemble.page import render, write_page
from iqtflow.reports.draw.before_after import draw_before_after
from iqtflow.reports.record import Record
from iqtflow.reports.scanner_table import scanner_rows
from iqtflow.utils.errors import InputError
from iqtflow.utils.files import read_text

#: Measures: key, title, unit, decimals.
MEASURES = (("psnr", "PSNR", " dB", 2), ("mssim", "MSSIM", "", 4))
#: Style of the verdict on pages.
STYLES = {"better": "good", "uncertain": "warn", "not better": "bad"}
#: Pictures on the page.
MOST_PICTURES = 3


def write_adaptation_page(
    output_dir: str | os.PathLike,
    record: Mapping[str, Any],
    shown: Sequence[tuple[Record, Record]] = (),
) -> Path:
    """Write ``adapt.html``.

    Parameters
    ----------
    output_dir
        Root of the derivatives.
    record
        Content of ``adapt.json``.
    shown
        The scans of the record, enhanced by the model before and by the adapted one; without any, the
        pictures of an earlier page are kept.

    Returns
    -------
    Path
        The page.
    """
    output_dir = Path(output_dir).absolute()
    names = (record["before"], record["name"])
    files = {scan["scan"]: _picture_of(scan["scan"]) for scan in record["scans"]}
    for file, pair in list(zip(files.values(), shown, strict=False))[:MOST_PICTURES]:
        write_page(output_dir / file, draw_before_after(*pair, names))
    pictures = [(name, file) for name, file in files.items() if (output_dir / file).is_file()]
    html = render(
        "adapt.html",
        record=record,
        style=STYLES[record["comparison"]["verdict"]],
        tables=_tables(record),
        scans=[scan_row(scan) for scan in record["scans"]],
        scanner=scanner_rows(record["scanner"]) if record["scanner"] else [],
        pictures=pictures,
        calibration=output_name("calibration_page"),
        card=output_name("card", model=record["name"]),
        model=output_name("model", model=record["name"]),
        everything=facts.as_json(record),
    )
    return write_page(output_dir / output_name("adaptation_page"), html)


def rewrite_adaptation_page(output_dir: Path) -> Path:
    """Write ``adapt.html`` again from ``adapt.json``; pictures are kept.

    Raises
    ------
    InputError
        ``adapt.json`` cannot be read.
    """
    path = output_dir / output_name("adaptation")
    try:
        return write_adaptation_page(output_dir, json.loads(read_text(path)))
    except (ValueError, LookupError, TypeError, RecursionError) as fault:
        raise InputError(
            path,
            found=f"{type(fault).__name__}: {fault}",
            expected="the record that --mode adapt wrote",
            next_step="Run the group level of --mode adapt again.",
        ) from fault


def write_adapted_card(
    output_dir: Path,
    trained_dir: Path,
    record: Mapping[str, Any],
    evaluation: Sequence[Evaluated],
    scans: Sequence[Record],
) -> Path:
    """Write the card of the adapted model: that of any model, with the comparison.

    Parameters
    ----------
    output_dir, trained_dir
        Folders of the results and of the training.
    record
        Content of ``adapt.json``.
    evaluation, scans
        Scores and simulated scans of the evaluation people.

    Returns
    -------
    Path
        ``models/NAME.md``; the picture is beside it.
    """
    name = record["name"]
    examples = find_examples(trained_dir, name, scans)
    pictured = write_picture(output_dir / output_name("card_picture", model=name), examples, evaluation)
    remarks = "\n\n".join(
        [
            "## Adaptation",
            " ".join([record["sentence"], *record["notes"]]),
            *map(_as_markdown, _tables(record)),
        ]
    )
    text = card_markdown(
        output_dir / output_name("model", model=name), evaluation, pictured=pictured, remarks=remarks
    )
    return write_page(output_dir / output_name("card", model=name), text)


def comparison_table(
    record: Mapping[str, Any], measure: str, title: str, unit: str, decimals: int
) -> dict[str, Any]:
    """Return one measure as a table: title, header, a row for each person, and the means."""
    compared = record["comparison"]
    found = compared[measure]

    def cells(spline: float, before: float, after: float) -> list[str]:
        shown = [f"{value:.{decimals}f}" for value in (spline, before, after)]
        return [*shown, f"{after - before:+.{decimals}f}"]

    columns = [found[key] for key in ("spline", "before", "after")]
    rows = [
        [f"sub-{label}", *cells(*values)]
        for label, *values in zip(compared["subjects"], *columns, strict=True)
    ]
    means = [sum(column) / len(column) for column in columns]
    p = "" if found["p"] is None else f", Wilcoxon p = {found['p']:.2g}"
    return {
        "title": f"{title}{f' ({unit.strip()})' if unit else ''}",
        "header": ["person", "cubic spline", record["before"], record["name"], "gain"],
        "rows": rows,
        "foot": [["mean", *cells(means[0], means[1], means[2])]],
        "words": f"{title}: {found['gain']:+.{decimals}f}{unit} on average, better on {found['n_better']} of "
        f"{compared['n']}{p}.",
    }


def _picture_of(scan: str) -> str:
    return f"figures/adapt_{scan}.png"


def scan_row(scan: Mapping[str, Any]) -> list[str]:
    """Return the row of a scan of the site: residual and score, before and after."""

    def shown(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    pairs = (("residual", ".2f"), ("score", ".1f"))
    values = [shown(scan[when][key], form) for key, form in pairs for when in ("before", "after")]
    return [scan["scan"], *values]


def _tables(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [comparison_table(record, *measure) for measure in MEASURES]


def _as_markdown(table: Mapping[str, Any]) -> str:
    head = table["header"]
    lines = [head, ["---"] * len(head), *table["rows"], *table["foot"]]
    return f"{table['words']}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)
