"""The page of a calibration, ``calibration.html``: the fitted prior, and where each scan was measured."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iqtflow.bids.names import output_name
from iqtflow.reports.assemble import facts
from iqtflow.reports.assemble.page import render, write_page
from iqtflow.reports.draw.measured import LEGEND
from iqtflow.reports.record import Place
from iqtflow.reports.scanner_table import scanner_rows
from iqtflow.reports.verdict import Check, judge
from iqtflow.simulation.noise_estimation import METHOD_WORDS
from iqtflow.simulation.snr_estimation import ENOUGH_SCANS, SCANS_FOR_SCATTER
from iqtflow.utils.errors import InputError
from iqtflow.utils.files import read_text

#: Largest share of scans that are left out. By chance it is 1 in 1000.
MOST_LEFT_OUT = 0.1


@dataclass(frozen=True)
class Measured:
    """The row of one scan: SNR, noise, robust distance if it was left out, and its picture if any."""

    name: str
    wm: float
    gm: float
    sigma: float | None
    where: str
    note: str
    distance: float | None
    picture: str


def write_calibration_page(output_dir: Place) -> Path:
    """Write the page of a calibration from ``calibration/prior.json`` and the measurements beside it.

    Parameters
    ----------
    output_dir
        Root of the derivatives.

    Returns
    -------
    Path
        ``calibration.html``.

    Raises
    ------
    InputError
        The prior cannot be read.
    OutputError
        The folder cannot be written to.
    """
    output_dir = Path(output_dir).absolute()
    path, cloud = (output_dir / output_name(name) for name in ("prior", "prior_figure"))
    try:
        prior = json.loads(read_text(path))
        scans = [_read_scan(output_dir, label, prior, fields) for label, fields in prior["scans"].items()]
        mean = [float(value) for value in prior["mean"]]
        checks = check_prior(prior)
        pooled = prior.get("scanner")
        scanner = scanner_rows(pooled) if pooled else []
        notes = [*prior.get("notes", ()), *(pooled["notes"] if pooled else ())]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as fault:
        raise InputError(
            path,
            found=f"{type(fault).__name__}: {fault}",
            expected="a prior that the group level of --mode calibrate wrote",
            next_step="Run the group level of --mode calibrate again.",
        ) from fault
    html = render(
        "calibration.html",
        name=prior.get("name", "site"),
        mean=mean,
        notes=notes,
        scans=scans,
        scanner=scanner,
        checks=checks,
        verdict=judge(checks),
        cloud=cloud.relative_to(output_dir) if cloud.is_file() else None,
        prior_file=output_name("prior"),
        legend=LEGEND,
        has_index=(output_dir / output_name("index")).is_file(),
        everything=facts.as_json(prior),
    )
    return write_page(output_dir / output_name("calibration_page"), html)


def check_prior(prior: Mapping[str, Any]) -> list[Check]:
    """Check whether a fitted prior can be trained with.

    Parameters
    ----------
    prior
        Content of ``prior.json``.

    Returns
    -------
    list of Check
        The most important first.
    """
    n, left_out = int(prior["n_scans"]), list(prior["outliers"])
    kept = n - len(left_out)
    weight = float(prior["own_covariance_weight"])
    methods = Counter(str(scan["noise_method"]) for scan in prior["scans"].values())
    enough = (
        "The spread of the SNR is your own."
        if kept >= ENOUGH_SCANS
        else f"{weight:.0%} of the spread is your own, the rest is the published one. Measure more scans."
    )
    if n < SCANS_FOR_SCATTER:
        others = f"A scan unlike the others is found among {SCANS_FOR_SCATTER} or more. Look at the cloud."
    elif left_out:
        others = f"Left out: {', '.join(left_out)}. Look at their pictures."
    else:
        others = "No scan is unlike the others."
    ways = ", ".join(f"{METHOD_WORDS.get(way, way)} ({count})" for way, count in sorted(methods.items()))
    return [
        Check("Scans alike", None if n < SCANS_FOR_SCATTER else len(left_out) <= MOST_LEFT_OUT * n,
              f"{len(left_out)} of {n} left out", f"up to {MOST_LEFT_OUT:.0%}", others),
        Check("Noise measured in one way", len(methods) == 1, ways, "one way",
              "All scans were measured in the same way." if len(methods) == 1 else
              "The noise was measured in several ways. Are all scans from one scanner and protocol?"),
        Check("Enough scans", kept >= ENOUGH_SCANS, str(kept), f"{ENOUGH_SCANS} or more", enough),
    ]  # fmt: skip


def _read_scan(output_dir: Path, label: str, prior: Mapping[str, Any], fields: Mapping[str, Any]) -> Measured:
    """Read a row; the measurement itself may have been moved, the prior has its SNR."""
    file = output_dir / output_name("prior").parent / f"{label}_snr.json"
    try:
        noise = json.loads(read_text(file))["Noise"]
        sigma, note = float(noise["sigma"]), str(noise["note"])
        where = str(noise.get("region", ""))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        sigma, note, where = None, "", ""
    picture = file.with_suffix(".png")
    return Measured(
        label,
        float(fields["WM"]),
        float(fields["GM"]),
        sigma,
        where or str(fields["noise_method"]),
        note,
        prior["outliers"].get(label),
        picture.relative_to(output_dir).as_posix() if picture.is_file() else "",
    )
