"""Tables from the finished cells. No number is typed by hand; the paper's values are in the design."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.paper.claims import LEVEL, Scores, compare, judge, spread
from benchmarks.paper.design import Cell, Design
from iqtflow.utils.files import write_text

if TYPE_CHECKING:  # benchmarks/gpu_grid.py runs without nibabel
    from benchmarks.paper.run import Place

MEASURES = {"psnr": "PSNR (dB)", "mssim": "MSSIM, 3-D", "mssim_slicewise": "MSSIM, slice-wise"}
DIGITS = {"psnr": 2, "mssim": 3, "mssim_slicewise": 3}


@dataclass(frozen=True)
class Results:
    """Values of the finished cells, by name of the cell, measure and subject.

    `seeds` has the mean over the subjects for each network of a cell that has several.
    """

    design: Design
    figures: Mapping[str, Mapping[str, Scores]]
    seeds: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)

    def get(self, cell: Cell) -> Mapping[str, Scores] | None:
        """Return the values of a cell; None if it was not run."""
        return self.figures.get(self.home(cell))

    def home(self, cell: Cell) -> str:
        """Return the name of the cell that was run for a cell."""
        return self.design.homes.get(cell.name, cell.name)

    def rivals(self, cell: Cell) -> list[Cell]:
        """Return the cells with which a cell is compared for an asterisk, by the rule of its table."""
        table = next(t for t in self.design.tables if t["id"] == cell.table)
        others = [c for c in self.design.cells if (c.table, c.k) == (cell.table, cell.k) and c != cell]
        if table["compare"] == "method":
            return [c for c in others if c.method == cell.method]
        if table["compare"] == "reference":
            first = next(
                c for c in self.design.cells if (c.table, c.k) == (cell.table, cell.k) and c.is_trained
            )
            return [] if cell is first or not cell.is_trained else [first]
        return others


def read_results(design: Design, place: Place, *, statistic: str = "averaged") -> Results:
    """Read the values of all finished cells.

    The values of the spline come from the evaluation of any network on the same scans.
    """
    figures: dict[str, dict[str, Scores]] = {}
    seeds: dict[str, dict[str, list[float]]] = {}
    for cell in design.cells:
        table = place.cell(cell) / "group_metrics.tsv"
        if not cell.is_trained or not place.state(cell.name).exists() or not table.exists():
            continue
        with open(table, newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream, delimiter="\t"))
        figures[cell.name] = {m: _choose(rows, m, statistic) for m in MEASURES}
        seeds[cell.name] = {m: [_mean(scores) for scores in _members(rows, m)] for m in MEASURES}
        for spline in design.cells:
            same = (spline.k, spline.evaluation) == (cell.k, cell.evaluation)
            if same and not spline.is_trained and spline.name not in figures:
                figures[spline.name] = {
                    m: _by_subject(rows, m, lambda name: name == "spline") for m in MEASURES
                }
    return Results(design, figures, seeds)


def write_report(design: Design, place: Place, *, statistic: str = "averaged") -> str:
    """Write ``results.md`` and ``results.tsv`` (values of each subject); return the text of the first."""
    results = read_results(design, place, statistic=statistic)
    parts = [f"# {design.fields['title']}\n", describe(design, place, statistic=statistic)]
    for table in design.tables:
        for k in design.fields["factors"]:
            cells = [c for c in design.cells if (c.table, c.k) == (table["id"], k)]
            parts.append(
                f"## Table {table['id']}, k = {k}. {table['title']}\n\n{format_table(results, cells)}\n"
            )
    parts.append("## What the paper claims\n\n" + "\n".join(judge(results)) + "\n")
    text = "\n".join(parts)
    write_text(place.output_dir / "results.md", text)
    lines = ["\t".join(["table", "row", "k", "participant_id", *MEASURES])]
    for cell in design.cells:
        found = results.get(cell)
        for subject in sorted(found["psnr"]) if found else ():
            values = (f"{found[m][subject]:.4f}" for m in MEASURES)
            lines.append("\t".join([cell.table, cell.row, str(cell.k), subject, *values]))
    write_text(place.output_dir / "results.tsv", "\n".join(lines) + "\n")
    return text


def describe(design: Design, place: Place, *, statistic: str) -> str:
    """Return the head of a report: notes, settings, subjects, environment."""
    train = ", ".join(f"{key} {value}" for key, value in design.fields["train"].items())
    lines = [*design.fields.get("notes", []), f"Every network: {train}."]
    split = place.output_dir / "split.json"
    if split.exists():
        parts = json.loads(split.read_text(encoding="utf-8"))
        people = "; ".join(f"{p}: {' '.join(parts[p])}" for p in ("train", "validation", "evaluation"))
        lines.append(f"Subjects ({people}); split drawn with seed {parts.get('seed', 'none: it was given')}.")
    records = [json.loads(p.read_text()) for p in sorted((place.output_dir / "state").glob("*-k?.json"))]
    if records:
        versions = sorted({f"{r['software']}, {r['machine']}" for r in records})
        hours = sum(r["seconds"] for r in records) / 3600
        lines.append(f"Environment: {'; '.join(versions)}; {hours:.2f} hours by the clock for the cells.")
    lines.append(
        f"Values of an ensemble: {statistic}. Mean ± standard deviation over the evaluation subjects. The "
        "paper's values are from other people, with another definition of MSSIM. Bold: best mean, smallest "
        f"standard deviation. *: two-tailed Wilcoxon p < {LEVEL:g} against each row that the table "
        "compares, as far as they were run. Not run: cell without a result."
    )
    return "\n".join(f"* {line}" for line in lines) + "\n"


def format_table(results: Results, cells: Sequence[Cell]) -> str:
    """Return one table at one k as Markdown: our values beside those of the paper."""
    head = ["method", "N", *MEASURES.values(), "gain over the spline (dB)", "PSNR, paper", "MSSIM, paper"]
    if not any(cell.samples for cell in cells):
        head.remove("N")
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    best = {m: _best(results, cells, m) for m in MEASURES}
    spline = next((results.get(c) for c in cells if not c.is_trained), None)
    for cell in cells:
        found = results.get(cell)
        row = [cell.method, cell.samples] if "N" in head else [cell.method]
        if found is None:
            row += ["not run"] + [""] * len(MEASURES)
        else:
            row += [_entry(results, cell, m, best[m]) for m in MEASURES]
            base = spline or _spline_of(results, cell)
            gains = [found["psnr"][s] - base["psnr"][s] for s in found["psnr"]] if base else []
            row.append(f"{np.mean(gains):+.2f}" if gains and cell.is_trained else "")
        row += [_paper(cell, "psnr"), _paper(cell, "mssim")]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def has_asterisk(results: Results, cell: Cell, measure: str) -> bool:
    """Return whether a cell differs with p < `LEVEL` from each rival that was run, and there is one."""
    ours = results.get(cell)[measure]
    rivals = [found[measure] for rival in results.rivals(cell) if (found := results.get(rival))]
    return bool(rivals) and all(compare(ours, theirs).p < LEVEL for theirs in rivals)


def _spline_of(results: Results, cell: Cell) -> Mapping[str, Scores] | None:
    same = [c for c in results.design.cells if (c.k, c.evaluation) == (cell.k, cell.evaluation)]
    return next((results.get(c) for c in same if not c.is_trained), None)


def _best(results: Results, cells: Sequence[Cell], measure: str) -> tuple[float, float]:
    found = [results.get(cell)[measure] for cell in cells if results.get(cell)]
    means = [float(np.mean(list(scores.values()))) for scores in found]
    return (max(means), min(map(spread, found))) if len(found) > 1 else (np.inf, -np.inf)


def _entry(results: Results, cell: Cell, measure: str, best: tuple[float, float]) -> str:
    scores, digits = results.get(cell)[measure], DIGITS[measure]
    mean, deviation = float(np.mean(list(scores.values()))), spread(scores)
    shown = [f"{mean:.{digits}f}", "-" if np.isnan(deviation) else f"{deviation:.{digits}f}"]
    shown = [
        f"**{text}**" if value == top else text
        for text, value, top in zip(shown, (mean, deviation), best, strict=True)
    ]
    return " ± ".join(shown) + (" \\*" if has_asterisk(results, cell, measure) else "")


def _paper(cell: Cell, measure: str) -> str:
    if measure not in cell.paper:
        return ""
    mean, deviation, *star = cell.paper[measure]
    digits = 3 if measure == "psnr" else 4  # as it prints them
    return f"{mean:.3f} ± {deviation:.{digits}f}" + (" \\*" if star else "")


def _choose(rows: Sequence[Mapping[str, str]], measure: str, statistic: str) -> Scores:
    """Values by subject of an ensemble: of its averaged volume, of its best network, or their mean."""
    each = _members(rows, measure)
    if statistic == "averaged" or not each:
        return _by_subject(rows, measure, lambda name: name == "iqt")
    if statistic == "best-member":
        return max(each, key=_mean)
    return {subject: float(np.mean([scores[subject] for scores in each])) for subject in each[0]}


def _members(rows: Sequence[Mapping[str, str]], measure: str) -> list[Scores]:
    """Values by subject of each network of an ensemble."""
    names = sorted({row["method"] for row in rows} - {"spline", "iqt"})
    return [_by_subject(rows, measure, lambda name, wanted=m: name == wanted) for m in names]


def _mean(scores: Scores) -> float:
    return float(np.mean(list(scores.values())))


def _by_subject(
    rows: Sequence[Mapping[str, str]], measure: str, is_wanted: Callable[[str], bool]
) -> dict[str, float]:
    return {row["participant_id"]: float(row[measure]) for row in rows if is_wanted(row["method"])}
