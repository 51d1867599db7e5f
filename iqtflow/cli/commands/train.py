"""iqtflow-train: train one network on the patch libraries of some subjects.

A training that was interrupted is continued.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from iqtflow.cli.options import Formatter, add_command_options, typed, value
from iqtflow.config import OF_ONE_NETWORK, SETTINGS, TrainSettings, check_training
from iqtflow.models.registry import allow_network
from iqtflow.utils.command import run_command
from iqtflow.utils.errors import InputError
from iqtflow.utils.files import read_text
from iqtflow.utils.gpus import device_claimed, require_cuda
from iqtflow.utils.outputs import MODEL, TABLE, add_overwrite, check_outputs
from iqtflow.utils.system import WITH_TORCH_GB

if TYPE_CHECKING:
    import torch

    from iqtflow.training.library import PatchLibrary
    from iqtflow.training.pairs import PairFile
    from iqtflow.training.plan import TrainingPlan
    from iqtflow.training.trainer import TrainedMember

PROG = "iqtflow-train"


def build_parser() -> argparse.ArgumentParser:
    """Command-line parser; imports nothing heavy."""
    parser = argparse.ArgumentParser(prog=PROG, description=__doc__, formatter_class=Formatter)
    add = parser.add_argument
    library: dict[str, Any] = {"type": Path, "nargs": "+", "required": True, "metavar": "LIBRARY"}
    add("--train", **library, help="patch libraries to train on (.safetensors), or files of pairs (.npy)")
    add("--validation", **library, help="patch libraries of other subjects, for early stopping")
    add("--output", type=Path, required=True, help="model to write (.safetensors)")
    add("--curves", type=Path, help="training curves to write (.csv)")
    add(
        "--checkpoint-dir",
        type=Path,
        required=True,
        help="folder of the checkpoints; a training whose checkpoints are here is continued",
    )
    add("--name", help="name of the model; without it, the output's name without extension")
    headings = {name: SETTINGS["train"][name].group.removeprefix("train: ") for name in OF_ONE_NETWORK}
    groups = {
        heading: parser.add_argument_group(heading)
        for heading in (*dict.fromkeys(headings.values()), "machine")
    }
    # A network of your own may have another factor than the shipped ones.
    changes = {"upsampling_factor": {"type": value(int, low=1), "choices": None, "metavar": "K"}}
    for name, heading in headings.items():
        add_command_options(groups[heading], "train", [name], **changes.get(name, {}))
    groups["network"].add_argument(
        "--network-option",
        dest="network_options",
        action="append",
        default=[],
        type=_network_option,
        metavar="NAME=VALUE",
        help="a setting that only this network has; repeat the option for another one",
    )
    machine = groups["machine"]
    add_command_options(machine, "run", ["seed"], type=value(int, low=0))
    add_command_options(machine, "run", ["omp_nthreads"])
    add_command_options(machine, "run", ["device"], choices=("cpu", "cuda"), help="where to train")
    add("--tensorboard", type=Path, metavar="DIR", help="write curves for TensorBoard here")
    add("--card", type=Path, help="JSON with more fields for the model's card (data, licence, ...)")
    add_overwrite(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(
        PROG, lambda: _run(build_parser().parse_args(argv)), least_gb=WITH_TORCH_GB, needs_gb=6.0
    )


def _run(options: argparse.Namespace) -> None:
    libraries = [*options.train, *options.validation]
    check_outputs(
        PROG,
        {"--output": (options.output, MODEL), "--curves": (options.curves, TABLE)},
        inputs=(*libraries, options.card, options.start_from, options.snr_prior),
        overwrite=options.overwrite,
    )
    # Before torch is imported, which reads at once which GPUs it may use.
    if options.num_nodes > 1:  # the cluster has set the cards apart
        _train(options)
        return
    with device_claimed(
        options.device, lambda line: print(f"{PROG}: {line}", flush=True), count=options.devices
    ):
        _train(options)


def _train(options: argparse.Namespace) -> None:
    from iqtflow.models.model_file import save_model
    from iqtflow.training.checkpoints import LOG
    from iqtflow.training.module import curves_as_csv
    from iqtflow.training.trainer import train_member
    from iqtflow.utils.files import write_atomically

    require_cuda(options.device)
    values: dict[str, Any] = {name: getattr(options, name) for name in OF_ONE_NETWORK}
    values.update({name: tuple(value) for name, value in values.items() if isinstance(value, list)})
    train = TrainSettings(**values)
    check_training(train)
    allow_network(train.network)
    extra = _read_card(options.card)
    own = {**options_of_start(train.start_from, train.network), **dict(options.network_options)}
    plan = make_plan(train, seed=options.seed, network_options=own)
    start = read_start(train.start_from, train.network, plan.network_settings, seed=options.seed)
    plan = dataclasses.replace(plan, start_from=start and start.name)
    log = options.checkpoint_dir / LOG
    member = train_member(
        [read_source(p) for p in options.train],
        [read_source(p) for p in options.validation],
        plan,
        checkpoint_dir=options.checkpoint_dir,
        start=start and start.weights,
        device=options.device,
        devices=options.devices,
        num_nodes=options.num_nodes,
        num_threads=options.omp_nthreads,
        report=lambda line: _report(line, log, progress=sys.stderr.isatty()),
        progress=sys.stderr.isatty(),
        tensorboard=options.tensorboard,
    )
    if member is None:  # one of several processes; the first one writes
        return
    extra = {**({} if start is None else {"before": start.training}), **extra}
    card = make_card(options.name or options.output.stem, train, plan, member, extra)
    if "averaged" in member.facts:
        # The average knows what both have seen.
        seen = [*card["slice_profile"]["fwhm_over_spacing"], *start.slice_profile]
        card["slice_profile"]["fwhm_over_spacing"] = [min(seen), max(seen)]
    save_model(options.output, [member.state_dict], card)
    if options.curves:
        write_atomically(options.curves, lambda stream: stream.write(curves_as_csv(member.curves).encode()))
    print(
        f"{PROG}: wrote {options.output}: validation loss {member.facts['best_validation_loss']:.6f} after "
        f"{member.facts['steps']} steps",
        flush=True,
    )


def make_plan(
    train: TrainSettings, *, seed: int, network_options: Mapping[str, Any] | None = None
) -> TrainingPlan:
    """Return the plan of a training with these settings, from random weights.

    Parameters
    ----------
    train
        Settings of the section ``[train]``.
    seed
        Seed of the training.
    network_options
        Settings that only this network has.

    Raises
    ------
    InputError
        The network does not take a setting, or the SNR prior cannot be read.
    """
    from iqtflow.models.registry import choose_settings, setting_names
    from iqtflow.simulation.snr_prior import read_prior
    from iqtflow.training.plan import TrainingPlan
    from iqtflow.training.samplers import Degradation

    general, defaults = (
        {"k": one.upsampling_factor, "filters": one.filters, "shrink": one.shrink, "residual": one.residual}
        for one in (train, TrainSettings())
    )
    if train.uncertainty != "none" and "uncertainty" in setting_names(train.network):
        general["uncertainty"] = True
    return TrainingPlan(
        **_shared(TrainingPlan, train)
        | {
            "network_settings": choose_settings(
                train.network, {**general, **(network_options or {})}, defaults
            ),
            "seed": seed,
            "degradation": Degradation(prior=read_prior(train.snr_prior), **_shared(Degradation, train)),
            "start_from": None,
            "only_uncertainty": train.uncertainty == "only",
            "patch_size": train.patch_edge,
        }
    )


def make_card(
    name: str, train: TrainSettings, plan: TrainingPlan, member: TrainedMember, extra: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the card of a trained network.

    Parameters
    ----------
    name
        Name of the model.
    train, plan
        Settings, and the plan from `make_plan`.
    member
        From `iqtflow.training.trainer.train_member`.
    extra
        More facts about the training.
    """
    from iqtflow.image.intensity import NORMALISATION
    from iqtflow.models.registry import build_network
    from iqtflow.training.module import ERROR_HEAD

    network = build_network(plan.network, **plan.network_settings)
    memory = getattr(network, "pass_bytes", None)
    return {
        "name": name,
        "k": train.upsampling_factor,
        "contrast": "T1w",
        "network": {"name": plan.network, "kwargs": plan.network_settings},
        "normalisation": {"name": NORMALISATION},
        "geometry": "slab-centred",
        "predicts_error": any(name.startswith(ERROR_HEAD) for name in member.state_dict),
        "context": getattr(network, "context", "patch"),
        **({} if memory is None else {"pass_bytes": dict(memory)}),
        "patch_size": plan.patch_size,
        "slice_profile": {"shape": "gaussian", "fwhm_over_spacing": list(train.thickness_fraction)},
        "snr_prior": plan.degradation.prior.as_dict(),
        "training": {**member.facts, **extra},
    }


