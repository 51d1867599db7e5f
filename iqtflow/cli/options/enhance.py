"""Options of the mode enhance."""

from __future__ import annotations

import argparse

from iqtflow.cli.commands.enhance import CONTRASTS, PRECISIONS, TILINGS
from iqtflow.cli.parser_parts import flag, option
from iqtflow.config import EnhanceSettings


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the group "enhance"."""
    group = parser.add_argument_group("enhance")
    option(
        group,
        EnhanceSettings,
        "model",
        "--model",
        metavar="NAME|PATH",
        help="a model that ships, by name, or one of your own (.safetensors)",
        shown="by the scan's slice spacing",
    )
    option(
        group,
        *(EnhanceSettings, "contrast", "--contrast"),
        choices=CONTRASTS,
        help="BIDS suffix of the scans to enhance; needs a model that was trained for it",
    )
    option(
        group,
        *(EnhanceSettings, "tiling", "--tiling"),
        choices=TILINGS,
        help="auto: the whole volume in one pass if the model's training and the memory allow, else tiles; "
        "paper: as Lin et al. 2019, slowly",
    )
    option(
        group,
        *(EnhanceSettings, "precision", "--precision"),
        choices=PRECISIONS,
        help="of convolutions; auto: bfloat16 where the hardware multiplies it, else float32",
    )
    flag(
        group,
        EnhanceSettings,
        "keep_white_matter",
        "--keep-white-matter",
        help="scale an estimate whose white matter left the scan's by more than on evaluation scans",
    )
    flag(
        group,
        EnhanceSettings,
        "mirror",
        "--average-mirrored",
        help="average with the estimate of the left-right mirrored scan; takes twice as long",
    )
