"""``iqtflow-simulate``: make a low-field scan from a high-field one and its tissue maps (Algorithm 1 of Lin et al., MLMI 2019)."""

from __future__ import annotations

import argparse
from pathlib import Path

from iqtflow.errors import InputError, run_command

AXES = {"x": 0, "y": 1, "z": 2, "0": 0, "1": 1, "2": 2}


def build_parser() -> argparse.ArgumentParser:
    """Command-line parser; cheap, imports nothing heavy."""
    parser = argparse.ArgumentParser(prog="iqtflow-simulate", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("high_field", type=Path, help="high-field T1w image")
    parser.add_argument("output", type=Path, help="low-field image to write (.nii or .nii.gz)")
    parser.add_argument("--wm", type=Path, required=True, help="white-matter probability map on the image's grid")
    parser.add_argument("--gm", type=Path, required=True, help="grey-matter probability map on the image's grid")
    parser.add_argument("--k", type=int, default=4, help="slice spacing over the thin voxel edge")
    parser.add_argument("--slice-axis", choices=sorted(AXES), default="z", help="array axis along which thick slices are stacked")
    parser.add_argument("--thickness-mm", type=float, help="slice thickness (FWHM of the profile); 3/4 of the spacing when not given")
    parser.add_argument("--gap-mm", type=float, help="gap between slices; checked against spacing - thickness when given")
    parser.add_argument("--prior", default="ibadan-0.36T", help="SNR prior: a published one by name, or a JSON file")
    parser.add_argument("--fixed-tissue", choices=("WM", "GM"), default="WM", help="tissue that keeps its intensity")
    parser.add_argument("--noise", choices=("gaussian", "rician"), default="gaussian", help="distribution of the noise")
    parser.add_argument("--seed", type=int, default=0, help="seed of the drawn SNR and of the noise")
    parser.add_argument("--json", type=Path, help="write what was drawn here")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = build_parser().parse_args(argv)
    return run_command("iqtflow-simulate", lambda: _simulate(options))


def _simulate(options: argparse.Namespace) -> None:
    import numpy as np
    import torch

    from iqtflow import __version__
    from iqtflow.decimation import add_noise, contrast_ratios, decimate, recontrast
    from iqtflow.geometry import AXIS_NAMES, slices_back, slices_last, thick_affine, voxel_sizes
    from iqtflow.nifti import read_volume, write_json, write_volume
    from iqtflow.slice_profile import decimation_matrix
    from iqtflow.snr import read_prior, tissue_mean

    axis = AXES[options.slice_axis]
    image, intensity = read_volume(options.high_field)
    _, wm = read_volume(options.wm, like=image)
    _, gm = read_volume(options.gm, like=image)
    prior = read_prior(options.prior)
    edge = float(voxel_sizes(image.affine)[axis])
    spacing = options.k * edge
    thickness = 0.75 * spacing if options.thickness_mm is None else options.thickness_mm
    gap = spacing - thickness if options.gap_mm is None else options.gap_mm
    if abs(thickness + gap - spacing) > 0.01 * edge:
        raise InputError(options.high_field, found=f"thickness {thickness:g} mm + gap {gap:g} mm", expected=f"their sum to be k x voxel edge = {spacing:g} mm",
                         next_step="Change --thickness-mm, --gap-mm or --k.")
    mean_wm, mean_gm = tissue_mean(intensity, wm, tissue="WM"), tissue_mean(intensity, gm, tissue="GM")
    alpha = prior.sample(np.random.default_rng([options.seed, 0]))
    ratios = contrast_ratios(alpha, mean_wm, mean_gm, fixed=options.fixed_tissue)

    matrix = decimation_matrix(intensity.shape[axis], options.k, thickness / edge)
    last, affine = slices_last(intensity, image.affine, axis)
    thick = [decimate(torch.from_numpy(np.ascontiguousarray(v)), matrix) for v in (last, slices_last(wm, image.affine, axis)[0], slices_last(gm, image.affine, axis)[0])]
    clean = recontrast(*thick, ratios.wm, ratios.gm)
    low = add_noise(clean, ratios.sigma, torch.Generator().manual_seed(options.seed), distribution=options.noise)
    data, affine = slices_back(low.numpy(), thick_affine(affine, options.k), axis)
    write_volume(options.output, np.ascontiguousarray(data), affine, like=image)
    if options.json:
        write_json(options.json, {
            "SliceThickness": round(thickness, 6), "SpacingBetweenSlices": round(spacing, 6), "SliceGap": round(gap, 6), "SliceAxis": AXIS_NAMES[axis],
            "UpsamplingFactor": options.k, "SNR": {"WM": alpha[0], "GM": alpha[1]}, "NoiseStandardDeviation": ratios.sigma,
            "IntensityRatio": {"WM": ratios.wm, "GM": ratios.gm}, "FixedTissue": options.fixed_tissue, "NoiseDistribution": options.noise,
            "SNRPrior": prior.as_dict(), "Seed": options.seed, "SoftwareVersion": __version__,
        })


if __name__ == "__main__":
    raise SystemExit(main())
