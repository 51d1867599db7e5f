"""Draw slices as in Fig. 3 of the paper, and Table 2 as curves, from the finished cells."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.orientations import aff2axcodes

from benchmarks.paper.design import Cell, Design
from benchmarks.paper.results import MEASURES, Results, read_results
from benchmarks.paper.run import Place
from iqtflow.bids import derivative_name, find_scans
from iqtflow.image.nifti_file import open_nifti
from iqtflow.training.split import read_split
from iqtflow.utils.files import write_atomically

ZOOM = 0.28  #: edge of the enlarged square / edge of the brain
#: Colours that differ for colour-blind readers and in grey print (Okabe & Ito, doi:10.1038/nmeth.1618).
COLOURS = ("#0060a8", "#c25a00", "#8a8a8a")
PLANES = {"R": "sagittal", "A": "coronal", "S": "axial"}  #: by the axis that is orthogonal to them


def draw_figures(design: Design, place: Place, *, statistic: str = "averaged") -> list[Path]:
    """Draw all figures of the finished cells; return the files."""
    import matplotlib as mpl

    mpl.use("Agg")
    results = read_results(design, place, statistic=statistic)
    subject = read_split(place.output_dir / "split.json")["evaluation"][0]
    drawn = []
    for table in design.tables:
        for k in design.fields["factors"]:
            done = [c for c in design.cells if (c.table, c.k) == (table["id"], k) and results.get(c)]
            trained = [c for c in done if c.is_trained]
            if trained:
                homes = {c.name: c for c in design.cells}
                drawn.append(draw_slices([(c, homes[design.homes[c.name]]) for c in trained], place, subject))
            if len({c.samples for c in trained} - {""}) > 1:
                drawn.append(draw_samples(results, trained, place))
    return drawn


def draw_slices(cells: Sequence[tuple[Cell, Cell]], place: Place, subject: str) -> Path:
    """Draw scan, spline, each enhanced volume and the truth in two planes across the thick slices (Fig. 3).

    Each plane has an enlarged square.

    Parameters
    ----------
    cells
        Cells of one table and k, each with the cell that was run for it.
    place
        The experiment.
    subject
        An evaluation subject.
    """
    import matplotlib.pyplot as plt

    scan = find_scans(place.bids_dir, subjects=[subject])[0]
    first, home = cells[0]
    folder = place.cell(home)
    low = _canonical(folder / derivative_name(scan, desc="sim01"))
    truth = _canonical(scan.path)
    axis = int(np.argmin(np.array(low.shape) / truth.shape))
    columns = {"input": np.repeat(low.get_fdata(dtype=np.float32), first.k, axis=axis)}
    columns["cubic B-spline"] = _estimate(home, place, subject, "spline")
    columns.update({_title(cell): _estimate(at, place, subject, "iqt") for cell, at in cells})
    columns["truth"] = truth.get_fdata(dtype=np.float32)
    size = np.min([v.shape for v in columns.values()], axis=0)
    columns = {name: v[tuple(slice(0, n) for n in size)] for name, v in columns.items()}
    brain = columns["truth"] > 0
    high = float(np.percentile(columns["truth"][brain], 99.5))
    sizes_mm = nib.affines.voxel_sizes(truth.affine)
    box = [np.flatnonzero(brain.any(axis=tuple(b for b in range(3) if b != a)))[[0, -1]] for a in range(3)]
    planes = [a for a in range(3) if a != axis]
    figure, axes = plt.subplots(
        4,
        len(columns),
        figsize=(1.9 * len(columns), 8),
        squeeze=False,
        gridspec_kw={"wspace": 0.03, "hspace": 0.03},
    )
    for i, plane in enumerate(planes):
        across, up = (a for a in range(3) if a != plane)
        middle = int(box[plane].mean())
        edge = [int(ZOOM * np.diff(box[a])[0]) for a in (across, up)]
        corner = [int(box[a][0] + share * np.diff(box[a])[0]) for a, share in ((across, 0.55), (up, 0.55))]
        for j, (name, volume) in enumerate(columns.items()):
            picture = np.take(volume, middle, axis=plane).T
            rows = slice(box[up][0], box[up][1] + 1), slice(box[across][0], box[across][1] + 1)
            square = slice(corner[1], corner[1] + edge[1]), slice(corner[0], corner[0] + edge[0])
            aspect = sizes_mm[up] / sizes_mm[across]
            show = {"cmap": "gray", "vmin": 0, "vmax": high, "origin": "lower", "aspect": aspect}
            axes[2 * i, j].imshow(picture[rows], interpolation="nearest", **show)
            axes[2 * i, j].add_patch(
                plt.Rectangle(
                    (corner[0] - box[across][0], corner[1] - box[up][0]),
                    *edge,
                    fill=False,
                    ec=COLOURS[1],
                    lw=1,
                )
            )
            axes[2 * i + 1, j].imshow(picture[square], interpolation="nearest", **show)
            if i == 0:
                axes[0, j].set_title(name, fontsize=8)
        axes[2 * i, 0].set_ylabel(PLANES["RAS"[plane]], fontsize=8)
        axes[2 * i + 1, 0].set_ylabel("enlarged", fontsize=8)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    figure.suptitle(
        f"k = {first.k}, slices along {['left-right', 'anterior-posterior', 'inferior-superior'][axis]}; "
        f"evaluation subject {subject}",
        fontsize=8,
        y=0.94,
    )
    return _save(figure, place.output_dir / "figures" / f"slices_table-{first.table}_k{first.k}.png")


def draw_samples(results: Results, cells: Sequence[Cell], place: Place) -> Path:
    """Draw values against the number of samples (Table 2): thin lines for subjects, thick for the mean."""
    import matplotlib.pyplot as plt

    order = list(
        dict.fromkeys(c.samples for c in results.design.cells if c.table == cells[0].table and c.samples)
    )
    order = [samples for samples in order if any(c.samples == samples for c in cells)]
    figure, axes = plt.subplots(1, len(MEASURES), figsize=(4 * len(MEASURES), 3.2), layout="constrained")
    for ax, (measure, label) in zip(axes, MEASURES.items(), strict=True):
        for colour, method in zip(COLOURS, dict.fromkeys(c.method for c in cells), strict=False):
            found = {c.samples: results.get(c)[measure] for c in cells if c.method == method}
            at = [i for i, samples in enumerate(order) if samples in found]
            people = np.array([list(found[order[i]].values()) for i in at])
            ax.plot(at, people, color=colour, lw=0.5, alpha=0.35)
            ax.plot(at, people.mean(axis=1), color=colour, lw=2, marker="o", label=method)
        ax.set_xticks(range(len(order)), order)
        ax.set(xlabel="samples per subject", ylabel=label)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, fontsize=8)
    return _save(figure, place.output_dir / "figures" / f"samples_table-{cells[0].table}_k{cells[0].k}.png")


def _title(cell: Cell) -> str:
    """Return the name of a cell in a few short lines."""
    return "\n".join(textwrap.wrap(f"{cell.method} {cell.samples}".strip(), 20))


def _estimate(cell: Cell, place: Place, subject: str, desc: str) -> np.ndarray:
    folder = place.cell(cell) / "models" / f"{cell.training}_evaluation"
    return _canonical(folder / f"sub-{subject}_desc-{desc}_T1w.nii.gz").get_fdata(dtype=np.float32)


def _canonical(path: Path) -> nib.Nifti1Image:
    image = nib.as_closest_canonical(open_nifti(path))
    assert aff2axcodes(image.affine) == ("R", "A", "S")
    return image


def _save(figure, path: Path) -> Path:
    import matplotlib.pyplot as plt

    write_atomically(
        path, lambda stream: figure.savefig(stream, dpi=130, bbox_inches="tight", metadata={"Software": None})
    )
    plt.close(figure)
    return path
