"""Options of the mode enhance."""

from __future__ import annotations

import argparse

from iqtflow.config import EnhanceSettings
from iqtflow.parser_parts import option


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
