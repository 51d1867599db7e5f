"""Scores of a model on unseen subjects: for each subject, as a table, and compared with the cubic spline."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import nibabel as nib
import numpy as np

from iqtflow.evaluation.across_methods import figures_of
from iqtflow.evaluation.metrics import mssim, mssim_slicewise, psnr, wilcoxon
from iqtflow.evaluation.uncertainty_calibration import reliability, summarise_reliability
from iqtflow.image.nifti import read_volume
from iqtflow.utils.errors import InputError

#: Data dictionary of the table, as in BIDS.
COLUMNS: dict[str, dict[str, Any]] = {
    "participant_id": {"Description": "Evaluation subject, not used in training"},
    "method": {
        "Description": "How the thin slices were made",
        "Levels": {
            "spline": "Cubic B-spline interpolation on the scan's own slice positions",
            "iqt": "The trained model; of an ensemble, the averaged image",
            "member-N": "The N-th network of the ensemble alone",
        },
    },
    "psnr": {
        "Description": "Peak signal-to-noise ratio inside the brain; peak = maximum of the truth inside "
        "the brain (Lin et al. 2019)",
        "Units": "dB",
    },
    "mssim": {
        "Description": "Mean structural similarity inside the brain, 3-D Gaussian window of sigma 1.5 "
        "voxels (Wang et al. 2004, doi:10.1109/TIP.2003.819861)"
    },
    "mssim_slicewise": {
        "Description": "Mean structural similarity, slice by slice with a Gaussian window of sigma 2.5 "
        "pixels (the definition of the authors' code); not comparable with mssim"
    },
}
#: One more column, last, in the table of a cross-validation.
FOLD = {
    "fold": {"Description": "Fold of the subject in the cross-validation; its model was trained on others"}
}


def evaluate_files(
    reference: str | os.PathLike,
    mask: str | os.PathLike,
    estimates: Mapping[str, str | os.PathLike],
    *,
    across_methods: bool = False,
) -> dict[str, dict[str, float]]:
    """Compare estimates with the high-field truth inside the brain.

    Parameters
    ----------
    reference
        High-field truth. It may be longer than the estimates along any axis, since the simulator crops a
        volume to a multiple of k.
    mask
        Brain mask on the truth's grid. Voxels where the truth is zero are left out, too.
    estimates
        Files by the name of their method, all on one grid.
    across_methods
        Also compute the figures for methods whose intensities differ.

    Returns
    -------
    dict
        PSNR (dB), MSSIM (Wang 2004, 3-D) and slice-wise MSSIM of each method; with `across_methods` also
        `iqtflow.evaluation.across_methods.FIGURES`.

    Raises
    ------
    InputError
        The truth or the mask is empty, or an estimate is not on the truth's grid.
    """
    image, truth = read_volume(reference)
    _, inside = read_volume(mask, like=image)
    for path, found, volume in ((reference, "zeros only", truth), (mask, "no voxel above 0", inside)):
        if not (volume > 0 if volume is inside else volume).any():
            raise InputError(
                path, found=found, expected="the voxels to compare", next_step="Give the right file."
            )
    scores = {}
    for method, path in estimates.items():
        _, estimate, part, brain = _read_estimate(path, image, truth, inside)
        axis = int(np.argmax(np.abs(np.array(truth.shape) - estimate.shape)))
        scores[method] = {
            "psnr": psnr(truth[part], estimate, brain),
            "mssim": mssim(truth[part], estimate, brain),
            "mssim_slicewise": mssim_slicewise(
                np.moveaxis(truth[part], axis, 2), np.moveaxis(estimate, axis, 2), np.moveaxis(brain, axis, 2)
            ),
        }
        if across_methods:
            scores[method].update(figures_of(truth[part], estimate, brain))
    return scores


def reliability_of_files(
    reference: str | os.PathLike, mask: str | os.PathLike, estimate: str | os.PathLike, std: str | os.PathLike
) -> dict[str, Any]:
    """Measure `iqtflow.evaluation.uncertainty_calibration.reliability` of files, on grids as
    `evaluate_files`.

    Raises
    ------
    InputError
        The files are not on one grid.
    NoVariation
        As `reliability`.
    """
    image, truth = read_volume(reference)
    _, inside = read_volume(mask, like=image)
    estimate_image, values, part, brain = _read_estimate(estimate, image, truth, inside)
    _, spread = read_volume(std, like=estimate_image)
    return reliability(truth[part], values, spread, brain)


def _read_estimate(
    path: str | os.PathLike, image: nib.Nifti1Image, truth: np.ndarray, inside: np.ndarray
) -> tuple[nib.Nifti1Image, np.ndarray, tuple[slice, ...], np.ndarray]:
    """Return an estimate (image, voxels), the part of the truth's grid it covers, and the brain there."""
    found, estimate = read_volume(path)
    same_place = np.allclose(found.affine, image.affine, atol=1e-2)
    if not same_place or any(n > m for n, m in zip(estimate.shape, truth.shape, strict=True)):
        raise InputError(
            path,
            found=f"shape {estimate.shape}, affine {np.round(found.affine, 2).tolist()}",
            expected=f"the truth's grid, shape {truth.shape}, affine {np.round(image.affine, 2).tolist()}",
            next_step="Resample the estimate to the truth's grid.",
        )
    part = tuple(slice(0, n) for n in estimate.shape)
    return found, estimate, part, (inside[part] > 0) & (truth[part] != 0)


