"""A picture of a site's tissue SNR: the cloud of its scans, its fitted prior, and the published one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from iqtflow.simulation.snr_estimation import Calibration
from iqtflow.simulation.snr_prior import DEFAULT_PRIOR, PUBLISHED
from iqtflow.utils.files import write_atomically

#: Share of the scans inside an ellipse of two dimensions.
ELLIPSE_PROBABILITY = 0.95


def draw_cloud(
    path: str | os.PathLike, snr: Mapping[str, tuple[float, float]], calibration: Calibration
) -> Path:
    """Draw the scans over the published prior and the fitted one, as ellipses that hold 95 %.

    Parameters
    ----------
    path
        PNG file.
    snr
        (SNR_WM, SNR_GM) by the scan's label.
    calibration
        What was fitted to them.

    Returns
    -------
    Path
        The file; the same data give the same bytes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    published = PUBLISHED[DEFAULT_PRIOR]
    labels = f"published, {published.name}", f"fitted, {calibration.weight:.0%} own covariance"
    axes.plot(*published.outline(ELLIPSE_PROBABILITY), color="0.5", linestyle="--", label=labels[0])
    axes.plot(*calibration.prior.outline(ELLIPSE_PROBABILITY), color="C0", label=labels[1])
    for outlier, color, marker in ((False, "C0", "o"), (True, "C3", "x")):
        chosen = {label: v for label, v in snr.items() if (label in calibration.outliers) == outlier}
        if chosen:
            what = "left out" if outlier else "scans"
            points = np.array(list(chosen.values()))
            axes.scatter(
                points[:, 0], points[:, 1], s=22, color=color, marker=marker, label=f"{len(chosen)} {what}"
            )
        for label, point in chosen.items() if outlier or len(snr) <= 12 else ():
            axes.annotate(label, point, xytext=(4, 4), textcoords="offset points", fontsize=7)
    axes.set_xlabel("SNR of white matter")
    axes.set_ylabel("SNR of grey matter")
    axes.set_title(f"Tissue SNR of {calibration.n_scans} scans; ellipses hold {ELLIPSE_PROBABILITY:.0%}")
    axes.legend(fontsize=8)
    # The name of the command. By it, the command recognises a picture that it may replace.
    made = {"Software": "iqtflow-calibrate"}
    return write_atomically(path, lambda stream: figure.savefig(stream, format="png", dpi=120, metadata=made))
