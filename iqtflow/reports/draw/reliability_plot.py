"""The error that was made against the standard deviation that was stated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from iqtflow.reports.draw.plots import AFTER, BEFORE, axes_of, to_svg


def reliability_curve(summary: Mapping[str, Any]) -> tuple[bytes, str]:
    """Plot root mean square error over standard deviation, bin by bin, with the line where the two are equal.

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
    with axes_of(
        "standard deviation stated (% of range)", "error made, root mean square (%)", size=(5.4, 4.2)
    ) as (figure, axes):
        axes.plot([0, top], [0, top], color=BEFORE, lw=1.2, ls="--", label="error as large as stated")
        if several:
            span = "smallest to largest over people"
            axes.fill_between(std, low, high, color=AFTER, alpha=0.15, lw=0, label=span)
        label = "mean over people" if several else "measured"
        axes.plot(std, error, "o-", color=AFTER, lw=1.4, ms=3.5, label=label)
        axes.set(xlim=(0, top), ylim=(0, top), aspect="equal")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncol=2, fontsize=9, handlelength=1.5)
        svg = to_svg(figure)
    people = "1 person" if summary["n"] == 1 else f"{summary['n']} people"
    return svg, (
        f"Error against standard deviation in {len(std)} bins of voxels, {people}: from {error[0]:.2g} % at "
        f"{std[0]:.2g} % to {error[-1]:.2g} % at {std[-1]:.2g} %."
    )


def reliability_rows(summary: Mapping[str, Any]) -> list[list[str]]:
    """What the curve comes to, as rows of a table: figure, mean over people, smallest to largest, ideal."""
    shown = (
        ("Error / standard deviation", "error_over_std", "{:.2f}", "1"),
        ("Voxels within 1 standard deviation", "within_1_std", "{:.0%}", "68 % if errors were Gaussian"),
        ("Voxels within 2 standard deviations", "within_2_std", "{:.0%}", "95 % if errors were Gaussian"),
        ("Spearman’s ρ of both over bins", "spearman_bins", "{:.3f}", "1"),
        ("Spearman’s ρ of both over voxels", "spearman", "{:.2f}", "below 1 for any map"),
    )
    rows = []
    for label, name, form, ideal in shown:
        mean, low, high = (
            form.format(summary[name][key]).replace("%", " %") for key in ("mean", "min", "max")
        )
        rows.append([label, mean, f"{low} … {high}", ideal])
    return rows
