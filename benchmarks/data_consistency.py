"""Does the consistency step (--data-consistency) make enhanced volumes better or worse?

    python benchmarks/data_consistency.py SCANS... --enhanced OUT --truth BIDS [--json FILE]

SCANS are simulated scans, OUT holds their enhanced volumes, made as `benchmarks/audit_detector.py` says, and
BIDS the high-field scans. PSNR and MSSIM are measured in the brain against the high-field scan, before and
after the step.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from iqtflow.evaluation.metrics import mssim, psnr
from iqtflow.image.geometry import bounding_box, slice_axis, slices_last
from iqtflow.image.nifti_file import open_nifti
from iqtflow.inference.audit import audit_estimate
from iqtflow.inference.data_consistency import correct_estimate


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scans", type=Path, nargs="+")
    parser.add_argument("--enhanced", type=Path, required=True)
    parser.add_argument("--truth", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = [compare(scan, options.enhanced, options.truth) for scan in options.scans]
    for key in ("psnr", "mssim", "residual_rms"):
        before, after = (np.mean([row[key][i] for row in rows]) for i in (0, 1))
        print(f"{key}: {before:.4f} -> {after:.4f} (mean of {len(rows)})")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


def compare(path: Path, enhanced: Path, truth: Path) -> dict:
    """Return the scores of one scan before and after the step."""
    name = path.name.removesuffix(".nii.gz")
    subject = name.split("_")[0]
    axis = slice_axis(open_nifti(path).affine)

    def read(file: Path) -> np.ndarray:
        image = open_nifti(file)
        return slices_last(np.asarray(image.dataobj, dtype=np.float32), image.affine, axis)[0]

    scan, estimate = read(path), read(enhanced / f"{name}_iqt.nii.gz")
    mask = read(enhanced / f"{name}_mask.nii.gz") > 0
    reference = read(truth / subject / "anat" / f"{subject}_T1w.nii.gz")[:, :, : estimate.shape[2]]
    std = enhanced / f"{name}_std.nii.gz"
    voxel_mm = np.linalg.norm(open_nifti(path).affine[:3, :3], axis=0)
    voxel_mm = np.array([*np.delete(voxel_mm, axis), voxel_mm[axis]])
    thickness = json.loads((enhanced / f"{name}.json").read_text())["Geometry"]["ThicknessMm"]
    told = {
        "voxel_mm": voxel_mm,
        "thickness_mm": thickness,
        "predicted_error": read(std) if std.exists() else None,
        "threshold": np.inf,
    }
    found = audit_estimate(scan, estimate, mask, **told)
    k = estimate.shape[2] // scan.shape[2]
    corrected = correct_estimate(scan, estimate, mask, found)
    brain = np.repeat(mask, k, axis=2) & (reference > 0)
    near = bounding_box(brain, 8)
    row = {"scan": path.name, "residual_rms": [found.residual_rms]}
    row["residual_rms"].append(audit_estimate(scan, corrected, mask, **told).residual_rms)
    for label, score in (("psnr", psnr), ("mssim", mssim)):
        row[label] = [score(reference[near], v[near], brain[near]) for v in (estimate, corrected)]
    print(
        json.dumps({key: np.round(v, 4).tolist() if key != "scan" else v for key, v in row.items()}),
        flush=True,
    )
    return row


if __name__ == "__main__":
    main()
