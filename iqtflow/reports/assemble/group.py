"""The page of a training: ``group.html`` with curves, evaluation by subject, and examples best, median and
worst.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from iqtflow.reports.assemble import facts
from iqtflow.reports.assemble.page import bare_label, render, write_page
from iqtflow.reports.draw import pictures, plots
from iqtflow.reports.draw.reliability_plot import reliability_curve, reliability_rows
from iqtflow.reports.draw.views import PLANES, choose_slices, crop_box, cut, load_volumes, position_label
from iqtflow.utils.errors import InputError

#: Titles of measures, and what tells them from others of the same name.
MEASURES = {
    "psnr": (
        "PSNR (dB)",
        "Peak signal-to-noise ratio within the brain; the peak is the truth’s maximum there.",
    ),
    "mssim": (
        "MSSIM, Wang 2004 in 3-D",
        "Mean structural similarity within the brain, three-dimensional Gaussian window of 1.5 voxels (σ).",
    ),
    "mssim_slicewise": (
        "MSSIM, slice by slice (authors’ code)",
        "Mean structural similarity slice by slice, two-dimensional Gaussian window of 2.5 pixels (σ), as in "
        "the code of the method’s authors. It is another measure than the other MSSIM, and higher: never "
        "compare the two.",
    ),
}
DECIMALS = {"psnr": 2}

Scores = Mapping[str, float]


def write_group_page(
    out_dir: str | os.PathLike, summary: Mapping[str, Any], *, convention: str = "radiological"
) -> Path:
    """Write the page of a trained ensemble.

    Parameters
    ----------
    out_dir
        Derivatives folder; gets ``group.html`` and ``figures/group_*``.
    summary
        ``name`` of the model and its up-scaling factor ``k``;
        ``card``, mapping with everything recorded of the model;
        ``curves``, ``{member: path of a CSV with the columns step, train_loss, val_loss}``; ``evaluation``,
        one mapping per subject never trained on: ``subject``, ``spline``, ``mean`` (scores of the averaged
        image) and ``members`` (a list), each score a mapping such as ``{"psnr": dB, "mssim": ...}``;
        ``examples``, one mapping per subject with paths: ``subject``, ``truth``, ``spline``, ``iqt``, and
        ``input``, ``mask`` if at hand; ``reliability`` of the standard deviation maps, as
        `iqtflow.evaluation.uncertainty_calibration.summarise_reliability` returns it, and ``uncertainty``,
        their kind; ``notes``, sentences for the top of the page. All but ``name`` may be left out.
    convention
        ``radiological`` or ``neurological``.

    Returns
    -------
    Path
        ``group.html``.

    Raises
    ------
    InputError
        A file of curves lacks a column, or evaluation subjects differ in what was measured.
    """
    out_dir = Path(out_dir).absolute()
    files: dict[str, bytes] = {}

    def add(name: str, content: bytes, alt: str) -> pictures.Picture:
        return pictures.keep(files, f"group_{name}", content, alt)

    curves = {str(name): read_curves(path) for name, path in (summary.get("curves") or {}).items()}
    evaluation = list(summary.get("evaluation") or ())
    tables = [_metric_table(evaluation, metric) for metric in _metrics(evaluation)]
    boxes = []
    for table in tables:
        boxes.append(add(f"{table['metric']}.svg", *plots.paired_boxes(table["columns"], table["title"])))
    reliability = summary.get("reliability")
    html = render(
        "group.html",
        name=str(summary.get("name", "model")),
        k=summary.get("k"),
        notes=[str(n) for n in summary.get("notes") or ()],
        curves=add("curves.svg", *plots.training_curves(curves)) if curves else None,
        n_curves=len(curves),
        tables=tables,
        boxes=boxes,
        overview=[
            [t["title"], *t["overview"], str(t["n"]), t["p"] or "one subject cannot be tested"]
            for t in tables
        ],
        n_subjects=len(evaluation),
        reliability=None
        if not reliability
        else {
            "n": reliability["n"],
            "kind": summary.get("uncertainty"),
            "picture": add("reliability.svg", *reliability_curve(reliability)),
            "rows": reliability_rows(reliability),
        },
        examples=[
            _example(rank, gain, example, add, convention)
            for rank, gain, example in rank_examples(summary.get("examples") or (), evaluation)
        ],
        convention=convention,
        colours=pictures.legend_colours(),
        facts=facts.fact_tables(summary.get("card") or {}, facts.CARD_TABLES),
        card=facts.as_json(summary["card"]) if summary.get("card") else "",
    )
    for name, content in files.items():
        write_page(out_dir / "figures" / name, content)
    return write_page(out_dir / "group.html", html)


def read_curves(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Read training curves; a field that is empty (validation is not run at every step) becomes NaN.

    Returns
    -------
    dict
        ``step``, ``train_loss``, ``val_loss``: float arrays of one length.

    Raises
    ------
    InputError
        A column is missing, or a field is not a number.
    """
    wanted = ("step", "train_loss", "val_loss")
    with open(path, newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    missing = [name for name in wanted if not rows or name not in rows[0]]
    if missing:
        raise InputError(
            path,
            found="no " + " and no ".join(missing),
            expected="the columns " + ", ".join(wanted) + " and at least one row",
            next_step="Give the curves that training wrote.",
        )
    try:
        return {
            name: np.array([float(row[name]) if row[name] else np.nan for row in rows]) for name in wanted
        }
    except (TypeError, ValueError) as fault:
        raise InputError(
            path, found=str(fault), expected="numbers", next_step="Give the curves that training wrote."
        ) from fault


def rank_examples(
    examples: Sequence[Mapping[str, Any]], evaluation: Sequence[Mapping[str, Any]]
) -> list[tuple[str, float | None, Mapping[str, Any]]]:
    """Choose the subjects with the largest, the median and the smallest gain in PSNR over the spline.

    Returns
    -------
    list of (rank in words, gain in dB or None, example)
        Fewer than three when there are fewer; examples without scores follow unranked.
    """
    gains = {
        str(row["subject"]): row["mean"]["psnr"] - row["spline"]["psnr"]
        for row in evaluation
        if "psnr" in row["mean"]
    }
    known = sorted(
        (e for e in examples if str(e["subject"]) in gains), key=lambda e: -gains[str(e["subject"])]
    )
    places = {len(known) - 1: "Worst", 0: "Best"} if known else {}
    if len(known) > 2:
        places[len(known) // 2] = "Median"
    ranked = [(places[i], gains[str(known[i]["subject"])], known[i]) for i in sorted(places)]
    return (
        ranked + [("Example", None, e) for e in examples if str(e["subject"]) not in gains][: 3 - len(ranked)]
    )


def _metrics(evaluation: Sequence[Mapping[str, Any]]) -> list[str]:
    if not evaluation:
        return []
    names = list(evaluation[0]["mean"])
    members = len(evaluation[0].get("members") or ())
    for row in evaluation:
        if (
            list(row["mean"]) != names
            or any(name not in row["spline"] for name in names)
            or len(row.get("members") or ()) != members
        ):
            raise InputError(
                f"evaluation of {row['subject']}",
                found="other measures or another number of networks than the first subject has",
                expected=", ".join(names) + f" for {members} networks",
                next_step="Evaluate all subjects in the same way.",
            )
    return names


def _metric_table(evaluation: Sequence[Mapping[str, Any]], metric: str) -> dict[str, Any]:
    """One measure: a column per method, a row per subject, and the averaged image against the spline."""
    from iqtflow.evaluation.metrics import wilcoxon

    columns = {"spline": [row["spline"][metric] for row in evaluation]}
    members = len(evaluation[0].get("members") or ())
    if members > 1:  # a single network is the averaged image
        columns |= {f"net {i + 1}": [row["members"][i][metric] for row in evaluation] for i in range(members)}
    columns["IQT"] = [row["mean"][metric] for row in evaluation]
    gain = np.subtract(columns["IQT"], columns["spline"])
    values = [*columns.values(), gain]
    digits = DECIMALS.get(metric, 4)
    rows = [
        [str(row["subject"]), *(f"{column[i]:.{digits}f}" for column in values)]
        for i, row in enumerate(evaluation)
    ]
    foot = [["mean", *(f"{np.mean(column):.{digits}f}" for column in values)]]
    n, p = len(evaluation), None
    if n > 1:  # one subject has no spread and cannot be tested
        foot.append(["SD", *(f"{np.std(column, ddof=1):.{digits}f}" for column in values)])
        n, _, p = wilcoxon(columns["IQT"], columns["spline"])
    ensemble = ""
    if members > 1:
        means = np.mean([columns[f"net {i + 1}"] for i in range(members)], axis=1)
        best, middle, worst = (f"{value:.{digits}f}" for value in (means.max(), means.mean(), means.min()))
        ensemble = f"The networks alone: best {best}, mean {middle}, worst {worst}."
    return {
        "metric": metric,
        "title": MEASURES.get(metric, (metric, ""))[0],
        "definition": MEASURES.get(metric, (metric, ""))[1],
        "columns": columns,
        "header": ["subject", *columns, "gain"],
        "rows": rows,
        "foot": foot,
        "overview": _overview(columns["spline"], columns["IQT"], gain, digits),
        "n": n,
        "p": None if p is None else f"{p:.2g}",
        "better": int((gain > 0).sum()),
        "ensemble": ensemble,
    }


def _overview(spline: Sequence[float], iqt: Sequence[float], gain: np.ndarray, digits: int) -> list[str]:
    """Mean ± SD of both methods, and mean gain with its range, as cells of a table."""

    def spread(values: Sequence[float]) -> str:
        text = f"{np.mean(values):.{digits}f}"
        return text if len(values) < 2 else f"{text} ± {np.std(values, ddof=1):.{digits}f}"

    return [
        spread(spline),
        spread(iqt),
        f"{np.mean(gain):+.{digits}f}",
        f"{gain.min():+.{digits}f} … {gain.max():+.{digits}f}",
        f"{int((gain > 0).sum())} of {len(gain)}",
    ]


def _example(
    rank: str, gain: float | None, example: Mapping[str, Any], add: Any, convention: str
) -> dict[str, Any]:
    """Truth, spline, estimate, and both errors on one scale, in the first plane that crosses the slices."""
    volumes = load_volumes({**example, "output": example["iqt"]})
    if volumes.truth is None:
        raise InputError(
            example.get("truth") or f"example {example['subject']}",
            found="no truth",
            expected="the image that was hidden from the network",
            next_step="Leave this example out, or give its truth.",
        )
    plane = next(p for p in PLANES.values() if p.normal != volumes.slice_axis)
    index = choose_slices(volumes.mask, plane, 1)[0]
    box = crop_box(volumes, plane, convention=convention)
    top = max(float(np.percentile(np.abs(volumes.before - volumes.truth)[volumes.mask], 98)), 1e-6)
    truth, before, after = (
        cut(d, plane, index, convention=convention)[box]
        for d in (volumes.truth, volumes.before, volumes.after)
    )
    shown = (
        ("truth", "Truth", pictures.to_grey(truth, volumes.window)),
        ("spline", "Spline", pictures.to_grey(before, volumes.window)),
        ("iqt", "IQT", pictures.to_grey(after, volumes.window)),
        ("errspline", "Error of spline", pictures.to_colour(np.abs(before - truth), top)),
        ("erriqt", "Error of IQT", pictures.to_colour(np.abs(after - truth), top)),
    )
    size = pictures.picture_size(truth.shape, volumes.pixel_mm(plane), 480)
    found = []
    for key, tag, picture in shown:
        drawn = pictures.mark(pictures.enlarge(picture, size), sides=plane.sides(convention), text_px=24)
        name = f"{rank.split()[0].lower()}-{bare_label(example['subject'])}_{key}.webp"
        found.append(
            (
                tag,
                add(
                    name,
                    pictures.encode(drawn, 86),
                    f"{tag} of subject {example['subject']}, one {plane.name} slice.",
                ),
            )
        )
    span = volumes.window[1] - volumes.window[0]
    return {
        "rank": rank,
        "gain": gain,
        "subject": str(example["subject"]),
        "plane": plane.name,
        "place": position_label(volumes, plane, index),
        "pictures": found,
        "top_percent": 100 * top / span,
    }
