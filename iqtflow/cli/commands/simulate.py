"""iqtflow-simulate: make a low-field scan from a high-field one and its tissue maps.

Algorithm 1 of Lin et al., MLMI 2019.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from iqtflow.cli.options import Formatter, add_command_options, value
from iqtflow.config import AXES, IMPERFECTIONS, SNR_LIMITS
from iqtflow.utils.command import run_command
from iqtflow.utils.errors import InputError, UsageError
from iqtflow.utils.outputs import IMAGE, JSON, add_overwrite, check_outputs

PROG = "iqtflow-simulate"
#: Array axis of each name; numbers are names, too.
AXIS = {name: number for number, axis in enumerate(AXES) for name in (axis, str(number))}
#: Options that the JSON file decides when a scan is made again from it.
RECIPE = (
    "k", "slice_axis", "thickness_mm", "gap_mm", "snr_prior", "fixed_tissue", "noise", "seed",
    "fwhm_jitter", "slice_offset_mm", "inplane_fwhm_mm", "inplane_fwhm_least_mm",
    "bias_amplitude",
)  # fmt: skip


def build_parser() -> argparse.ArgumentParser:
    """Command-line parser; imports nothing heavy."""
    parser = argparse.ArgumentParser(prog=PROG, description=__doc__, formatter_class=Formatter)
    add = parser.add_argument
    add("high_field", type=Path, help="high-field T1w image")
    add("output", type=Path, help="low-field image to write (.nii or .nii.gz)")
    add("--wm", type=Path, required=True, help="white-matter probability map on the image's grid")
    add("--gm", type=Path, required=True, help="grey-matter probability map on the image's grid")
    add("--json", type=Path, help="write all settings of the simulated scan here")
    add(
        "--from-json",
        type=Path,
        help="simulate a scan again from the JSON that was written with it, instead of drawing a new one",
    )

    slices = parser.add_argument_group("slices")
    slices.add_argument(
        "--k",
        type=value(int, low=1),
        help="upsampling factor: slice spacing over thin voxel edge (default: 4; if thickness and gap are "
        "given, the spacing is their sum, which need not be a multiple of the edge)",
    )
    slices.add_argument(
        "--slice-axis", choices=sorted(AXIS), default="z", help="array axis along which slices are stacked"
    )
    slices.add_argument(
        "--thickness-mm",
        type=float,
        metavar="MM",
        help="slice thickness (FWHM of the profile) (default: 3/4 of the spacing)",
    )
    slices.add_argument(
        "--gap-mm", type=float, metavar="MM", help="gap between slices (default: the rest of the spacing)"
    )

    signal = parser.add_argument_group("contrast and noise")
    add_command_options(signal, "train", ["snr_prior"])
    signal.add_argument(
        "--snr",
        type=value(float, low=SNR_LIMITS[0], high=SNR_LIMITS[1]),
        nargs=2,
        metavar=("WM", "GM"),
        help="a fixed SNR instead of a drawn one",
    )
    signal.add_argument(
        "--fixed-tissue", choices=("WM", "GM"), default="WM", help="tissue that keeps its intensity"
    )
    signal.add_argument(
        "--noise", choices=("gaussian", "rician"), default="gaussian", help="distribution of the noise"
    )
    add_command_options(signal, "run", ["seed"], type=value(int, low=0))

    extras = parser.add_argument_group("imperfections that the paper does not have (0: off)")
    for name, metavar, text in (
        (
            "fwhm_jitter",
            "J",
            "profile wider or narrower than the thickness, by a factor of up to 1 + J "
            "(doi:10.1016/j.media.2023.102789)",
        ),
        (
            "slice_offset_mm",
            "MM",
            "largest shift of the slices; the affine follows (doi:10.1016/j.neuroimage.2021.118206)",
        ),
        ("inplane_fwhm_mm", "MM", "largest blur in the plane, FWHM (doi:10.1016/j.neuroimage.2021.118206)"),
        ("inplane_fwhm_least_mm", "MM", "smallest blur in the plane, FWHM"),
        ("bias_amplitude", "A", "largest log-amplitude of a bias field (doi:10.1109/42.668698)"),
    ):
        extras.add_argument(
            f"--{name.replace('_', '-')}",
            type=value(float, low=0, high=IMPERFECTIONS[name]),
            default=0.0,
            metavar=metavar,
            help=text,
        )
    add_overwrite(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = build_parser()
    return run_command(PROG, lambda: _simulate(parser.parse_args(argv), parser))


def _simulate(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    import numpy as np
    from nibabel.affines import voxel_sizes

    from iqtflow import __version__
    from iqtflow.image.nifti import read_volume, write_json, write_volume
    from iqtflow.image.validate import check_scan
    from iqtflow.simulation.recipe import describe, digest
    from iqtflow.simulation.simulate import prepare_subject, ratios_of, realise

    check_outputs(
        PROG,
        {"output": (options.output, IMAGE), "--json": (options.json, JSON)},
        inputs=(options.high_field, options.wm, options.gm, options.from_json, options.snr_prior),
        overwrite=options.overwrite,
    )
    image = check_scan(options.high_field)
    for note in image.extra["notes"]:
        print(f"{PROG}: note: {options.high_field}: {note}", flush=True)
    intensity = np.asarray(image.dataobj)
    if options.from_json:
        _refuse_settings(options, parser)
        recipe, expected, record = _recalled(options.from_json)
    else:
        recipe, expected, record = _drawn(options, voxel_sizes(image.affine))
    digests = {"image": digest(intensity)}
    _compare(digests, expected, "image", options.high_field)

    def maps() -> Iterator[Any]:
        for name, path in (("wm", options.wm), ("gm", options.gm)):
            _, probability = read_volume(path, like=image)
            digests[name] = digest(probability)
            _compare(digests, expected, name, path)
            yield probability
            del probability

    draw = recipe.draw
    subject = prepare_subject(
        intensity, maps(), image.affine, recipe.stack, fwhm_mm=draw.fwhm_mm, offset_mm=draw.offset_mm
    )
    del intensity
    low = realise(subject, draw, fixed=recipe.fixed, distribution=recipe.distribution)
    write_volume(options.output, low, subject.affine, like=image, maker=PROG)
    if options.json:
        fields = describe(
            recipe,
            ratio=recipe.stack.spacing_mm / float(voxel_sizes(image.affine)[recipe.stack.axis]),
            ratios=ratios_of(subject, draw, fixed=recipe.fixed),
            digests=digests,
            **record,
        )
        write_json(options.json, {**fields, "SoftwareVersion": __version__}, maker=PROG)


def _drawn(options: argparse.Namespace, edges_mm: Any) -> tuple[Any, dict[str, str], dict[str, Any]]:
    """Return the recipe that the options ask for, with random values drawn, and its record."""
    from iqtflow.simulation.artifacts import Extras
    from iqtflow.simulation.recipe import Recipe
    from iqtflow.simulation.simulate import draw_scan, plan_slices
    from iqtflow.simulation.snr_prior import SNRPrior, read_prior

    axis = AXIS[options.slice_axis]
    stack = plan_slices(
        float(edges_mm[axis]),
        axis=axis,
        k=options.k,
        thickness_mm=options.thickness_mm,
        gap_mm=options.gap_mm,
    )
    extras = Extras(
        options.fwhm_jitter,
        options.slice_offset_mm,
        options.inplane_fwhm_mm,
        options.bias_amplitude,
        options.inplane_fwhm_least_mm,
    )
    if options.snr:
        prior = SNRPrior("fixed", tuple(options.snr), ((0.0, 0.0), (0.0, 0.0)), "given on the command line")
    else:
        prior = read_prior(options.snr_prior)
    draw = draw_scan(prior, extras, stack, seed=options.seed)
    recipe = Recipe(stack, draw, options.fixed_tissue, options.noise)
    return recipe, {}, {"prior": prior.as_dict(), "extras": asdict(extras)}


def _recalled(path: Path) -> tuple[Any, dict[str, str], dict[str, Any]]:
    from iqtflow.simulation.recipe import read_fields, recall

    recipe, digests = recall(path)
    fields = read_fields(path)
    return recipe, digests, {"prior": fields.get("SNRPrior", {}), "extras": fields.get("Extras", {})}


def _refuse_settings(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    given = [
        "--prior" if name == "snr_prior" else f"--{name.replace('_', '-')}"
        for name in (*RECIPE, "snr")
        if getattr(options, name) != parser.get_default(name)
    ]
    if given:
        raise UsageError(
            "--from-json",
            found=f"it together with {', '.join(given)}",
            expected="the JSON file alone, which decides all of these",
            next_step="Leave them out, or leave --from-json out.",
        )


def _compare(digests: dict[str, str], expected: dict[str, str], name: str, path: Path) -> None:
    """Make sure that the images are those of the recipe: on others it makes other voxels."""
    if expected and digests[name] != expected[name]:
        raise InputError(
            path,
            found=f"voxels with SHA-256 {digests[name][:12]}...",
            expected=f"those that the scan was made from ({expected[name][:12]}...)",
            next_step="Give the images that the JSON file was written for.",
        )


if __name__ == "__main__":
    raise SystemExit(main())
