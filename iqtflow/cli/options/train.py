"""Options of the mode train."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from iqtflow.cli.parser_parts import flag, option
from iqtflow.cli.types import (
    axes,
    between,
    draws,
    fraction,
    network_setting,
    positive,
    share,
    whole_number,
    workers,
)
from iqtflow.config import (
    FACTORS,
    IMPERFECTIONS,
    LOSSES,
    PATCH_LIBRARIES,
    SCHEDULES,
    UNCERTAINTIES,
    TrainSettings,
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the groups that begin with train."""
    simulation = parser.add_argument_group("train: simulated low field")
    patches = parser.add_argument_group("train: patches")
    network = parser.add_argument_group("train: network")
    loop = parser.add_argument_group("train: optimisation")

    def add(group: Any, key: str, *flags: str, **settings: Any) -> None:
        option(group, TrainSettings, key, *flags, **settings)

    add(
        simulation,
        *("upsampling_factor", "-k", "--upsampling-factor"),
        type=int,
        choices=FACTORS,
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
        type=between(0, IMPERFECTIONS["bias_amplitude"]),
        metavar="A",
        help="largest log-amplitude of a smooth shading",
    )
    add(
        simulation,
        *("draws", "--draws"),
        type=draws,
        metavar="fresh|N",
        help="train on N simulated scans per subject, or on ones simulated anew for every batch",
    )
    flag(simulation, TrainSettings, "mirror", "--mirror", help="mirror patches, and swap their in-plane axes")

    count: dict[str, Any] = {"type": whole_number(1), "metavar": "N"}
    add(
        patches,
        *("patch_library", "--patch-library"),
        choices=PATCH_LIBRARIES,
        help="volumes with an index of patches, or all pairs written out, as in the paper (needs --draws N)",
    )
    add(
        patches,
        *("patch_size", "--patch-size"),
        **count,
        help="edge of high-field patches in voxels, a multiple of k",
        shown="32; 48 where k is 3 or 6",
    )
    add(
        patches,
        *("patch_step", "--patch-step"),
        type=whole_number(1),
        nargs=3,
        metavar=("X", "Y", "Z"),
        help="distance between patches along each axis, in voxels",
    )
    add(
        patches,
        *("background_limit", "--background-limit"),
        type=share,
        metavar="SHARE",
        help="drop patches with more background than this",
    )
    add(
        patches,
        *("patch_fraction", "--patch-fraction"),
        type=fraction,
        metavar="SHARE",
        help="share of the pairs that --patch-library pairs keeps, at random",
    )

    add(
        network,
        "network",
        "--network",
        metavar="NAME",
        help="aniso-unet, iso-unet, sru-net, or one of your own: an entry point, or module:attribute",
    )
    add(
        network,
        *("network_options", "--network-option"),
        nargs="+",
        type=network_setting,
        metavar="NAME=VALUE",
        help="settings that only this network has",
        shown="none",
    )
    add(
        network, "filters", "--filters", type=whole_number(2), metavar="N", help="channels at the first level"
    )
    add(network, "shrink", "--shrink", **count, help="shrinking layers of each bottleneck block")
    flag(network, TrainSettings, "residual", "--residual", help="learn what to add to the cubic spline")
    add(
        network,
        *("uncertainty", "--uncertainty"),
        choices=UNCERTAINTIES,
        help="learn how large the error of the estimate is to be expected, for desc-iqtstd; only: keep the "
        "estimate of --start-from, and learn its error alone",
    )
    add(
        network,
        *("start_from", "--start-from"),
        metavar="MODEL",
        help="model whose weights training begins with: a name from --list-models, or a file",
        shown="none, random weights",
    )
    add(
        network,
        *("evaluate_model", "--evaluate-model"),
        metavar="MODEL",
        help="train nothing at group level: judge this model on the evaluation subjects; a name or a file",
        shown="none",
    )
    add(network, "ensemble", "--ensemble", **count, help="networks, from different seeds")
    add(network, "model_name", "--model-name", metavar="NAME", help="of the model written", shown="by factor")

    add(
        loop,
        *("split", "--split"),
        type=Path,
        metavar="FILE",
        help='JSON with the lists "train", "validation" and "evaluation" of participants',
        shown="drawn from the seed once, then models/split.json",
    )
    add(
        loop,
        *("split_ratio", "--split-ratio"),
        type=whole_number(0),
        nargs=3,
        metavar=("TRAIN", "VALIDATION", "EVALUATION"),
        help="proportions of a split that is drawn",
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
    add(
        loop,
        *("validation_batches", "--validation-batches"),
        **count,
        help="batches that a validation takes",
    )
    add(
        loop,
        "devices",
        "--devices",
        type=workers,
        metavar="N",
        help="GPUs (on the CPU: processes) that train one network",
    )
    add(
        loop,
        *("num_nodes", "--num-nodes"),
        type=workers,
        metavar="N",
        help="computers that train one network together, in an allocation of SLURM",
    )
    flag(loop, TrainSettings, "tensorboard", "--tensorboard", help="write curves for TensorBoard")
