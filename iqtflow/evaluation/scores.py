"""Figures of a model on people it has never seen: per subject, as a table, and as a test against the cubic
spline.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from iqtflow.evaluation.metrics import mssim, mssim_slicewise, psnr, wilcoxon
from iqtflow.evaluation.uncertainty_calibration import summarise_reliability
from iqtflow.image.nifti import read_volume
from iqtflow.utils.errors import InputError

#: Data dictionary of the table, in the manner of BIDS.
COLUMNS: dict[str, dict[str, Any]] = {
    "participant_id": {"Description": "Evaluation subject; never trained on"},
    "method": {
        "Description": "How the thin slices were estimated",
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


def evaluate_files(
    reference: str | os.PathLike, mask: str | os.PathLike, estimates: Mapping[str, str | os.PathLike]
) -> dict[str, dict[str, float]]:
    """Compare estimates with the high-field truth inside the brain.

    Parameters
    ----------
    reference
        High-field truth. It may go on beyond the estimates along any axis: the simulator crops a volume to a
        multiple of k.
    mask
        Brain mask on the truth's grid. Voxels where the truth is zero are left out as well.
    estimates
        Files by the name of their method, all on one grid.

    Returns
    -------
    dict
        For each method PSNR (dB), MSSIM (Wang 2004, 3-D) and the slice-wise MSSIM.

    Raises
    ------
    InputError
        The truth or the mask is empty, or an estimate does not lie on the truth's grid.
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
        estimate_image, estimate = read_volume(path)
        same_place = np.allclose(estimate_image.affine, image.affine, atol=1e-2)
        if not same_place or any(n > m for n, m in zip(estimate.shape, truth.shape, strict=True)):
            raise InputError(
                path,
                found=f"shape {estimate.shape}, affine {np.round(estimate_image.affine, 2).tolist()}",
                expected=f"the truth's grid, shape {truth.shape}, affine "
                f"{np.round(image.affine, 2).tolist()}",
                next_step="Resample the estimate to the truth's grid.",
            )
        part = tuple(slice(0, n) for n in estimate.shape)
        brain = (inside[part] > 0) & (truth[part] != 0)
        axis = int(np.argmax(np.abs(np.array(truth.shape) - estimate.shape)))
        scores[method] = {
            "psnr": psnr(truth[part], estimate, brain),
            "mssim": mssim(truth[part], estimate, brain),
            "mssim_slicewise": mssim_slicewise(
                np.moveaxis(truth[part], axis, 2), np.moveaxis(estimate, axis, 2), np.moveaxis(brain, axis, 2)
            ),
        }
    return scores


def table(records: Sequence[Mapping[str, Any]]) -> str:
    """The subjects' figures as tab-separated text with the columns of `COLUMNS`; records hold ``subject`` and
    ``methods``.
    """
    lines = ["\t".join(COLUMNS)]
    for record in records:
        for method, scores in record["methods"].items():
            lines.append(
                "\t".join(
                    [
                        f"sub-{record['subject']}",
                        method,
                        *(f"{scores[name]:.4f}" for name in list(COLUMNS)[2:]),
                    ]
                )
            )
    return "\n".join(lines) + "\n"


def summarise(
    records: Sequence[Mapping[str, Any]], *, baseline: str = "spline", method: str = "iqt"
) -> dict[str, Any]:
    """Mean, spread and gain over the subjects, with a two-tailed Wilcoxon signed-rank test of method against
    baseline.

    Returns
    -------
    dict
        ``subjects``, and for each of psnr, mssim and mssim_slicewise: mean and standard deviation of both
        methods, mean and smallest gain, the number of subjects that gained, and the test's n and exact p
        (None when there are too few subjects for a test). Of an ensemble also, under ``members``, mean and
        standard deviation of each network alone, and under ``mean_of_members`` those of the subjects' means
        over the networks: the mean of scores, not the score of the mean image. Where records hold
        ``reliability`` (of the standard deviation map,
        `iqtflow.evaluation.uncertainty_calibration.in_percent`), also its summary over them.
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
            method: {"mean": float(ours.mean()), "std": _spread(ours)},
            baseline: {"mean": float(theirs.mean()), "std": _spread(theirs)},
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
                m: {"mean": float(column.mean()), "std": _spread(column)}
                for m, column in zip(members, scores.T, strict=True)
            }
            means = scores.mean(axis=1)
            summary[name]["mean_of_members"] = {"mean": float(means.mean()), "std": _spread(means)}
    found = [record["reliability"] for record in records if record.get("reliability")]
    if found:
        summary["reliability"] = summarise_reliability(found)
    return summary


def _spread(values: np.ndarray) -> float | None:
    return float(values.std(ddof=1)) if len(values) > 1 else None
