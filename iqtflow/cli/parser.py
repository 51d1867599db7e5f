"""The arguments of ``iqtflow``: a BIDS App's, under the names that users of other BIDS Apps know."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from iqtflow.cli.options import enhance, general, resources, segmentation, selection, train
from iqtflow.cli.options.checks import convert_values, refuse_options
from iqtflow.cli.parser_parts import DESCRIPTION, EPILOG, Formatter
from iqtflow.config import LEVELS, SECTIONS, default_of, read_sections
from iqtflow.utils.system import available_cpus, available_memory_gb

#: The groups of options, in the order in which help shows them.
GROUPS = (general, selection, enhance, segmentation, train, resources)


def build_parser(
    defaults: dict[str, dict[str, Any]] | None = None, *, folders_needed: bool = True
) -> argparse.ArgumentParser:
    """Build the parser. The value of `key` in section `s` of the settings is its attribute ``s__key``.

    Parameters
    ----------
    defaults
        Values by section and key that replace the defaults, for instance from a settings file.
    folders_needed
        Whether the data set, the output and the level have to be given; ``--doctor`` does without.
    """
    parser = argparse.ArgumentParser(
        prog="iqtflow",
        usage="iqtflow bids_dir output_dir {participant,group} [...] [--mode MODE] [options]",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=Formatter,
        allow_abbrev=False,  # or a script's --model would turn into another option when one is added
        argument_default=argparse.SUPPRESS,
    )
    parser.set_defaults(**_defaults(defaults or {}))
    _add_positionals(parser, needed=folders_needed)
    for options in GROUPS:
        options.add_options(parser)
    return parser


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line over the defaults, or over those in its ``--config-file``.

    Raises
    ------
    UsageError
        The settings file cannot be worked with.
    SystemExit
        The arguments cannot be parsed (code 2), or help or the version was asked for (code 0).
    """
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--config-file", type=Path)
    early.add_argument("--doctor", action="store_true")
    known = early.parse_known_args(argv)[0]
    defaults: dict[str, dict[str, Any]] = {}
    if known.config_file:
        defaults = convert_values(build_parser(), read_sections(known.config_file), known.config_file)
    parser = build_parser(defaults, folders_needed=not known.doctor)
    options = parser.parse_args(argv)
    options.notes = refuse_options(parser, options, build_parser(defaults))
    return options


def _add_positionals(parser: argparse.ArgumentParser, *, needed: bool) -> None:
    one: dict[str, Any] = {"type": Path, **({} if needed else {"nargs": "?", "default": None})}
    # With choices an empty list would be refused, up to Python 3.11.
    level: dict[str, Any] = {"nargs": "+", "choices": LEVELS} if needed else {"nargs": "*", "default": None}
    parser.add_argument(
        "paths__bids_dir",
        metavar="bids_dir",
        help="root of a BIDS data set, or folder of HCP downloads; only read",
        **one,
    )
    parser.add_argument("paths__output_dir", metavar="output_dir", help="root of the derivatives", **one)
    parser.add_argument(
        "run__levels",
        metavar="analysis_level",
        help="participant, group, or both, one after the other",
        **level,
    )


def _defaults(given: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the default of every setting under its attribute's name."""
    cpus = available_cpus()
    machine = {
        "nprocs": cpus,
        "omp_nthreads": min(cpus, 8),
        "mem_gb": round(0.9 * available_memory_gb(), 1),
        "device": "auto",
        "verbose": 0,
    }
    values: dict[str, Any] = {"paths__work_dir": None, "config_file": None}
    for name in (name for name in SECTIONS if name != "paths"):
        for item in dataclasses.fields(SECTIONS[name]):
            values[f"{name}__{item.name}"] = default_of(SECTIONS[name], item.name)
    values.update({f"run__{key}": value for key, value in machine.items()})
    for name, section in given.items():
        values.update({f"{name}__{key}": value for key, value in section.items()})
    return values
