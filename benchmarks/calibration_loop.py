"""Test the calibration on scans that were simulated from a known prior.

    python benchmarks/calibration_loop.py --subject T1w.nii.gz WM.nii.gz GM.nii.gz [--subject ...]

Each scan is made from one of the subjects in turn (high-field image and tissue maps of the training), with
Rician noise. Then the embedded engine finds the tissues in the scan alone, and the SNR is measured as in
``--mode calibrate``. `--coarsen 2` averages pairs of voxels in the slice plane, to save time. Results are
lines of JSON; the last one is a summary.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes

from iqtflow.image.nifti import read_volume
from iqtflow.image.nifti_file import open_nifti
from iqtflow.segmentation.atropos import segment_tissues
from iqtflow.simulation.artifacts import Extras
from iqtflow.simulation.simulate import SliceStack, draw_scan, prepare_subject, ratios_of, realise
from iqtflow.simulation.snr_estimation import fit_prior, measure_snr
from iqtflow.simulation.snr_prior import SNRPrior

#: Differs from the published prior: another mean and contrast, a lower correlation (0.85).
SITE = SNRPrior("known", (35.0, 25.0), ((25.0, 17.0), (17.0, 16.0)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--subject", type=Path, nargs=3, action="append", required=True)
    parser.add_argument("--scans", type=int, default=30)
    parser.add_argument("--first", type=int, default=0, help="number of the first scan")
    parser.add_argument("-k", type=int, default=8)
    parser.add_argument("--axis", type=int, default=1, help="slice axis")
    parser.add_argument("--coarsen", type=int, default=1)
    parser.add_argument("--priors", choices=("none", "atlas"), default="atlas")
    options = parser.parse_args()
    drawn, measured = {}, {}
    for seed in range(options.first, options.first + options.scans):
        paths = options.subject[seed % len(options.subject)]
        record = one_scan(paths, seed, options)
        print(json.dumps(record), flush=True)
        drawn[str(seed)], measured[str(seed)] = record["drawn"], tuple(record["measured"])
    if len(drawn) > 2:
        print(json.dumps(summarise(np.array(list(drawn.values())), np.array(list(measured.values())))))
        print(json.dumps(fit_prior(measured).prior.as_dict()))


def one_scan(paths: list[Path], seed: int, options: argparse.Namespace) -> dict:
    """Simulate a scan, segment it, and measure its SNR."""
    volumes, affine = read_subject(paths, options.axis, options.coarsen)
    edge = float(voxel_sizes(affine)[options.axis])
    stack = SliceStack(options.axis, options.k * edge, 0.75 * options.k * edge)
    draw = draw_scan(SITE, Extras(), stack, seed=seed)
    subject = prepare_subject(volumes[0], volumes[1:], affine, stack)
    scan = np.ascontiguousarray(realise(subject, draw, distribution="rician"))
    maps = segment_tissues(nib.Nifti1Image(scan, subject.affine), priors=options.priors)
    voxel_mm = tuple(voxel_sizes(subject.affine).tolist())
    snr = measure_snr(scan, maps.wm, maps.gm, maps.mask, axis=options.axis, voxel_mm=voxel_mm)
    return {
        "seed": seed,
        "image": paths[0].name,
        "drawn": draw.snr,
        "measured": (snr.wm, snr.gm),
        "noise": snr.noise.sigma / ratios_of(subject, draw).sigma,
        "method": snr.noise.method,
        "engine": maps.engine,
        "overlap": maps.details.get("atlas_overlap"),
    }


def read_subject(paths: list[Path], axis: int, by: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Return image, WM and GM, averaged over this many voxels along both axes of the slice plane."""
    affine = np.array(open_nifti(paths[0]).affine, dtype=float)
    volumes = [read_volume(path)[1] for path in paths]
    for a in (a for a in range(3) if a != axis and by > 1):
        n = volumes[0].shape[a] // by * by
        volumes = [sum(np.take(v, range(first, n, by), axis=a) for first in range(by)) / by for v in volumes]
        affine[:3, 3] += affine[:3, a] * (by - 1) / 2
        affine[:3, a] *= by
    return volumes, affine


def summarise(drawn: np.ndarray, measured: np.ndarray) -> dict:
    error = measured / drawn - 1
    return {
        "n": len(drawn),
        "mean drawn": drawn.mean(axis=0).tolist(),
        "mean measured": measured.mean(axis=0).tolist(),
        "mean measured over the prior's": (measured.mean(axis=0) / SITE.mean).tolist(),
        "error of a scan, mean": error.mean(axis=0).tolist(),
        "error of a scan, largest": np.abs(error).max(axis=0).tolist(),
        "correlation drawn": float(np.corrcoef(drawn.T)[0, 1]),
        "correlation measured": float(np.corrcoef(measured.T)[0, 1]),
    }


if __name__ == "__main__":
    main()