def _shared(kind: type, train: TrainSettings) -> dict[str, Any]:
    """Return the settings of training that a dataclass has, too, by name."""
    names = {item.name for item in dataclasses.fields(kind)} & SETTINGS["train"].keys()
    return {name: getattr(train, name) for name in names}


def _network_option(text: str) -> tuple[str, Any]:
    """Convert ``name=value`` to a setting of a network; a value that is not JSON is a text."""
    name, _, given = typed(SETTINGS["train"]["network_options"])(text).partition("=")
    try:
        return name, json.loads(given)
    except ValueError:
        return name, given


class Start(NamedTuple):
    """Weights that a training begins with, their name, the record of the training that made them, and its
    range of slice thickness over slice spacing.
    """

    name: str
    weights: dict[str, torch.Tensor]
    training: dict[str, Any]
    slice_profile: list[float]


def read_start(
    model: str | Path | None, network: str, settings: dict[str, object], *, seed: int
) -> Start | None:
    """Return the weights that a fine-tuning begins with; None if no model is given.

    Parameters
    ----------
    model
        A model file, or the name of one that ships.
    network, settings
        Name and settings of the network to train.
    seed
        Seed of the training: chooses the member of an ensemble.

    Raises
    ------
    InputError
        The model cannot be read, or its network is another one.
    """
    if model is None:
        return None
    from iqtflow.models.model_file import load_model

    source = load_model(model)
    wanted = {"name": network, "kwargs": settings}
    if _estimates_by(source.card["network"]) != _estimates_by(wanted):
        raise InputError(
            model,
            found=f"a model of {source.card['network']}",
            expected=f"one of {wanted}, the network to be trained",
            next_step="Choose the settings of that network (iqtflow --list-models), or leave out the model.",
        )
    number = seed % len(source.members)
    name, training = f"{source.card.name} (SHA-256 {source.sha256})", source.card.training
    parts = training.get("members", [])
    # An ensemble that was joined from ensembles has fewer records than networks; then all are kept.
    before = parts[number] if len(parts) == len(source.members) else training
    profile = source.card.get("slice_profile", {}).get("fwhm_over_spacing", [])
    return Start(name, source.members[number].state_dict(), before, profile)


