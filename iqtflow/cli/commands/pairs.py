"""python -m iqtflow.cli.commands.pairs: write the pairs of patches of one subject, as in the paper.

They are made from its patch library with stored draws.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from iqtflow.cli.options import Formatter, add_command_options, value
from iqtflow.config import TrainSettings
from iqtflow.utils.command import run_command
from iqtflow.utils.outputs import JSON, PAIRS, add_overwrite, check_outputs

PROG = "iqtflow-pairs"


def build_parser() -> argparse.ArgumentParser:
    """Command-line parser; imports nothing heavy."""
    parser = argparse.ArgumentParser(prog=PROG, description=__doc__, formatter_class=Formatter)
    add = parser.add_argument
    add("library", type=Path, help="patch library (.safetensors) with stored draws")
    add("output", type=Path, help="pairs to write (.npy); a JSON file is written beside them")
    add("--draws", type=value(int, low=1), default=1, metavar="N", help="take pairs from the first N draws")
    add_command_options(
        parser, "train", ["patch_fraction"], help="share of the pairs that are kept, at random"
    )
    add_command_options(parser, "train", ["patch_size"], default=TrainSettings().patch_edge)
    add_command_options(parser, "run", ["seed"], type=value(int, low=0))
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
        fraction=options.patch_fraction,
        seed=options.seed,
        patch=options.patch_size,
    )
    size = options.output.stat().st_size / 1e6
    print(f"{options.output}: {count} pairs of {options.draws} draw(s), {size:.0f} MB", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