def columns_of(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the data dictionary of the table of records: `COLUMNS`, and `FOLD` if they have ``fold``."""
    return {**COLUMNS, **(FOLD if any("fold" in record for record in records) else {})}


def table(records: Sequence[Mapping[str, Any]]) -> str:
    """Return the scores as tab-separated text with the columns of `columns_of`; records have ``subject`` and
    ``methods``.
    """
    rows = [
        [f"sub-{record['subject']}", method, *(f"{scores[name]:.4f}" for name in list(COLUMNS)[2:])]
        + ([str(record["fold"])] if "fold" in record else [])
        for record in records
        for method, scores in record["methods"].items()
    ]
    return "".join("\t".join(row) + "\n" for row in [list(columns_of(records)), *rows])


def summarise(
    records: Sequence[Mapping[str, Any]], *, baseline: str = "spline", method: str = "iqt"
) -> dict[str, Any]:
    """Compute mean, standard deviation and gain over subjects, and a two-tailed Wilcoxon signed-rank test.

    Returns
    -------
    dict
        ``subjects``, and for each of psnr, mssim and mssim_slicewise: mean and standard deviation of both
        methods, mean and smallest gain, number of subjects with a gain, and n and exact p of the test (None
        for a single subject). For an ensemble also, under ``members``, mean and standard deviation of each
        network, and under ``mean_of_members`` those of the subjects' means over the networks (the mean of
        scores, not the score of the mean image). If records have ``reliability``
        (`iqtflow.evaluation.uncertainty_calibration.in_percent`), also its summary. If they have
        ``residual_rms`` (field ``ResidualRMS`` of the audit), also its mean and standard deviation. If they
        have ``fold``, also ``folds``: for each fold its subjects, and the means of both methods.
    """
    summary: dict[str, Any] = {
        "n": len(records),
        "subjects": [record["subject"] for record in records],
        "method": method,
        "baseline": baseline,
    }
    members = [m for m in (records[0]["methods"] if records else ()) if m.startswith("member-")]
    for name in list(COLUMNS)[2:]:
        ours, theirs = (np.array([r["methods"][m][name] for r in records], float) for m in (method, baseline))
        test = wilcoxon(ours.tolist(), theirs.tolist()) if len(records) > 1 else None
        summary[name] = {
            method: _mean_and_std(ours),
            baseline: _mean_and_std(theirs),
            "gain": {
                "mean": float((ours - theirs).mean()),
                "min": float((ours - theirs).min()),
                "subjects_gained": int((ours > theirs).sum()),
            },
            "wilcoxon": {"n": int(test[0]), "statistic": float(test[1]), "p": float(test[2])}
            if test
            else None,
        }
        if members:
            scores = np.array([[r["methods"][m][name] for m in members] for r in records], float)
            summary[name]["members"] = {
                m: _mean_and_std(column) for m, column in zip(members, scores.T, strict=True)
            }
            summary[name]["mean_of_members"] = _mean_and_std(scores.mean(axis=1))
    found = [record["reliability"] for record in records if record.get("reliability")]
    if found:
        summary["reliability"] = summarise_reliability(found)
    residuals = [record["residual_rms"] for record in records if record.get("residual_rms") is not None]
    if residuals:
        summary["residual_rms"] = _mean_and_std(np.array(residuals, float))
    numbers = sorted({record["fold"] for record in records if "fold" in record})
    if numbers:
        summary["folds"] = [
            _summarise_fold(number, [r for r in records if r["fold"] == number], (method, baseline))
            for number in numbers
        ]
    return summary


def _summarise_fold(
    number: int, records: Sequence[Mapping[str, Any]], methods: Sequence[str]
) -> dict[str, Any]:
    """Return the subjects of a fold, and of each measure the mean of each method over them."""
    return {
        "fold": number,
        "subjects": [record["subject"] for record in records],
        **{
            name: {m: float(np.mean([r["methods"][m][name] for r in records])) for m in methods}
            for name in list(COLUMNS)[2:]
        },
    }


def _mean_and_std(values: np.ndarray) -> dict[str, float | None]:
    return {"mean": float(values.mean()), "std": float(values.std(ddof=1)) if len(values) > 1 else None}
