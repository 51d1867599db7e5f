"""Comparison of two models on the same unseen people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from iqtflow.evaluation.metrics import wilcoxon

#: A smaller mean gain in PSNR, in dB, is not told apart from none.
LEAST_GAIN_DB = 0.05
#: With fewer people, the two-tailed Wilcoxon test cannot be significant (p < .05).
LEAST_FOR_TEST = 6
MEASURES = ("psnr", "mssim")
#: A residual that is larger by a smaller share, or still below 1, is not worth a note.
RESIDUAL_RISE = 1.05

Scores = Mapping[str, Mapping[str, float]]


def compare_models(spline: Scores, before: Scores, after: Scores) -> dict[str, Any]:
    """Compare the scores of two models, subject by subject.

    Parameters
    ----------
    spline, before, after
        For each subject PSNR (dB) and MSSIM of the cubic spline, of the model before, and of the one after.

    Returns
    -------
    dict
        JSON-ready: ``subjects``; for each measure a row for each subject (spline, before, after), the mean
        gain of after over before, the number of subjects with a gain and the p of a two-tailed Wilcoxon
        signed-rank test (None with fewer than two subjects); and ``verdict``: "better", "uncertain" (better
        on all of too few subjects for a test) or "not better".
    """
    subjects = sorted(set(spline) & set(before) & set(after))
    found: dict[str, Any] = {"n": len(subjects), "subjects": subjects}
    for measure in MEASURES:
        columns = [[scores[label][measure] for label in subjects] for scores in (spline, before, after)]
        gain = np.subtract(columns[2], columns[1])
        found[measure] = {
            **dict(zip(("spline", "before", "after"), columns, strict=True)),
            "gain": float(gain.mean()),
            "n_better": int((gain > 0).sum()),
            "p": float(wilcoxon(columns[2], columns[1])[2]) if len(subjects) > 1 else None,
        }
    psnr = found["psnr"]
    found["verdict"] = "not better"
    if psnr["gain"] >= LEAST_GAIN_DB and psnr["p"] is not None:
        if psnr["p"] < 0.05:
            found["verdict"] = "better"
        elif len(subjects) < LEAST_FOR_TEST and psnr["n_better"] == len(subjects):
            found["verdict"] = "uncertain"
    return found


def verdict_sentence(found: Mapping[str, Any], *, before: str, after: str) -> str:
    """Return one or two sentences: whether the adapted model is better, and which one to use.

    Parameters
    ----------
    found
        From `compare_models`.
    before, after
        Names of the models.
    """
    psnr, n = found["psnr"], found["n"]
    p = "" if psnr["p"] is None else f" (p = {psnr['p']:.2g})"
    people = f"{psnr['n_better']} of {n} unseen people"
    if found["verdict"] == "better":
        return (
            f"The adaptation helped: PSNR rose by {psnr['gain']:.2f} dB, on {people}{p}. Use {after} for "
            "scans of this scanner."
        )
    if found["verdict"] == "uncertain":
        return (
            f"The adaptation seems to help: PSNR rose by {psnr['gain']:.2f} dB, on {people}. This is too few "
            f"people for a test ({LEAST_FOR_TEST} are needed). Compare both models on real scans."
        )
    shown = "was not shown to help" if psnr["gain"] >= LEAST_GAIN_DB else "did not help"
    few = f" Fewer than {LEAST_FOR_TEST} people cannot be tested: give more, or a longer --budget."
    return (
        f"The adaptation {shown}: PSNR changed by {psnr['gain']:+.2f} dB, and rose on {people}{p}. "
        f"Go on with {before}.{few if n < LEAST_FOR_TEST else ''}"
    )


def residual_notes(scans: Sequence[Mapping[str, Mapping[str, float | None]]], *, after: str) -> list[str]:
    """Return a sentence if the adapted model fits the acquired slices of the real scans less well.

    Parameters
    ----------
    scans
        For each scan, ``before`` and ``after``: ``residual``, the root mean square of scan minus expected
        scan in standard deviations of the noise; None: not known.
    after
        Name of the adapted model.
    """
    pairs = [(scan["before"]["residual"], scan["after"]["residual"]) for scan in scans]
    known = np.array([pair for pair in pairs if None not in pair], dtype=float)
    if not len(known):
        return []
    before, now = known.mean(axis=0)
    if now <= max(before * RESIDUAL_RISE, 1):
        return []
    rose = int((known[:, 1] > known[:, 0]).sum())
    return [
        f"On your own scans, {after} fits the acquired slices less well: the residual rose from "
        f"{before:.2f} to {now:.2f} on average, in {rose} of {len(known)} scans (1: as large as the noise). "
        "Compare the pictures before you use it."
    ]
