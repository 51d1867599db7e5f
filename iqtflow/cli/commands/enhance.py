"""iqtflow-enhance: enhance a thick-slice scan, or those of a folder or table, without BIDS."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from iqtflow.cli.many_scans import enhance_many, is_many
from iqtflow.cli.options import SKULL_STRIPPED, Formatter, add_command_options, value
from iqtflow.config import SETTINGS
from iqtflow.reports.run_summary import describe_enhancement
from iqtflow.reports.terminal import at_work
from iqtflow.utils.command import run_command
from iqtflow.utils.errors import UsageError
from iqtflow.utils.gpus import device_claimed, require_cuda, resolve_device
from iqtflow.utils.outputs import IMAGE, JSON, add_overwrite, check_outputs
from iqtflow.utils.system import USUAL_GB, WITH_TORCH_GB

PROG = "iqtflow-enhance"


def build_parser() -> argparse.ArgumentParser:
    """Command-line parser; imports nothing heavy."""
    parser = argparse.ArgumentParser(prog=PROG, description=__doc__, formatter_class=Formatter)
    add = parser.add_argument
    add(
        "scan",
        type=Path,
        help="thick-slice scan (.nii or .nii.gz); or a folder of scans, or a table of them (.csv with the "
        "columns scan and, if needed, output, sidecar, contrast, skull_stripped; paths are relative to the "
        "table)",
    )
    add(
        "output",
        type=Path,
        help="enhanced volume to write; for a folder or a table the folder of the results, which have the "
        "names of the scans. Results that exist are kept",
    )
    add(
        "--stack",
        type=Path,
        action="append",
        default=[],
        metavar="SCAN",
        help="another scan of the same head, session and contrast, with slices along another axis or "
        "repeated; can be given several times. Each scan is enhanced, and the output is one volume of all, "
        "with cubic voxels; JSON files beside these scans are read",
    )
    add(
        "--std",
        type=Path,
        help="write the predicted error (standard deviation) here, if the model predicts it, is an ensemble, "
        "or with --average-mirrored",
    )
    add("--spline", type=Path, help="write the cubic B-spline interpolation on the same grid here")
    add("--mask-out", type=Path, help="write the brain mask on the scan's grid here")
    add(
        "--residual",
        type=Path,
        help="write scan minus expected scan here, in standard deviations of the noise, on the scan's grid",
    )
    add("--json", type=Path, help="write geometry, model, device, seconds and memory here")
    add_command_options(parser, "enhance", ["model"])
    add("--contrast", help="BIDS suffix, such as T1w (default: that of the file's name, else T1w)")
    add("--sidecar", type=Path, help="BIDS metadata of the scan (SliceThickness, SkullStripped)")
    add("--skull-stripped", choices=tuple(SKULL_STRIPPED), default="auto", help="is the skull removed?")
    add_command_options(parser, "run", ["force"])
    add_command_options(parser, "run", ["device"], default="auto")
    names = ["precision", "tiling", "slice_intensity", "mirror", "data_consistency", "voxel_size"]
    names += ["acquired_spacing", "acquired_axis"]
    add_command_options(parser, "enhance", names)
    white_matter = SETTINGS["enhance"]["keep_white_matter"]
    add(
        white_matter.option,
        choices=("yes", "no"),
        default="yes" if white_matter.default else "no",
        help=white_matter.help,
    )
    add_command_options(parser, "run", ["omp_nthreads"])
    add(
        "--max-memory-gb",
        type=value(float, above=0),
        metavar="GB",
        help="memory for the networks; the volume is enhanced in tiles if one pass needs more",
    )
    add_overwrite(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code: for many scans the highest one of those that failed.

    Without ``--force`` a near-isotropic scan is refused: nothing is written, and the code is 1.
    """
    return run_command(
        PROG,
        lambda: _run(build_parser().parse_args(argv)),
        least_gb=WITH_TORCH_GB,
        needs_gb=USUAL_GB,
        spares_memory="use --tiling tiles or a lower --max-memory-gb, or ",
    )


