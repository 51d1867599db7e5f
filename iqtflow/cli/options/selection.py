"""Options that say which scans."""

from __future__ import annotations

import argparse
from pathlib import Path

from iqtflow.cli.parser_parts import option
from iqtflow.cli.types import bids_label
from iqtflow.config import InputSettings


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the group "which scans"."""
    group = parser.add_argument_group("which scans")
    for key, entity, flags in (
        ("participant_labels", "sub", ("--participant-label", "--participant_label")),
        ("session_labels", "ses", ("--session-label", "--session_label")),
    ):
        group.add_argument(
            *flags,
            dest=f"run__{key}",
            metavar="LABEL",
            nargs="+",
            type=bids_label(entity),
            help=f"labels, with or without {entity}- (default: all)",
        )
    option(
        group,
        *(InputSettings, "filter_file", "--bids-filter-file"),
        metavar="FILE",
        type=Path,
        help='JSON such as {"t1w": {"acquisition": "3D", "run": null}}, as fMRIPrep takes it: entities by'
        ' long names, or fields of the sidecars; null: without, "*": with any',
        shown="none",
    )
    option(
        group,
        *(InputSettings, "database_dir", "--bids-database-dir"),
        metavar="DIR",
        type=Path,
        help="pybids' index of the data set, for large ones; made when there is none",
        shown="none",
    )
    group.add_argument(
        "--bids-database-wipe",
        action="store_true",
        default=False,
        help="have that index made anew, after files came or went (default: %(default)s)",
    )
    group.add_argument(
        *("--skip-bids-validation", "--skip_bids_validation"),
        dest="inputs__skip_validation",
        action="store_true",
        help="do not look the data set over before the run (default: %(default)s)",
    )
