"""iqtflow-combine: one volume from several enhanced scans of one head.

This command is a part of ``iqtflow --combine-stacks``. To enhance scans and combine them, use
``iqtflow-enhance SCAN OUTPUT --stack OTHER_SCAN``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from iqtflow.cli.options import Formatter, add_command_options
from iqtflow.utils.command import run_command
from iqtflow.utils.errors import UsageError
from iqtflow.utils.outputs import IMAGE, JSON, add_overwrite, check_outputs

PROG = "iqtflow-combine"
#: Files of each scan: option, and what it is.
FILES = {
    "scan": "thick-slice scan",
    "enhanced": "its enhanced volume",
    "mask": "brain mask on its grid",
    "details": "JSON of its enhancement",
    "std": "predicted error on the grid of the enhanced volume",
    "sidecar": "BIDS metadata of the scan",
}
OPTIONAL = ("std", "sidecar")


def build_parser() -> argparse.ArgumentParser:
    """Command-line parser; imports nothing heavy."""
    parser = argparse.ArgumentParser(prog=PROG, description=__doc__, formatter_class=Formatter)
    add = parser.add_argument
    add("output", type=Path, help="combined volume to write")
    for name, words in FILES.items():
        text = f"{words}; once for each scan, in the same order"
        add(f"--{name}", type=Path, action="append", default=[], required=name not in OPTIONAL, help=text)
    add("--name", action="append", default=[], help="name of the scan in messages and in the JSON file")
    add("--std-out", type=Path, help="write the predicted error of the combined volume here")
    add("--single", type=Path, help="write the best single enhanced volume on the same grid here")
    add("--residual", type=Path, help="write first scan minus expected scan here, on the first scan's grid")
    add("--json", type=Path, help="write registration, weights, grid and comparison with the slices here")
    add_command_options(parser, "enhance", ["voxel_size"])
    add_command_options(parser, "run", ["omp_nthreads"])
    add_overwrite(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(PROG, lambda: _combine(build_parser().parse_args(argv)), needs_gb=2.0)


def _combine(options: argparse.Namespace) -> None:
    given = {name: getattr(options, name) for name in FILES}
    n = len(given["scan"])
    for name, files in [*given.items(), ("name", options.name)]:
        if len(files) != n and not (name in (*OPTIONAL, "name") and not files):
            raise UsageError(
                f"--{name}",
                found=f"{len(files)} given",
                expected=f"{n}: one for each --scan",
                next_step="Give the files of each scan in the same order.",
            )
    check_outputs(
        PROG,
        {
            "output": (options.output, IMAGE),
            "--std-out": (options.std_out, IMAGE),
            "--single": (options.single, IMAGE),
            "--residual": (options.residual, IMAGE),
            "--json": (options.json, JSON),
        },
        inputs=[file for files in given.values() for file in files],
        overwrite=options.overwrite,
    )
    from iqtflow.image.metadata import read_fields
    from iqtflow.image.nifti import write_images, write_json
    from iqtflow.image.nifti_file import open_nifti
    from iqtflow.image.validate import check_scan
    from iqtflow.inference.stacks import Stack, combine_stacks

    names = options.name or [str(path) for path in options.scan]
    stacks = [
        Stack(
            names[i],
            check_scan(given["scan"][i]),
            open_nifti(given["enhanced"][i]),
            open_nifti(given["std"][i]) if given["std"] else None,
            open_nifti(given["mask"][i]),
            read_fields(given["sidecar"][i]) if given["sidecar"] else {},
            read_fields(given["details"][i]),
        )
        for i in range(n)
    ]
    edge = None if isinstance(options.voxel_size, str) else options.voxel_size
    made = combine_stacks(stacks, voxel_mm=edge, report=lambda line: print(f"{PROG}: {line}", flush=True))
    volumes = [
        (options.std_out, made.std),
        (options.single, made.single),
        (options.residual, made.residual),
        (options.output, made.mean),
    ]
    write_images(volumes, maker=PROG)
    if options.json:
        write_json(options.json, made.details, maker=PROG)


if __name__ == "__main__":
    raise SystemExit(main())
