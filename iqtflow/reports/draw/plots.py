"""Plots as SVG: small, sharp in print, the same bytes for the same numbers."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from iqtflow.reports.draw.volumes import Volumes
from iqtflow.simulation.snr_prior import DEFAULT_PRIOR, PUBLISHED, SNRPrior

#: Colours that colour-blind readers and grey prints keep apart (Okabe & Ito, doi:10.1038/nmeth.1618).
BEFORE, AFTER, TRUTH, POINTS = "#8a8a8a", "#0060a8", "#111111", "#c25a00"

PROBABILITY = 0.95  #: share of draws inside an ellipse
NUMBERED = 12  #: at most so many draws get their number

_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.labelcolor": "#333333",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "legend.handlelength": 1.5,
    "legend.columnspacing": 1.2,
    "svg.hashsalt": "iqtflow",  # else identifiers are random
    "svg.fonttype": "path",
}


def slice_profile(volumes: Volumes) -> tuple[bytes, str]:
    """Plot the intensity along one line across the slices: acquired samples, spline, enhanced volume and its
    standard deviation.

    Returns
    -------
    bytes, str
        SVG and its description in words.
    """
    axis = 2 if volumes.slice_axis is None else volumes.slice_axis
    x, y = (a for a in range(3) if a != axis)
    # The line in the brain on which the enhanced volume differs most from the spline.
    score = (np.abs(volumes.after - volumes.before) * volumes.mask).sum(axis=axis)
    line = [0, 0, 0]
    line[x], line[y] = (int(i) for i in np.unravel_index(int(np.argmax(score)), score.shape))
    place = tuple(slice(None) if a == axis else line[a] for a in range(3))
    position = np.arange(volumes.after.shape[axis]) * volumes.sizes_mm[axis]
    inside = np.flatnonzero(volumes.mask[place])
    first, last = (position[inside[0]], position[inside[-1]]) if inside.size else (position[0], position[-1])
    with axes_of("distance across the slices (mm)", "intensity") as axes:
        axes.plot(position, volumes.before[place], color=BEFORE, lw=1.4, label="before (spline)")
        after = volumes.after[place]
        if volumes.std is not None:
            spread = volumes.std[place]
            axes.fill_between(
                position, after - spread, after + spread, color=AFTER, alpha=0.2, lw=0, label="IQT ± 1 SD"
            )
        axes.plot(position, after, color=AFTER, lw=1.4, label="after (IQT)")
        if volumes.truth is not None:
            axes.plot(position, volumes.truth[place], color=TRUTH, lw=1, ls=":", label="truth")
        if volumes.acquired is not None:
            where, samples = _acquired_samples(volumes, line, axis)
            axes.plot(where, samples, "o", color=POINTS, ms=3.5, label="acquired slices")
        axes.set_xlim(first - 6, last + 6)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.2), ncol=3)
        words = "Intensity along one line across the slices: acquired samples, spline and enhanced volume."
        return to_svg(axes), words


def intensity_histogram(volumes: Volumes) -> tuple[bytes, str]:
    """Plot histograms of the intensities in the mask, before and after."""
    low, high = volumes.window
    edges = np.linspace(low, low + 1.1 * (high - low), 81)
    with axes_of("intensity", "share of voxels (%)") as axes:
        for data, colour, label in (
            (volumes.before, BEFORE, "before (spline)"),
            (volumes.after, AFTER, "after (IQT)"),
        ):
            values = data[volumes.mask]
            counts = np.histogram(values, edges)[0] * (100 / values.size)
            axes.stairs(counts, edges, color=colour, lw=1.5, label=label)
        axes.set_ylim(bottom=0)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.14), ncol=2)
        return to_svg(axes), "Histograms of intensity within the brain, before and after."


def tissue_histograms(values: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> tuple[bytes, str]:
    """Plot histograms of each tissue in the source (filled) and in the simulated scan (line).

    Parameters
    ----------
    values
        For each tissue, the intensities in the source and in the simulated scan.
    """
    everything = np.concatenate([part for pair in values.values() for part in pair])
    edges = np.linspace(np.percentile(everything, 0.2), np.percentile(everything, 99.8), 41)
    with axes_of("intensity", "share of voxels (%)") as axes:
        for (name, (source, simulated)), colour in zip(values.items(), (POINTS, AFTER), strict=False):
            for part, filled, what in ((source, True, "source"), (simulated, False, "draw 1")):
                counts = np.histogram(part, edges)[0] * (100 / part.size)
                style = {"fill": True, "alpha": 0.25, "lw": 0} if filled else {"lw": 1.6}
                axes.stairs(counts, edges, color=colour, label=f"{name}, {what}", **style)
        axes.set_ylim(bottom=0)
        axes.legend()
        tissues = " and ".join(values)
        return to_svg(axes), f"Histograms of intensity of {tissues}, in the source and in the first draw."


def training_curves(curves: Mapping[str, Mapping[str, np.ndarray]]) -> tuple[bytes, str]:
    """Plot the loss of each network against the step, on a logarithmic axis.

    Parameters
    ----------
    curves
        For each member: ``step``, ``train_loss``, ``val_loss``, arrays of one length (NaN where not
        recorded).
    """
    from matplotlib import colormaps

    viridis = colormaps["viridis"]
    with axes_of("step", "loss") as axes:
        for i, (name, curve) in enumerate(curves.items()):
            shade = AFTER if len(curves) == 1 else viridis(0.1 + 0.7 * i / (len(curves) - 1))
            for key, words, style, width in (
                ("train_loss", "training", ":", 1.1),
                ("val_loss", "validation", "-", 1.5),
            ):
                known = np.isfinite(curve[key])
                label = f"{name}, {words}" if i == 0 and known.any() else None
                axes.plot(
                    curve["step"][known], curve[key][known], ls=style, color=shade, lw=width, label=label
                )
        values = np.concatenate([c[k] for c in curves.values() for k in ("train_loss", "val_loss")])
        if np.nanmin(values) > 0:
            axes.set_yscale("log")
        axes.legend(loc="upper right")
        return to_svg(axes), f"Training and validation loss against step for {len(curves)} network(s)."


def paired_boxes(values: Mapping[str, Sequence[float]], unit: str) -> tuple[bytes, str]:
    """Plot a box for each method over the evaluation subjects, with a thin line for each subject."""
    names = list(values)
    table = np.array([values[name] for name in names], dtype=float)
    with axes_of("", unit) as axes:
        axes.plot(np.arange(len(names)), table, color="#b8c4cf", lw=0.8, zorder=1)
        drawn = [row[np.isfinite(row)] for row in table]
        boxes = axes.boxplot(
            drawn,
            positions=range(len(names)),
            widths=0.45,
            patch_artist=True,
            zorder=2,
            medianprops={"color": "#111111"},
            flierprops={"marker": "o", "ms": 3},
        )
        for i, box in enumerate(boxes["boxes"]):
            box.set(facecolor="#d9d9d9" if i == 0 else "#cfe2f1", edgecolor="#555555", alpha=0.85)
        turned = {} if len(names) < 5 else {"rotation": 30, "ha": "right"}
        axes.set_xticks(range(len(names)), names, **turned)
        axes.grid(visible=False, axis="x")
        return to_svg(axes), f"{unit} of {', '.join(names)} over {table.shape[1]} subjects."


def snr_ellipse(drawn: Sequence[tuple[float, float]], prior: Mapping[str, Any] | None) -> tuple[bytes, str]:
    """Plot drawn (SNR_WM, SNR_GM) over the prior's ellipse and the published one.

    Parameters
    ----------
    drawn
        One pair for each simulated scan.
    prior
        ``name``, ``mean`` and ``covariance`` of the prior; None when it was not recorded.

    Returns
    -------
    bytes, str
        SVG and its description in words.
    """
    published = PUBLISHED[DEFAULT_PRIOR]
    points = np.asarray(drawn, float)
    own = None
    if prior is not None:
        own = SNRPrior(
            str(prior.get("name", "prior")),
            tuple(map(float, prior["mean"])),
            tuple(tuple(map(float, row)) for row in prior["covariance"]),
        )
    same = own is not None and (own.mean, own.covariance) == (published.mean, published.covariance)
    outside = 0 if own is None else int((~own.holds(points, PROBABILITY)).sum())
    share = f"{PROBABILITY:.0%} of draws"
    with axes_of("SNR of white matter", "SNR of grey matter", size=(5.4, 4.2)) as axes:
        colour, style = (AFTER, "-") if same else (BEFORE, "--")
        label = f"published, {published.name} ({share})"
        axes.plot(*published.outline(PROBABILITY), color=colour, ls=style, lw=1.5, label=label)
        axes.plot(*published.mean, "+", color=colour, ms=9)
        if own is not None and not same:
            axes.plot(*own.outline(PROBABILITY), color=AFTER, lw=1.5, label=f"{own.name} ({share})")
            axes.plot(*own.mean, "+", color=AFTER, ms=9)
        axes.plot(*points.T, "o", color=POINTS, ms=5, label="drawn for this subject")
        if len(points) <= NUMBERED:
            for number, point in enumerate(points, start=1):
                axes.annotate(str(number), point, xytext=(5, 4), textcoords="offset points", fontsize=9)
        axes.set_aspect("equal", adjustable="datalim")
        axes.legend(loc="upper left")
        count = f"{len(points)} simulated scan{'' if len(points) == 1 else 's'}"
        words = f"Signal-to-noise ratios of white and grey matter of {count}, on the ellipse of the prior"
        return to_svg(axes), f"{words}; {outside} of them outside."


def reliability_curve(summary: Mapping[str, Any]) -> tuple[bytes, str]:
    """Plot the root mean square error against the standard deviation, with the line where both are equal.

    Parameters
    ----------
    summary
        As `iqtflow.evaluation.uncertainty_calibration.summarise_reliability` returns it.

    Returns
    -------
    bytes, str
        SVG and its description in words.
    """
    std, error, low, high = (
        np.array([row[name] for row in summary["bins"]], float)
        for name in ("std", "error", "error_min", "error_max")
    )
    top = 1.05 * max(std.max(), high.max())
    several = summary["n"] > 1
    labels = ("standard deviation (% of range)", "true error, root mean square (%)")
    with axes_of(*labels, size=(5.4, 4.2)) as axes:
        axes.plot([0, top], [0, top], color=BEFORE, lw=1.2, ls="--", label="error = standard deviation")
        if several:
            span = "smallest to largest over subjects"
            axes.fill_between(std, low, high, color=AFTER, alpha=0.15, lw=0, label=span)
        label = "mean over subjects" if several else "measured"
        axes.plot(std, error, "o-", color=AFTER, lw=1.4, ms=3.5, label=label)
        axes.set(xlim=(0, top), ylim=(0, top), aspect="equal")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncol=2)
        subjects = "1 subject" if summary["n"] == 1 else f"{summary['n']} subjects"
        return to_svg(axes), (
            f"Error against standard deviation in {len(std)} bins of voxels, {subjects}: from "
            f"{error[0]:.2g} % at {std[0]:.2g} % to {error[-1]:.2g} % at {std[-1]:.2g} %."
        )


def reliability_rows(summary: Mapping[str, Any]) -> list[list[str]]:
    """Return the figures of the curve as rows: figure, mean over subjects, smallest to largest, ideal."""
    shown = (
        ("Error / standard deviation", "error_over_std", "{:.2f}", "1"),
        ("Voxels within 1 standard deviation", "within_1_std", "{:.0%}", "68 % (Gaussian errors)"),
        ("Voxels within 2 standard deviations", "within_2_std", "{:.0%}", "95 % (Gaussian errors)"),
        ("Spearman’s ρ over bins", "spearman_bins", "{:.3f}", "1"),
        ("Spearman’s ρ over voxels", "spearman", "{:.2f}", "always below 1"),
    )
    rows = []
    for label, name, form, ideal in shown:
        mean, low, high = (
            form.format(summary[name][key]).replace("%", " %") for key in ("mean", "min", "max")
        )
        rows.append([label, mean, f"{low} … {high}", ideal])
    return rows


@contextmanager
def axes_of(xlabel: str, ylabel: str, *, size: tuple[float, float] = (5.4, 3.3)) -> Iterator[Any]:
    """Yield axes in the style of the pages; `size` in inches."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Not pyplot: nothing global is opened that a caller would have to close.
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        axes.set(xlabel=xlabel, ylabel=ylabel)
        yield axes


def to_svg(axes: Any) -> bytes:
    """Return the figure of axes as SVG, the same bytes for the same figure."""
    buffer = io.BytesIO()
    axes.figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _acquired_samples(volumes: Volumes, line: list[int], axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the samples of the scan nearest to a line of voxels, and their positions along it in mm."""
    scan, affine = volumes.acquired
    to_scan = np.linalg.inv(affine) @ volumes.affine
    start = to_scan @ np.array([*line[:axis], 0, *line[axis + 1 :], 1.0])
    column = [int(np.clip(round(start[a]), 0, scan.shape[a] - 1)) for a in range(3)]
    samples = scan[tuple(slice(None) if a == axis else column[a] for a in range(3))]
    voxels = (np.arange(scan.shape[axis]) - start[axis]) / to_scan[axis, axis]
    return voxels * volumes.sizes_mm[axis], samples
