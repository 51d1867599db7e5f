"""Options of what makes tissue maps."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from iqtflow.cli.parser_parts import option
from iqtflow.cli.types import named_folder, positive
from iqtflow.config import ENGINES, SegmentationSettings


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the group "tissue maps"."""
    group = parser.add_argument_group("tissue maps")

    def add(key: str, *flags: str, **settings: Any) -> None:
        option(group, SegmentationSettings, key, *flags, **settings)

    add(
        *("engine", "--segmentation"),
        choices=ENGINES,
        help="auto: ready-made maps where they are, else SPM if found, else ants, which comes with iqtflow",
    )
    add(
        *("derivatives", "-d", "--derivatives"),
        type=named_folder,
        metavar="DIR",
        help="ready-made maps: output of fMRIPrep or sMRIPrep",
        shown="none",
    )
    add(
        "spm_dir",
        "--spm-dir",
        type=Path,
        metavar="DIR",
        help="SPM for Octave",
        shown="$SPM_HOME ... /opt/spm",
    )
    add("tpm", "--tpm", type=Path, metavar="FILE", help="tissue priors for SPM", shown="its own")
    add("octave", "--octave", metavar="PROGRAM", help="GNU Octave", shown="$OCTAVE_EXEC, octave-cli, octave")
    add(
        *("sampling_mm", "--sampling-distance"),
        type=positive,
        metavar="MM",
        help="distance of the voxels that SPM estimates from, in mm",
    )
