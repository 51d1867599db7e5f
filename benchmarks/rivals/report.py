"""The table and the figure of the comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from statsmodels.stats.multitest import multipletests

from benchmarks.rivals.run import AXIS, Method, Person, read_results
from iqtflow.cli.commands.evaluate import COLUMNS as EVALUATED
from iqtflow.evaluation.metrics import wilcoxon
from iqtflow.image.geometry import bounding_box
from iqtflow.image.nifti import read_volume

OURS = "iqtflow"
#: Columns: figure, heading, format.
COLUMNS = (
    *EVALUATED,
    ("dice_gm", "Dice GM", ".3f"),
    ("dice_wm", "Dice WM", ".3f"),
    ("processor_seconds", "processor time (s)", ".0f"),
    ("peak_gb", "memory (GB)", ".1f"),
)
#: Figures that are tested, and whether more is better.
TESTED = {"psnr": True, "psnr_linear": True, "mssim": True, "nmse": False, "ulf_enc": True}


def write_report(output: Path, folder: Path, methods: Sequence[Method]) -> Path:
    """Write ``rivals_table.md`` and a figure for each k; return the file of the table."""
    results = read_results(output / "results.jsonl")
    folder.mkdir(parents=True, exist_ok=True)
    parts: list[str] = []
    for k in sorted({line["k"] for line in results}):
        lines = [line for line in results if line["k"] == k]
        shown = [m for m in methods if any(line["method"] == m.name for line in lines)]
        parts += [f"## k = {k}", "", *means(lines, shown), "", *tests(lines, shown), ""]
        picture = draw(output, folder / f"rivals_k{k}.png", k, shown, lines)
        parts += [f"![A slice of one person, k = {k}]({picture.name})", ""]
    parts += ["## Not run", "", *(f"* {m.title}: {m.absent}. `{m.command}`" for m in methods if m.absent), ""]
    table = folder / "rivals_table.md"
    table.write_text("\n".join(parts))
    return table


def means(lines: Sequence[dict[str, Any]], methods: Sequence[Method]) -> list[str]:
    """Return the rows of the table of means."""
    rows = [
        "| method | people | " + " | ".join(heading for _, heading, _ in COLUMNS) + " |",
        "|---" * (len(COLUMNS) + 2) + "|",
    ]
    for method in methods:
        own = [line for line in lines if line["method"] == method.name]
        cells = []
        for key, _, form in COLUMNS:
            values = [line[key] for line in own if key in line]
            cells.append(format(float(np.mean(values)), form) if values else "")
        rows.append(f"| {method.title} | {len(own)} | " + " | ".join(cells) + " |")
    return rows


def tests(lines: Sequence[dict[str, Any]], methods: Sequence[Method]) -> list[str]:
    """Return the rows of the table of tests: iqtflow against each other method, on the same people.

    Two-tailed Wilcoxon signed-rank tests; for each figure the p values are corrected for the number of
    methods (Holm).
    """
    others = [method for method in methods if method.name != OURS]
    values = {(line["method"], line["subject"]): line for line in lines}
    cells: dict[str, list[str]] = {method.name: [] for method in others}
    for figure, more_is_better in TESTED.items():
        found, ps = [], []
        for method in others:
            people = [s for m, s in values if m == method.name and (OURS, s) in values]
            ours, theirs = ([values[m, s][figure] for s in people] for m in (OURS, method.name))
            found.append(np.subtract(ours, theirs))
            ps.append(wilcoxon(ours, theirs).p if len(people) > 1 else 1.0)
        corrected = multipletests(ps, method="holm")[1] if ps else []
        for method, difference, p in zip(others, found, corrected, strict=True):
            n_better = np.count_nonzero(difference > 0 if more_is_better else difference < 0)
            n = len(difference)
            told = f"{difference.mean():+.4g}, {n_better} of {n}, p = {p:.2g}" if n else ""
            cells[method.name].append(told)
    headings = {key: heading for key, heading, _ in COLUMNS}
    return [
        "iqtflow minus the other method, on how many people iqtflow is better, and p (Wilcoxon, Holm):",
        "",
        "| other method | " + " | ".join(headings[figure] for figure in TESTED) + " |",
        "|---" * (len(TESTED) + 1) + "|",
        *(f"| {method.title} | " + " | ".join(cells[method.name]) + " |" for method in others),
    ]


def draw(
    output: Path, file: Path, k: int, methods: Sequence[Method], lines: Sequence[dict[str, Any]]
) -> Path:
    """Draw a slice of the first person that all methods have: truth, each method, and its error."""
    from matplotlib.figure import Figure

    subjects = [{line["subject"] for line in lines if line["method"] == m.name} for m in methods]
    common = [line["subject"] for line in lines if all(line["subject"] in some for some in subjects)]
    person = Person(common[0], k, output / f"sub-{common[0]}")
    _, truth = read_volume(person.truth)
    _, mask = read_volume(person.mask)
    part = tuple(slice(0, n) for n in read_volume(person.estimate(methods[0].name))[1].shape)
    box = bounding_box(mask[part] > 0, 3)
    at = int(box[0].start + 0.62 * (box[0].stop - box[0].start))  # beside the middle: cortex, white matter
    brain, true = (volume[at][box[1:]] for volume in (mask > 0, truth))
    top = float(np.percentile(truth[mask > 0], 99.5))
    figure = Figure(figsize=(3.2 * (len(methods) + 1), 6), layout="constrained", facecolor="black")
    axes = figure.subplots(2, len(methods) + 1, squeeze=False)
    scan = np.repeat(read_volume(person.scan)[1][at], k, axis=AXIS - 1)
    pictures = [("truth", true, scan[box[1:]])]
    for method in methods:
        values = read_volume(person.estimate(method.name))[1][at][box[1:]]
        pictures.append((method.title.split(" (")[0], values, np.abs(values - true) * brain))
    for number, (title, above, below) in enumerate(pictures):
        axes[0, number].imshow(above.T, cmap="gray", vmin=0, vmax=top, origin="lower")
        scale = top if number == 0 else top / 4
        axes[1, number].imshow(
            below.T, cmap="gray" if number == 0 else "inferno", vmin=0, vmax=scale, origin="lower"
        )
        axes[0, number].set_title(title, color="white", fontsize=11)
        axes[1, number].set_title(
            "slices of the scan" if number == 0 else "error", color="white", fontsize=10
        )
    for axis in axes.flat:
        axis.set_axis_off()
    figure.savefig(file, dpi=90)
    Image.open(file).convert("RGB").quantize(128).save(file, optimize=True)
    return file
