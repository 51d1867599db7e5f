"""Test the calibration on made-up scanners: what is measured, against what was put in.

    python benchmarks/calibration_loop.py --subject T1w.nii.gz WM.nii.gz GM.nii.gz [--subject ...] OUT.jsonl
    python benchmarks/calibration_loop.py --table OUT.jsonl
    python benchmarks/calibration_loop.py --how-many SCANNER OUT.jsonl

Each scan is made from one of the subjects in turn: high-field image without bias field, maps of WM and GM.
Then the embedded engine finds the tissues in the scan alone, and it is measured as in ``--mode calibrate``.
Each scan is a line of JSON in OUT.jsonl; a second run continues. ``--keep DIR`` keeps the tissue maps,
so that the same scans can be measured again in a few seconds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes

from iqtflow.image.nifti import read_volume
from iqtflow.image.nifti_file import open_nifti
from iqtflow.segmentation.atropos import segment_tissues
from iqtflow.simulation.artifacts import Extras, bias_field
from iqtflow.simulation.scanner import measure_scanner, pool_scanner
from iqtflow.simulation.simulate import (
    Draw,
    SliceStack,
    ThickSubject,
    draw_scan,
    prepare_subject,
    ratios_of,
    realise,
)
from iqtflow.simulation.snr_estimation import fit_prior, measure_snr
from iqtflow.simulation.snr_prior import SNRPrior


@dataclass(frozen=True)
class Scanner:
    """A made-up scanner: its prior and the settings of the simulator."""

    prior: SNRPrior
    spacing_mm: float
    fraction: float
    noise: str = "rician"
    inplane_fwhm_mm: float = 0.0
    bias_amplitude: float = 0.0
    stripes: float = 0.0


def prior(name: str, wm: float, gm: float, spread: float, correlation: float) -> SNRPrior:
    """Return a prior with a standard deviation of `spread` (relative) for both tissues."""
    sd = np.array([wm, gm]) * spread
    c = correlation * sd[0] * sd[1]
    return SNRPrior(name, (wm, gm), ((sd[0] ** 2, c), (c, sd[1] ** 2)))


SCANNERS = {
    "noisy": Scanner(prior("noisy", 20, 15.5, 0.15, 0.85), 5.0, 0.9, inplane_fwhm_mm=1.5, bias_amplitude=0.3),
    "thick": Scanner(prior("thick", 50, 39, 0.13, 0.9), 8.0, 0.55, bias_amplitude=0.1, stripes=0.06),
    "low-contrast": Scanner(
        prior("low-contrast", 40, 35.5, 0.12, 0.95), 6.0, 0.75, "gaussian", bias_amplitude=0.2
    ),
}


WORDS = {
    "thickness_fraction": "slice thickness / spacing",
    "inplane_fwhm_mm": "in-plane FWHM (mm; put in: added)",
    "bias_amplitude": "bias field amplitude (median)",
    "stripes": "difference of odd and even slices",
}


def scan_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser of the options that choose scanners and make their scans."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path)
    parser.add_argument("--subject", type=Path, nargs=3, action="append", default=[])
    parser.add_argument("--keep", type=Path, metavar="DIR")
    parser.add_argument("--scanner", choices=SCANNERS, action="append", help="default: all")
    parser.add_argument("--table", action="store_true")
    return parser


def store_line(output: Path, line: dict[str, Any]) -> None:
    """Add a result to the file of results, and print it."""
    with output.open("a") as stream:
        stream.write(json.dumps(line) + "\n")
    print(json.dumps(line), flush=True)


def main() -> None:
    parser = scan_parser(__doc__)
    parser.add_argument("--scans", type=int, default=15)
    parser.add_argument("--how-many", choices=SCANNERS)
    options = parser.parse_args()
    done = read_done(options.output)
    if options.table:
        print_table(done)
        return
    if options.how_many:
        print_how_many([line for line in done if line["scanner"] == options.how_many])
        return
    known = {(line["scanner"], line["seed"]) for line in done}
    for seed in range(options.scans):
        for name in options.scanner or SCANNERS:
            if (name, seed) not in known:
                line = one_scan(options.subject[seed % len(options.subject)], name, seed, options.keep)
                store_line(options.output, line)


def simulate_scan(paths: Sequence[Path], name: str, seed: int) -> tuple[np.ndarray, ThickSubject, Draw]:
    """Return a simulated scan of a made-up scanner, and what it was made from."""
    scanner = SCANNERS[name]
    affine = np.array(open_nifti(paths[0]).affine, dtype=float)
    image, wm, gm = (read_volume(path)[1] for path in paths)
    # Axial slices; coronal ones of brains that have their longest voxels along the third axis.
    edges = voxel_sizes(affine)
    axis = 1 if edges[2] > edges[1] * 1.05 else 2
    stack = SliceStack(axis, scanner.spacing_mm, scanner.fraction * scanner.spacing_mm)
    # Every scan of a scanner has the same in-plane blur. Its bias field is drawn.
    draw = draw_scan(scanner.prior, Extras(bias_amplitude=scanner.bias_amplitude), stack, seed=seed)
    draw = replace(draw, inplane_fwhm_mm=scanner.inplane_fwhm_mm)
    subject = prepare_subject(image, (wm, gm), affine, stack)
    if scanner.stripes:
        subject.intensity[..., ::2] *= (1 + scanner.stripes) ** 0.5
        subject.intensity[..., 1::2] /= (1 + scanner.stripes) ** 0.5
    return np.ascontiguousarray(realise(subject, draw, distribution=scanner.noise)), subject, draw


def one_scan(paths: Sequence[Path], name: str, seed: int, keep: Path | None) -> dict[str, Any]:
    """Simulate a scan, segment it, and measure it."""
    scan, subject, draw = simulate_scan(paths, name, seed)
    axis = subject.axis
    wm, gm, mask = tissues_of(scan, subject.affine, keep and keep / f"{name}_{seed}.npz")
    voxel_mm = tuple(voxel_sizes(subject.affine).tolist())
    snr = measure_snr(scan, wm, gm, mask, axis=axis, voxel_mm=voxel_mm)
    measured = measure_scanner(scan, wm, mask, subject.affine, axis=axis, noise=snr.noise)
    bias = float(np.abs(np.log(bias_field(draw.bias, (33, 33, 33)))).max()) if draw.bias else 0.0
    return {
        "scanner": name,
        "seed": seed,
        "image": paths[0].name,
        "drawn": draw.snr,
        "measured": (snr.wm, snr.gm),
        "noise": snr.noise.sigma / ratios_of(subject, draw).sigma,
        "method": snr.noise.method,
        "bias": bias,
        **measured.as_dict(),
    }


def tissues_of(
    scan: np.ndarray, affine: np.ndarray, kept: Path | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return WM, GM and brain mask of the scan alone; from the file if it is there."""
    if kept and kept.is_file():
        with np.load(kept) as file:
            return file["wm"] / np.float32(255), file["gm"] / np.float32(255), file["mask"]
    maps = segment_tissues(nib.Nifti1Image(scan, affine), priors="atlas")
    if kept:
        wm, gm = ((255 * tissue).round().astype(np.uint8) for tissue in (maps.wm, maps.gm))
        np.savez_compressed(kept, wm=wm, gm=gm, mask=maps.mask)
    return maps.wm, maps.gm, maps.mask


