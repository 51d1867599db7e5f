"""Drawn tissue SNRs on the ellipse of the distribution that they come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from iqtflow.reports.draw.plots import AFTER, BEFORE, POINTS, axes_of, to_svg
from iqtflow.simulation.snr_prior import DEFAULT_PRIOR, PUBLISHED, SNRPrior

PROBABILITY = 0.95  #: share of draws inside an ellipse
NUMBERED = 12  #: at most so many draws get their number


def snr_ellipse(drawn: Sequence[tuple[float, float]], prior: Mapping[str, Any] | None) -> tuple[bytes, str]:
    """Plot drawn (SNR_WM, SNR_GM) over the prior's ellipse and the published one.

    Parameters
    ----------
    drawn
        One pair for each simulated scan.
    prior
        ``name``, ``mean`` and ``covariance`` of what was drawn from; None when nobody has noted it.

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
    with axes_of("SNR of white matter", "SNR of grey matter", size=(5.4, 4.2)) as (figure, axes):
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
        axes.legend(loc="upper left", fontsize=9)
        svg = to_svg(figure)
    count = f"{len(points)} simulated scan{'' if len(points) == 1 else 's'}"
    words = f"Signal-to-noise ratios of white and grey matter drawn for {count}, over the prior’s ellipse"
    return svg, f"{words}; {outside} of them outside of it."
