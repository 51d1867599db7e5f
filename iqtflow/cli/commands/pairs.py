"""``python -m iqtflow.cli.commands.pairs``: write the explicit patch library of the paper for one subject,
from its patch library with stored draws.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from iqtflow.cli.types import fraction, whole_number
from iqtflow.utils.command import run_command
from iqtflow.utils.outputs import JSON, PAIRS, add_overwrite, check_outputs

PROG = "iqtflow-pairs"


def build_parser() -> argparse.ArgumentParser:
    """Command-line parser; cheap, imports nothing heavy."""
    parser = argparse.ArgumentParser(
        prog=PROG, description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("library", type=Path, help="patch library (.safetensors) with stored draws")
    add("output", type=Path, help="pairs to write (.npy); a JSON file is written beside them")
    add("--draws", type=whole_number(1), default=1, help="N: take pairs from the first N draws")
    add("--fraction", type=fraction, default=0.125, help="share of the grid's pairs to keep, at random")
    add("--patch-size", type=whole_number(1), default=32, help="edge of the high-field patches in voxels")
    add("--seed", type=whole_number(0), default=0, help="chooses the pairs")
    add_overwrite(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(PROG, lambda: _write(build_parser().parse_args(argv)))


def _write(options: argparse.Namespace) -> None:
    from iqtflow.training.library import read_library
    from iqtflow.training.pairs import write_pairs

    check_outputs(
        PROG,
        {"output": (options.output, PAIRS), "output's JSON": (options.output.with_suffix(".json"), JSON)},
        inputs=(options.library,),
        overwrite=options.overwrite,
    )
    count = write_pairs(
        options.output,
        read_library(options.library),
        n_draws=options.draws,
        fraction=options.fraction,
        seed=options.seed,
        patch=options.patch_size,
    )
    size = options.output.stat().st_size / 1e6
    print(f"{options.output}: {count} pairs of {options.draws} draw(s), {size:.0f} MB", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