def read_done(path: Path) -> list[dict[str, Any]]:
    """Return the scans that are in the file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def correlation(covariance: Sequence[Sequence[float]]) -> float:
    (a, c), (_, b) = covariance
    return c / float(np.sqrt(a * b))


def print_table(done: list[dict[str, Any]]) -> None:
    """Print what was put in and what was measured, a column for each scanner."""
    columns = []
    for name in SCANNERS:
        lines = [line for line in done if line["scanner"] == name]
        if len(lines) > 2:
            columns.append(compare(name, lines))
    for row in columns[0] if columns else ():
        print("| " + " | ".join([row, *(column[row] for column in columns)]) + " |")
        if row == "scanner":
            print("|---" * (len(columns) + 1) + "|")


def compare(name: str, lines: list[dict[str, Any]]) -> dict[str, str]:
    """Return the rows of one made-up scanner."""
    scanner, pooled = SCANNERS[name], pool_scanner(lines)
    drawn, measured = (np.array([line[key] for line in lines]) for key in ("drawn", "measured"))
    fitted = fit_prior({str(line["seed"]): tuple(line["measured"]) for line in lines})
    noise = np.array([line["noise"] for line in lines])
    wanted, mean = drawn.mean(axis=0), measured.mean(axis=0)
    correlations = [
        correlation(scanner.prior.covariance),
        np.corrcoef(drawn.T)[0, 1],
        np.corrcoef(measured.T)[0, 1],
        correlation(fitted.prior.covariance),
    ]
    put_in = {
        "thickness_fraction": scanner.fraction,
        "inplane_fwhm_mm": scanner.inplane_fwhm_mm,
        "bias_amplitude": float(np.median([line["bias"] for line in lines])),
        "stripes": scanner.stripes,
    }
    rows = {
        "scanner": f"{name}, {len(lines)} scans",
        "SNR of WM: drawn, measured": f"{wanted[0]:.1f}, {mean[0]:.1f} ({mean[0] / wanted[0] - 1:+.1%})",
        "SNR of GM: drawn, measured": f"{wanted[1]:.1f}, {mean[1]:.1f} ({mean[1] / wanted[1] - 1:+.1%})",
        "correlation: prior, drawn, measured, fitted": ", ".join(f"{value:.2f}" for value in correlations),
        "noise: measured / put in": f"{np.median(noise):.3f} ({noise.min():.3f} to {noise.max():.3f})",
        "kind of noise: put in, measured": f"{scanner.noise}, {pooled['noise_distribution']}",
    }
    for key, value in put_in.items():
        found = pooled[key]
        told = (
            "None" if found is None else f"{found['median']:.3f} ± {found['spread']:.3f} (n = {found['n']})"
        )
        rows[f"{WORDS[key]}: put in, measured"] = f"{value:.3f}, {told}"
    return rows


def print_how_many(lines: list[dict[str, Any]], subsets: int = 1000) -> None:
    """Print the error that 9 of 10 priors from n scans of one scanner stay below.

    The SNR of the scans are drawn anew from the prior. They have the relative errors of measured scans.
    """
    scanner = SCANNERS[lines[0]["scanner"]]
    errors = np.array([np.array(line["measured"]) / line["drawn"] for line in lines])
    truth = correlation(scanner.prior.covariance)
    rng = np.random.default_rng(0)
    print("| scans | mean SNR of WM, GM | correlation | standard deviation of WM |\n|---|---|---|---|")
    for n in (5, 10, 20, 30):
        found = []
        for _ in range(subsets):
            some = rng.choice(len(errors), n, replace=n > len(errors))
            snr = np.array([scanner.prior.sample(rng) for _ in range(n)]) * errors[some]
            fit = fit_prior({str(i): (float(a), float(b)) for i, (a, b) in enumerate(snr)}).prior
            found.append([
                *np.abs(np.array(fit.mean) / scanner.prior.mean - 1),
                abs(correlation(fit.covariance) - truth),
                abs(np.sqrt(fit.covariance[0][0] / scanner.prior.covariance[0][0]) - 1),
            ])  # fmt: skip
        wm, gm, corr, spread = np.percentile(found, 90, axis=0)
        print(f"| {n} | {wm:.1%}, {gm:.1%} | {corr:.2f} | {spread:.0%} |")


if __name__ == "__main__":
    main()
