"""The arguments of ``iqtflow``: a BIDS App's, under the names that users of other BIDS Apps know."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import iqtflow
from iqtflow.argument_types import axes, bids_label, draws, fraction, not_negative, positive, whole_number
from iqtflow.config import (
    ENGINES,
    LEVELS,
    LOSSES,
    MODES,
    SCHEDULES,
    SECTIONS,
    EnhanceSettings,
    RunSettings,
    SegmentationSettings,
    TrainSettings,
    default_of,
    read_sections,
)
from iqtflow.parser_parts import DESCRIPTION, EPILOG, Formatter, ListModels, flag, option
from iqtflow.resources import DEVICES, available_cpus, available_memory_gb

#: Modes in which the options of a section have a meaning: given in another mode, they are a mistake.
SECTION_MODES = {"enhance": ("enhance",), "train": ("train",), "segmentation": ("train", "calibrate")}


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
    _add_general(parser)
    _add_selection(parser)
    _add_enhance(parser)
    _add_segmentation(parser)
    _add_train(parser)
    _add_resources(parser)
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
    defaults = read_sections(known.config_file) if known.config_file else {}
    parser = build_parser(defaults, folders_needed=not known.doctor)
    options = parser.parse_args(argv)
    _refuse_options_of_other_modes(parser, options, build_parser(defaults))
    return options


def _add_positionals(parser: argparse.ArgumentParser, *, needed: bool) -> None:
    one: dict[str, Any] = {"type": Path, **({} if needed else {"nargs": "?", "default": None})}
    # With choices an empty list would be refused, up to Python 3.11.
    level: dict[str, Any] = {"nargs": "+", "choices": LEVELS} if needed else {"nargs": "*", "default": None}
    parser.add_argument(
        "paths__bids_dir", metavar="bids_dir", help="root of the BIDS data set; only read", **one
    )
    parser.add_argument("paths__output_dir", metavar="output_dir", help="root of the derivatives", **one)
    parser.add_argument(
        "run__levels",
        metavar="analysis_level",
        help="participant, group, or both, one after the other",
        **level,
    )


def _add_general(parser: argparse.ArgumentParser) -> None:
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
        type=whole_number(0),
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


def _add_selection(parser: argparse.ArgumentParser) -> None:
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


def _add_enhance(parser: argparse.ArgumentParser) -> None:
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


def _add_segmentation(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("tissue maps")

    def add(key: str, *flags: str, **settings: Any) -> None:
        option(group, SegmentationSettings, key, *flags, **settings)

    add(
        *("engine", "--segmentation"),
        choices=ENGINES,
        help="auto: ready-made maps where they are, else SPM if found, else ants, which comes with iqtflow",
    )
    add(
        *("derivatives", "--derivatives"),
        type=Path,
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


def _add_train(parser: argparse.ArgumentParser) -> None:
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


def _add_resources(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("resources")
    group.add_argument(
        "-w",
        "--work-dir",
        dest="paths__work_dir",
        metavar="DIR",
        type=Path,
        help="intermediate results, from which an interrupted run goes on; never inside the data set"
        " (default: OUTPUT_DIR-work, beside the output or the data set that holds it)",
    )
    count = {"type": whole_number(1), "metavar": "N"}
    option(group, RunSettings, "nprocs", "--nprocs", **count, help="processors to use")
    option(
        group, RunSettings, "omp_nthreads", "--omp-nthreads", **count, help="processors that one task may use"
    )
    option(group, RunSettings, "mem_gb", "--mem-gb", type=positive, metavar="GB", help="memory to use")
    option(
        group,
        *(RunSettings, "device", "--device"),
        choices=DEVICES,
        help="where networks run: auto takes a GPU that works; cuda fails without one",
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
    for name in ("run", "enhance", "train", "segmentation"):
        for item in dataclasses.fields(SECTIONS[name]):
            values[f"{name}__{item.name}"] = default_of(SECTIONS[name], item.name)
    values.update({f"run__{key}": value for key, value in machine.items()})
    for name, section in given.items():
        values.update({f"{name}__{key}": value for key, value in section.items()})
    return values


def _refuse_options_of_other_modes(
    parser: argparse.ArgumentParser, options: argparse.Namespace, untouched: argparse.ArgumentParser
) -> None:
    for section, modes in SECTION_MODES.items():
        if options.run__mode in modes:
            continue
        for action in parser._actions:
            given = getattr(options, action.dest, None)
            if action.dest.startswith(f"{section}__") and given != untouched.get_default(action.dest):
                parser.error(
                    f"{action.option_strings[-1]} is for --mode {' or '.join(modes)}; "
                    f"the mode is {options.run__mode}"
                )
