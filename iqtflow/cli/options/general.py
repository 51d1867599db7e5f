"""Options that say what to do."""

from __future__ import annotations

import argparse
from pathlib import Path

import iqtflow
from iqtflow.cli.parser_parts import ListModels, flag, option
from iqtflow.cli.types import whole_number
from iqtflow.config import MODES, RunSettings


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the group "what to do"."""
    group = parser.add_argument_group("what to do")
    group.add_argument("--version", action="version", version=f"iqtflow {iqtflow.__version__}")
    group.add_argument(
        "--list-models", action=ListModels, nargs=0, help="list the models that ship, and exit"
    )
    group.add_argument(
        "--doctor",
        action="store_true",
        default=False,
        help="check what a run with these arguments needs, and exit; needs no folders (default: %(default)s)",
    )
    only = group.add_mutually_exclusive_group()
    for name, text in (
        (("--dry-run",), "tell what would be done with each scan, and do nothing"),
        (("--reports-only",), "write the pages anew from what is there, and exit"),
        (("--boilerplate-only", "--boilerplate_only"), "write logs/CITATION.md and .bib, and exit"),
    ):
        only.add_argument(*name, action="store_true", default=False, help=f"{text} (default: %(default)s)")
    option(
        group,
        RunSettings,
        "mode",
        "--mode",
        choices=MODES,
        help="enhance scans, train a network, or measure the SNR of one's own scanner",
    )
    group.add_argument(
        "--config-file",
        metavar="FILE",
        type=Path,
        help="settings in TOML, over which the command line's go; every run leaves a settings.toml in its"
        " work directory (default: none)",
    )
    flag(group, RunSettings, "force", "--force", help="take scans that are near-isotropic, too")
    flag(
        group,
        RunSettings,
        "stop_on_first_crash",
        "--stop-on-first-crash",
        help="stop all when one subject fails",
    )
    option(
        group,
        RunSettings,
        "seed",
        "--random-seed",
        type=whole_number(0, 2**31 - 1),
        metavar="N",
        help="seed of everything random",
    )
    group.add_argument(
        "-v",
        "--verbose",
        dest="run__verbose",
        action="count",
        help="say more; -vv says all (default: progress only)",
    )
