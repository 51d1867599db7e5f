"""Options of the mode train."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from iqtflow.argument_types import axes, draws, fraction, not_negative, positive, whole_number
from iqtflow.config import LOSSES, SCHEDULES, TrainSettings
from iqtflow.parser_parts import flag, option


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the groups that begin with train."""
    simulation = parser.add_argument_group("train: simulated low field")
    network = parser.add_argument_group("train: network")
    loop = parser.add_argument_group("train: optimisation")

    def add(group: Any, key: str, *flags: str, **settings: Any) -> None:
        option(group, TrainSettings, key, *flags, **settings)

    add(
        simulation,
        *("upsampling_factor", "-k", "--upsampling-factor"),
        type=int,
        choices=(2, 4, 8),
        help="slice spacing over the high-field voxel edge",
    )
    add(
        simulation,
        *("slice_axes", "--slice-axes"),
        type=axes,
        metavar="AXES",
        help="voxel axes to simulate thick slices along, such as x,y",
    )
    add(
        simulation,
        *("thickness_fraction", "--thickness-fraction"),
        type=fraction,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="slice thickness over spacing; the rest is gap",
    )
    add(
        simulation,
        *("snr_prior", "--snr-prior"),
        metavar="NAME|FILE",
        help="prior of the tissues' SNR: a published one, or a JSON file",
    )
    add(
        simulation,
        *("snr_scale", "--snr-scale"),
        type=positive,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="factor on the SNR of both tissues",
    )
    add(
        simulation,
        *("bias_amplitude", "--bias-amplitude"),
        type=not_negative,
        metavar="A",
        help="largest log-amplitude of a smooth shading",
    )
    add(
        simulation,
        *("draws", "--draws"),
        type=draws,
        metavar="fresh|N",
        help="simulated scans per subject, or anew for every batch",
    )
    flag(simulation, TrainSettings, "mirror", "--mirror", help="mirror patches, and swap their in-plane axes")

    count = {"type": whole_number(1), "metavar": "N"}
    add(network, "network", "--network", metavar="NAME", help="name in the registry of networks")
    add(
        network, "filters", "--filters", type=whole_number(2), metavar="N", help="channels at the first level"
    )
    add(network, "shrink", "--shrink", **count, help="shrinking layers of each bottleneck block")
    flag(network, TrainSettings, "residual", "--residual", help="learn what to add to the cubic spline")
    add(
        network,
        *("start_from", "--start-from"),
        metavar="MODEL",
        help="model whose weights training begins with: a name from --list-models, or a file",
        shown="none, random weights",
    )
    add(network, "ensemble", "--ensemble", **count, help="networks, from different seeds")
    add(network, "model_name", "--model-name", metavar="NAME", help="of the model written", shown="by factor")

    add(
        loop,
        *("split", "--split"),
        type=Path,
        metavar="FILE",
        help='JSON with the lists "train", "validation" and "evaluation" of participants',
        shown="none; group level needs one",
    )
    add(loop, "batch_size", "--batch-size", **count, help="patches in a step")
    add(
        loop,
        "learning_rate",
        "--learning-rate",
        type=positive,
        metavar="LR",
        help="of Adam, at the first step",
    )
    add(
        loop,
        "schedule",
        "--schedule",
        choices=SCHEDULES,
        help="learning rate: slow decay, or a cosine to zero",
    )
    add(loop, "loss", "--loss", choices=LOSSES, help="what is minimised")
    add(loop, "steps", "--steps", **count, help="steps at most", shown="what --max-epochs allows")
    add(loop, "steps_per_epoch", "--steps-per-epoch", **count, help="steps between validations")
    add(loop, "max_epochs", "--max-epochs", **count, help="validations at most")
    add(
        loop,
        *("patience", "--patience"),
        type=whole_number(0),
        metavar="N",
        help="validations without a better loss before training stops; 0: never early",
    )