def options_of_start(model: str | Path | None, network: str) -> dict[str, Any]:
    """Return the settings that only this network has, of the model that a fine-tuning begins with.

    So ``--start-from`` needs no ``--network-option``.
    """
    if model is None:
        return {}
    from iqtflow.models.model_file import read_card

    stated = read_card(model)["network"]
    general = {"k", "filters", "shrink", "residual", "uncertainty"}
    own = {name: value for name, value in stated["kwargs"].items() if name not in general}
    return own if stated["name"] == network else {}


def _estimates_by(network: Mapping[str, Any]) -> dict[str, Any]:
    """Return a network of a model's card without its setting for the predicted error."""
    settings = {key: value for key, value in network["kwargs"].items() if key != "uncertainty"}
    return {"name": network["name"], "kwargs": settings}


def read_source(path: Path) -> PatchLibrary | PairFile:
    """Open a patch library (.safetensors) or a file of pairs (.npy)."""
    from iqtflow.training.library import read_library
    from iqtflow.training.pairs import read_pairs

    return read_pairs(path) if path.suffix == ".npy" else read_library(path)


def _report(line: str, log: Path, *, progress: bool) -> None:
    """Print a line, if there is no progress bar, and add it to the log beside the checkpoints."""
    import time

    if not progress:
        print(line, flush=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a", encoding="utf-8") as stream:
        stream.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")


def _read_card(path: Path | None) -> dict:
    if path is None:
        return {}
    try:
        return dict(json.loads(read_text(path)))
    except (OSError, ValueError, TypeError, RecursionError) as fault:
        raise InputError(
            path,
            found=f"{type(fault).__name__}: {fault}",
            expected="a JSON object",
            next_step="Correct the file.",
        ) from fault


if __name__ == "__main__":
    raise SystemExit(main())