def _run(options: argparse.Namespace) -> int | None:
    if options.stack and (options.spline or is_many(options.scan)):
        raise UsageError(
            "--stack",
            found=f"given with {'--spline' if options.spline else 'a folder or a table of scans'}",
            expected="--stack with one scan and without --spline: several scans have no common spline",
            next_step="Give the first scan as a file, leave out --spline, or leave out --stack.",
        )
    if is_many(options.scan):
        return enhance_many(build_parser(), options)
    if not os.path.lexists(options.scan) and not options.scan.name.endswith(IMAGE):
        raise UsageError(
            options.scan,
            found="nothing",
            expected="a scan (.nii or .nii.gz), a folder of scans, or a table of scans",
            next_step="Check the path.",
        )
    images = {"output": "output", "--std": "std", "--spline": "spline", "--mask-out": "mask_out"}
    images["--residual"] = "residual"
    check_outputs(
        PROG,
        {
            **{option: (getattr(options, name), IMAGE) for option, name in images.items()},
            "--json": (options.json, JSON),
        },
        inputs=(options.scan, *options.stack, options.sidecar, options.model),
        overwrite=options.overwrite,
    )
    options.device = resolve_device(options.device).name
    # Before torch is imported, which reads at once which GPUs it may use.
    with device_claimed(options.device, lambda line: print(f"{PROG}: {line}", flush=True)), at_work() as say:
        _enhance(options, say)
    return None


def _enhance(options: argparse.Namespace, say: Callable[[str], None]) -> None:
    say("checking the scan")
    from iqtflow import __version__
    from iqtflow.image.nifti import write_images, write_json
    from iqtflow.image.validate import check_scan
    from iqtflow.inference.pipeline import enhance_all, enhance_image
    from iqtflow.models.zoo import contrast_of

    stages = iter(("finding the brain", "enhancing"))

    def report(line: str) -> None:
        print(f"{PROG} {__version__}: {line}", flush=True)
        say(next(stages, "enhancing"))

    require_cuda(options.device)
    image = None if options.stack else check_scan(options.scan)
    choice: dict[str, Any] = {
        "sidecar": _read_sidecar(options.sidecar),
        "model": options.model,
        "contrast": options.contrast or contrast_of(options.scan),
        "device": options.device,
        "precision": None if options.precision == "auto" else options.precision,
        "num_threads": options.omp_nthreads,
        "skull_stripped": SKULL_STRIPPED[options.skull_stripped],
        "force": options.force,
        "max_memory_gb": options.max_memory_gb,
        "tiling": options.tiling,
        "slice_intensity": options.slice_intensity,
        "mirror": options.mirror,
        "keep_white_matter": options.keep_white_matter == "yes",
        "data_consistency": options.data_consistency,
        "voxel_size": options.voxel_size,
        "acquired_spacing": options.acquired_spacing,
        "acquired_axis": options.acquired_axis,
        "report": report,
    }
    result: Any
    if image is None:
        choice["sidecar"] = choice["sidecar"] or None
        result = enhance_all([options.scan, *options.stack], choice)
    else:
        result = enhance_image(image, **choice)
    # The enhanced volume last: if it exists, all files do.
    made = [
        (options.std, result.std),
        (options.spline, None if options.stack else result.spline),
        (options.mask_out, result.mask),
        (options.residual, result.residual),
        (options.output, result.mean),
    ]
    write_images(made, maker=PROG)
    if options.json:
        write_json(options.json, result.details, maker=PROG)
    warnings = [f"note: {warning}" for warning in result.details["Warnings"]]
    for line in warnings if options.stack else describe_enhancement(result.details):
        print(f"{PROG}: {options.output}: {line}", flush=True)


def _read_sidecar(path: Path | None) -> dict:
    if path is None:
        return {}
    from iqtflow.image.metadata import drop_invalid_fields, read_fields

    fields, notes = drop_invalid_fields(read_fields(path), path)
    for note in notes:
        print(f"{PROG}: note: {note}", flush=True)
    return fields


if __name__ == "__main__":
    raise SystemExit(main())
