"""The page of a training, ``group.html``: curves, scores of each unseen subject, and the best, the median and
the worst example.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from iqtflow.bids.names import output_name
from iqtflow.models.card import Card
from iqtflow.models.model_file import read_card
from iqtflow.reports.assemble import facts
from iqtflow.reports.assemble.page import bare_label, render, write_page
from iqtflow.reports.assemble.training_checks import check_training
from iqtflow.reports.draw import pictures, plots
from iqtflow.reports.draw.enhanced import make_scene
from iqtflow.reports.draw.slices import PlaneDrawer, Rung, planes_in_order
from iqtflow.reports.draw.volumes import load_volumes
from iqtflow.reports.record import Place, Record
from iqtflow.reports.verdict import judge
from iqtflow.utils.errors import InputError

#: Titles and definitions of measures.
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
        "the code of the method’s authors. Its values are higher: never compare them with the other MSSIM.",
    ),
}
DECIMALS = {"psnr": 2}
#: Measures that the verdict is made of.
CHECKED = {"psnr": "PSNR", "mssim": "MSSIM"}

Scores = Mapping[str, float]


@dataclass
class Evaluated:
    """Scores of one unseen subject: of the spline, of the mean of the networks, and of each network alone.

    In a cross-validation also its fold.
    """

    subject: str
    spline: Scores = field(default_factory=dict)
    mean: Scores = field(default_factory=dict)
    members: list[Scores] = field(default_factory=list)
    fold: int | None = None


def write_training_page(output_dir: Place, model_name: str, *, scans: Sequence[Record] = ()) -> Path:
    """Write ``group.html`` from the model, its curves and ``group_metrics.tsv``.

    Parameters
    ----------
    output_dir
        Root of the derivatives.
    model_name
        Name of the model under ``models``.
    scans
        Evaluation scans, if any, with ``subject``, ``truth``, ``mask`` and ``input``; the latter is called
        ``..._desc-sim01_T1w.nii.gz``.

    Returns
    -------
    Path
        The page.
    """
    output_dir = Path(output_dir)
    card = read_card(output_dir / output_name("model", model=model_name))
    files = sorted(output_dir.glob(str(output_name("curves", model=model_name, member="*"))))
    curves = {path.stem.removeprefix(f"{model_name}_").removesuffix("_curves"): path for path in files}
    return write_group_page(
        output_dir,
        model_name,
        card=card,
        curves=curves,
        evaluation=read_metrics(output_dir / output_name("metrics")) if scans else (),
        examples=find_examples(output_dir, model_name, scans),
    )


def find_examples(output_dir: Path, model_name: str, scans: Sequence[Record]) -> list[Record]:
    """Return evaluation scans with their stored spline and enhanced volume (``spline``, ``output``)."""
    examples = []
    for scan in scans:
        stem = Path(scan.input or "").name.partition("_desc-sim01_")[0]
        spline, enhanced = (
            output_dir / output_name("example", model=model_name, stem=stem, desc=desc)
            for desc in ("spline", "iqt")
        )
        examples.append(replace(scan, spline=spline, output=enhanced))
    return examples


def write_group_page(
    out_dir: Place,
    name: str,
    *,
    card: Card | None = None,
    curves: Mapping[str, Place] | None = None,
    evaluation: Sequence[Evaluated] = (),
    examples: Sequence[Record] = (),
    convention: str = "radiological",
) -> Path:
    """Write the page of a training.

    Parameters
    ----------
    out_dir
        Derivatives folder; gets ``group.html`` and ``figures/group_*``.
    name
        Of the model.
    card
        All that was recorded of the model, its standard deviation against the true error included.
    curves
        For each network a CSV file with the columns step, train_loss, val_loss.
    evaluation
        Scores of each unseen subject.
    examples
        Enhanced scans of unseen subjects: ``subject``, ``output``, ``spline``, ``truth``; ``input`` and
        ``mask`` are optional.
    convention
        ``radiological`` or ``neurological``.

    Returns
    -------
    Path
        ``group.html``.

    Raises
    ------
    InputError
        A file of curves lacks a column, or the subjects have different measures.
    """
    out_dir = Path(out_dir).absolute()
    files: dict[str, bytes] = {}

    def add(file: str, plot: tuple[bytes, str]) -> pictures.Picture:
        return pictures.keep(files, f"group_{file}.svg", *plot)

    folds, written = _fold_table(evaluation), output_name("card", model=name)
    reliability = card.evaluation.get("reliability") if card else None
    read = {network: read_curves(path) for network, path in (curves or {}).items()}
    tables = [_metric_table(evaluation, metric) for metric in _metrics(evaluation)]
    checks = check_training(
        {
            CHECKED[t["metric"]]: (t["columns"]["IQT"], t["columns"]["spline"])
            for t in tables
            if t["metric"] in CHECKED
        },
        reliability,
    )
    html = render(
        "group.html",
        name=name,
        k=card.get("k") if card else None,
        checks=checks,
        verdict=judge(checks),
        curves=add("curves", plots.training_curves(read)) if read else None,
        n_curves=len(read),
        tables=tables,
        overview=[t["overview"] for t in tables],
        boxes=[add(t["metric"], plots.paired_boxes(t["columns"], t["title"])) for t in tables],
        n_subjects=len(evaluation),
        folds=folds,
        uncertainty=card.uncertainty() if reliability and card else None,
        reliability=reliability and add("reliability", plots.reliability_curve(reliability)),
        reliability_n=reliability and reliability["n"],
        reliability_rows=reliability and plots.reliability_rows(reliability),
        examples=[
            _example(rank, gain, example, files, convention)
            for rank, gain, example in rank_examples(examples, evaluation)
        ],
        convention=convention,
        colours=pictures.legend_colours(),
        facts=facts.card_tables(card) if card else {},
        card=facts.as_json(card) if card else "",
        card_file=written.as_posix() if (out_dir / written).is_file() else "",
    )
    for file, content in files.items():
        write_page(out_dir / "figures" / file, content)
    return write_page(out_dir / output_name("group_page"), html)


def read_curves(path: Place) -> dict[str, np.ndarray]:
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
        return {name: np.array([float(row[name] or "nan") for row in rows]) for name in wanted}
    except (TypeError, ValueError) as fault:
        raise InputError(
            path, found=str(fault), expected="numbers", next_step="Give the curves that training wrote."
        ) from fault


def rank_examples(
    examples: Sequence[Record], evaluation: Sequence[Evaluated]
) -> list[tuple[str, float | None, Record]]:
    """Choose the subjects with the largest, the median and the smallest gain in PSNR over the spline.

    Returns
    -------
    list of (rank in words, gain in dB or None, example)
        Fewer than three if there are fewer; examples without scores are last.
    """
    gains = {e.subject: e.mean["psnr"] - e.spline["psnr"] for e in evaluation if "psnr" in e.mean}
    known = sorted((e for e in examples if e.subject in gains), key=lambda e: -gains[e.subject])
    places = {len(known) - 1: "Worst", 0: "Best"} if known else {}
    if len(known) > 2:
        places[len(known) // 2] = "Median"
    ranked: list[tuple[str, float | None, Record]] = [
        (places[i], gains[known[i].subject], known[i]) for i in sorted(places)
    ]
    others = [("Example", None, e) for e in examples if e.subject not in gains]
    return ranked + others[: 3 - len(ranked)]


def _metrics(evaluation: Sequence[Evaluated]) -> list[str]:
    """Return the names of the measures, which must be the same for all subjects."""
    if not evaluation:
        return []
    names, members = list(evaluation[0].mean), len(evaluation[0].members)
    for row in evaluation:
        if list(row.mean) != names or not set(names) <= set(row.spline) or len(row.members) != members:
            raise InputError(
                f"evaluation of {row.subject}",
                found="other measures or another number of networks than the first subject has",
                expected=", ".join(names) + f" for {members} networks",
                next_step="Evaluate all subjects in the same way.",
            )
    return names


def _metric_table(evaluation: Sequence[Evaluated], metric: str) -> dict[str, Any]:
    """Return one measure: a column for each method, a row for each subject, and IQT against the spline."""
    from iqtflow.evaluation.metrics import wilcoxon

    columns = {"spline": [row.spline[metric] for row in evaluation]}
    members = len(evaluation[0].members)
    if members > 1:  # a single network is the mean
        columns |= {f"net {i + 1}": [row.members[i][metric] for row in evaluation] for i in range(members)}
    columns["IQT"] = [row.mean[metric] for row in evaluation]
    gain = np.subtract(columns["IQT"], columns["spline"])
    values = [*columns.values(), gain]
    digits = DECIMALS.get(metric, 4)
    rows = [
        [
            row.subject if row.fold is None else f"{row.subject} (fold {row.fold})",
            *(f"{column[i]:.{digits}f}" for column in values),
        ]
        for i, row in enumerate(evaluation)
    ]
    foot = [["mean", *(f"{np.mean(column):.{digits}f}" for column in values)]]
    n, p = len(evaluation), ""
    if n > 1:  # one subject has no spread and cannot be tested
        foot.append(["SD", *(f"{np.std(column, ddof=1):.{digits}f}" for column in values)])
        n, _, found = wilcoxon(columns["IQT"], columns["spline"])
        p = f"{found:.2g}"
    ensemble = ""
    if members > 1:
        means = np.mean([columns[f"net {i + 1}"] for i in range(members)], axis=1)
        best, middle, worst = (f"{value:.{digits}f}" for value in (means.max(), means.mean(), means.min()))
        ensemble = f"The networks alone: best {best}, mean {middle}, worst {worst}."
    title, definition = MEASURES.get(metric, (metric, ""))
    return {
        "metric": metric,
        "title": title,
        "definition": definition,
        "columns": columns,
        "header": ["subject", *columns, "gain"],
        "rows": rows,
        "foot": foot,
        "overview": [title, *_overview(columns["spline"], columns["IQT"], gain, digits), str(n), p or "–"],
        "n": n,
        "p": p,
        "better": int((gain > 0).sum()),
        "ensemble": ensemble,
    }


def _fold_table(evaluation: Sequence[Evaluated]) -> dict[str, Any] | None:
    """Return a row for each fold of a cross-validation: its subjects, and means of the main measures; None
    without folds.
    """
    numbers = sorted({row.fold for row in evaluation if row.fold is not None})
    if not numbers:
        return None
    measures = [metric for metric in _metrics(evaluation) if metric in CHECKED]
    rows = []
    for number in numbers:
        members = [row for row in evaluation if row.fold == number]
        cells = [str(number), str(len(members))]
        for metric in measures:
            spline, iqt = (np.mean([getattr(row, m)[metric] for row in members]) for m in ("spline", "mean"))
            digits = DECIMALS.get(metric, 4)
            cells += [f"{spline:.{digits}f}", f"{iqt:.{digits}f}", f"{iqt - spline:+.{digits}f}"]
        rows.append(cells)
    heads = [f"{CHECKED[metric]} {what}" for metric in measures for what in ("spline", "IQT", "gain")]
    return {"n": len(numbers), "header": ["fold", "subjects", *heads], "rows": rows}


def _overview(spline: Sequence[float], iqt: Sequence[float], gain: np.ndarray, digits: int) -> list[str]:
    """Return mean ± SD of both methods, and mean gain with its range, as cells of a table."""

    def spread(values: Sequence[float]) -> str:
        text = f"{np.mean(values):.{digits}f}"
        return text if len(values) < 2 else f"{text} ± {np.std(values, ddof=1):.{digits}f}"

    smallest, mean, largest = (f"{v:+.{digits}f}" for v in (gain.min(), np.mean(gain), gain.max()))
    better = f"{int((gain > 0).sum())} of {len(gain)}"
    return [spread(spline), spread(iqt), mean, f"{smallest} … {largest}", better]


def _example(
    rank: str, gain: float | None, example: Record, files: dict[str, bytes], convention: str
) -> dict[str, Any]:
    """Draw truth, spline, enhanced volume, and both errors on one scale, in a plane across the slices."""
    volumes, subject = load_volumes(example), bare_label(example.subject)
    if volumes.truth is None:
        raise InputError(
            example.truth or f"example {subject}",
            found="no truth",
            expected="the high-field scan that the network did not see",
            next_step="Leave this example out, or give its truth.",
        )
    scene = make_scene(volumes, f"group_{rank.split()[0].lower()}-{subject}", convention)
    plane = planes_in_order(volumes)[0]
    drawer = PlaneDrawer(scene, plane, files, Rung(1, 480, 86), file="{name}", text_px=24)
    shown = (
        ("truth", "Truth", drawer.grey(volumes.truth)),
        ("spline", "Spline", drawer.grey(volumes.before)),
        ("iqt", "IQT", drawer.grey(volumes.after)),
        ("errspline", "Error of spline", drawer.error(volumes.before)),
        ("erriqt", "Error of IQT", drawer.error(volumes.after)),
    )
    return {
        "rank": rank,
        "gain": gain,
        "subject": subject,
        "plane": plane.name,
        "place": drawer.places[0],
        "pictures": [
            (tag, drawer.sheet(name, frames, f"{tag} of sub-{subject}")) for name, tag, frames in shown
        ],
        "top_percent": 100 * scene.error_top / (volumes.window[1] - volumes.window[0]),
    }


def read_metrics(path: Place) -> list[Evaluated]:
    """Read the scores of each subject from ``group_metrics.tsv``."""
    found: dict[str, Evaluated] = {}
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            label, method = row.pop("participant_id").removeprefix("sub-"), row.pop("method")
            fold = row.pop("fold", None)
            one = found.setdefault(label, Evaluated(label, fold=int(fold) if fold else None))
            scores = {name: float(value) for name, value in row.items()}
            if method.startswith("member-"):
                one.members.append(scores)
            elif method in ("spline", "iqt"):
                setattr(one, {"iqt": "mean"}.get(method, method), scores)
    return [one for one in found.values() if one.spline and one.mean]
