"""``iqtflow-evaluate``: compare estimates with the truth inside the brain: PSNR and MSSIM.

The table has two kinds of MSSIM, which are not to be compared with each other: Wang's (2004), in three
dimensions, and the slice-wise one of the paper's authors (see `iqtflow.evaluation.metrics`).
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
    """Command-line parser; cheap, imports nothing heavy."""
    parser = argparse.ArgumentParser(prog=PROG, description=__doc__)
    parser.add_argument("reference", type=Path, help="the truth; its grid may go on beyond the estimates'")
    parser.add_argument("estimates", type=Path, nargs="+", help="estimates on the truth's grid")
    parser.add_argument(
        "--mask", type=Path, help="brain mask on the truth's grid; the truth above 0 if not given"
    )
    parser.add_argument(
        "--std",
        type=Path,
        help="standard deviation (desc-iqtstd) of the first estimate: also show how the error grows with it",
    )
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    add_overwrite(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(PROG, lambda: _evaluate(build_parser().parse_args(argv)))


def _evaluate(options: argparse.Namespace) -> None:
    from iqtflow.evaluation.scores import evaluate_files
    from iqtflow.image.nifti import write_json

    check_outputs(
        PROG,
        {"--json": (options.json, JSON)},
        inputs=(options.reference, *options.estimates, options.mask, options.std),
        overwrite=options.overwrite,
    )
    files = {str(path): path for path in options.estimates}
    scores = evaluate_files(options.reference, options.mask or options.reference, files)
    print(score_table(scores))
    reliability = None
    if options.std:
        from iqtflow.evaluation.uncertainty_calibration import reliability_of_files, reliability_table

        first, mask = options.estimates[0], options.mask or options.reference
        reliability = reliability_of_files(options.reference, mask, first, options.std)
        print(f"\n{options.std}:\n{reliability_table(reliability)}")
    if options.json:
        # JSON has no infinity: null is the PSNR of an estimate that is the truth.
        finite: dict[str, dict[str, Any]] = {
            n: {k: v if math.isfinite(v) else None for k, v in row.items()} for n, row in scores.items()
        }
        if reliability is not None:
            finite[str(first)]["reliability"] = reliability
        write_json(options.json, finite, maker=PROG)


def score_table(scores: dict[str, dict[str, float]]) -> str:
    """Figures of each estimate as lines of text; see `iqtflow.evaluation.scores.COLUMNS` for their
    definitions.
    """
    width = max(len(name) for name in scores)
    lines = [f"{'':{width}}  PSNR (dB)   MSSIM   MSSIM, slice-wise"]
    for name, row in scores.items():
        lines.append(
            f"{name:{width}}  {row['psnr']:9.2f}  {row['mssim']:6.3f}  {row['mssim_slicewise']:18.3f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
