"""Options that say which scans."""

from __future__ import annotations

import argparse

from iqtflow.argument_types import bids_label


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
