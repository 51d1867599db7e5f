"""iqtflow-evaluate: compare enhanced volumes with the truth inside the brain.

The table has two kinds of MSSIM. Do not compare them with each other: Wang's (2004) is three-dimensional, the
one of the paper's authors is computed slice by slice. For methods that change the contrast, the table has
PSNR and MSSIM after a linear fit to the truth, and PSNR after the best rising curve, too. NMSE is the squared
error over that of an empty image, MAE the absolute error over the brightest voxel, ULF-EnC the score of that
challenge.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from iqtflow.utils.command import run_command
from iqtflow.utils.outputs import JSON, add_overwrite, check_outputs

PROG = "iqtflow-evaluate"


def build_parser() -> argparse.ArgumentParser:
    """Command-line parser; imports nothing heavy."""
    parser = argparse.ArgumentParser(prog=PROG, description=__doc__)
    parser.add_argument(
        "reference", type=Path, help="the truth; its grid may be larger than that of the enhanced volumes"
    )
    parser.add_argument("estimates", type=Path, nargs="+", help="enhanced volumes on the truth's grid")
    parser.add_argument(
        "--mask", type=Path, help="brain mask on the truth's grid (default: the truth above 0)"
    )
    parser.add_argument(
        "--std",
        type=Path,
        help="predicted error (desc-iqtstd) of the first volume: compare it with the actual error",
    )
    parser.add_argument("--json", type=Path, help="write the scores here, too")
    add_overwrite(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(PROG, lambda: _evaluate(build_parser().parse_args(argv)))


def _evaluate(options: argparse.Namespace) -> None:
    from iqtflow.evaluation.scores import evaluate_files, reliability_of_files
    from iqtflow.image.nifti import write_json

    check_outputs(
        PROG,
        {"--json": (options.json, JSON)},
        inputs=(options.reference, *options.estimates, options.mask, options.std),
        overwrite=options.overwrite,
    )
    files = {str(path): path for path in options.estimates}
    mask = options.mask or options.reference
    scores = evaluate_files(options.reference, mask, files, across_methods=True)
    print(score_table(scores))
    reliability = None
    if options.std:
        from iqtflow.evaluation.uncertainty_calibration import reliability_table

        first = options.estimates[0]
        reliability = reliability_of_files(options.reference, mask, first, options.std)
        print(f"\n{options.std}:\n{reliability_table(reliability)}")
    if options.json:
        # JSON has no infinity: the PSNR of a volume equal to the truth is null.
        finite: dict[str, dict[str, Any]] = {
            n: {k: v if math.isfinite(v) else None for k, v in row.items()} for n, row in scores.items()
        }
        if reliability is not None:
            finite[str(first)]["reliability"] = reliability
        write_json(options.json, finite, maker=PROG)


#: Columns of the table: figure, heading, format.
COLUMNS = (
    ("psnr", "PSNR (dB)", ".2f"),
    ("psnr_linear", "PSNR, linear fit", ".2f"),
    ("psnr_monotone", "PSNR, monotone fit", ".2f"),
    ("mssim", "MSSIM", ".3f"),
    ("mssim_linear", "MSSIM, linear fit", ".3f"),
    ("mssim_slicewise", "MSSIM, slice-wise", ".3f"),
    ("nmse", "NMSE", ".4f"),
    ("mae", "MAE", ".4f"),
    ("ulf_enc", "ULF-EnC", ".3f"),
)


def score_table(scores: dict[str, dict[str, float]]) -> str:
    """Return the scores of each volume as lines of text, with those of `COLUMNS` that were computed."""
    width = max(len(name) for name in scores)
    columns = [column for column in COLUMNS if column[0] in next(iter(scores.values()))]
    lines = [f"{'':{width}}" + "".join(f"  {heading:>9}" for _, heading, _ in columns)]
    for name, row in scores.items():
        cells = (f"  {row[key]:{max(len(heading), 9)}{form}}" for key, heading, form in columns)
        lines.append(f"{name:{width}}" + "".join(cells))
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
