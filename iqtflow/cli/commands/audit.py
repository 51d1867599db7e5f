"""iqtflow-audit: compare an enhanced volume of any method with the slices that were acquired.

The enhanced volume is averaged over each slice, in the contrast of the scan, and subtracted from the scan.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from iqtflow.cli.options import SKULL_STRIPPED, Formatter, add_command_options, value
from iqtflow.utils.command import run_command
from iqtflow.utils.outputs import IMAGE, JSON, add_overwrite, check_outputs

PROG = "iqtflow-audit"


def build_parser() -> argparse.ArgumentParser:
    """Command-line parser; imports nothing heavy."""
    parser = argparse.ArgumentParser(prog=PROG, description=__doc__, formatter_class=Formatter)
    add = parser.add_argument
    add("scan", type=Path, help="thick-slice scan (.nii or .nii.gz)")
    add("enhanced", type=Path, help="its enhanced volume, in the same place")
    add("--residual", type=Path, help="write the difference here, in standard deviations of the noise")
    add("--json", type=Path, help="write the figures and the places here")
    add("--mask", type=Path, help="brain mask on the scan's grid (default: the brain is searched)")
    add("--std", type=Path, help="standard deviation on the grid of the enhanced volume")
    add("--sidecar", type=Path, help="BIDS metadata of the scan (SliceThickness, SkullStripped)")
    add(
        "--thickness",
        type=value(float, above=0),
        metavar="MM",
        help="slice thickness in mm (default: SliceThickness of the sidecar, else 3/4 of the spacing)",
    )
    add("--skull-stripped", choices=tuple(SKULL_STRIPPED), default="auto", help="is the skull removed?")
    add_command_options(parser, "run", ["omp_nthreads"])
    add_overwrite(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(PROG, lambda: _audit(build_parser().parse_args(argv)))


def _audit(options: argparse.Namespace) -> None:
    from iqtflow.image.metadata import drop_invalid_fields, read_fields
    from iqtflow.image.nifti import write_image, write_json
    from iqtflow.inference.data_consistency import audit_files

    check_outputs(
        PROG,
        {"--residual": (options.residual, IMAGE), "--json": (options.json, JSON)},
        inputs=(options.scan, options.enhanced, options.mask, options.std, options.sidecar),
        overwrite=options.overwrite,
    )
    sidecar: dict[str, Any] = {}
    if options.sidecar:
        sidecar, notes = drop_invalid_fields(read_fields(options.sidecar), options.sidecar)
        for note in notes:
            print(f"{PROG}: note: {note}", flush=True)
    if options.thickness:
        sidecar["SliceThickness"] = options.thickness
    if SKULL_STRIPPED[options.skull_stripped] is not None:
        sidecar["SkullStripped"] = SKULL_STRIPPED[options.skull_stripped]
    found = audit_files(
        options.scan,
        options.enhanced,
        mask=options.mask,
        std=options.std,
        sidecar=sidecar,
        num_threads=options.omp_nthreads,
    )
    if options.residual:
        write_image(options.residual, found.residual, maker=PROG)
    if options.json:
        write_json(options.json, {"DataConsistency": found.fields}, maker=PROG)
    for line in describe(found.fields):
        print(line)


def describe(fields: Mapping[str, Any]) -> list[str]:
    """Return the field ``DataConsistency`` as lines of text."""
    share = fields["UncheckedShare"]
    lines = [
        f"Difference from the scan: {fields['ResidualRMS']:.2f} times the noise (expected: 1)",
        "Slice thickness: not stated"
        if share is None
        else f"In gaps between slices, which no slice can check: {share:.0%} of the enhanced volume",
        f"Places that differ more than usual: {len(fields['Places'])}",
    ]
    for place in fields["Places"]:
        position = ", ".join(f"{v:.0f}" for v in place["PositionMM"])
        lines.append(
            f"  {place['Kind']:11} at ({position}) mm, slices {place['Slices'][0]} to {place['Slices'][-1]}, "
            f"{place['VolumeML']:.2f} ml, contrast {place['Contrast']:+.2f}, score {place['Score']:.1f}"
        )
    return lines


if __name__ == "__main__":
    raise SystemExit(main())
