"""``iqtflow-train``: train one network on the patch libraries of some subjects, or go on with a training that
was interrupted.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from iqtflow.cli.types import draws as number_of_draws
from iqtflow.cli.types import network_option, workers
from iqtflow.config import UNCERTAINTIES
from iqtflow.models.registry import allow_network
from iqtflow.utils.command import run_command
from iqtflow.utils.errors import InputError, UsageError
from iqtflow.utils.files import read_text
from iqtflow.utils.gpus import device_claimed
from iqtflow.utils.outputs import MODEL, TABLE, add_overwrite, check_outputs
from iqtflow.utils.system import WITH_TORCH_GB

if TYPE_CHECKING:
    import torch

    from iqtflow.training.library import PatchLibrary
    from iqtflow.training.pairs import PairFile

PROG = "iqtflow-train"
#: Arguments that cannot be left out; parsed alone, they give the others' defaults.
_LEAST = ["--train", "", "--validation", "", "--output", "", "--checkpoint-dir", ""]


def build_parser() -> argparse.ArgumentParser:
    """Command-line parser; cheap, imports nothing heavy."""
    parser = argparse.ArgumentParser(
        prog=PROG, description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--train",
        type=Path,
        nargs="+",
        required=True,
        metavar="LIBRARY",
        help="patch libraries to train on (.safetensors), or explicit ones (.npy)",
    )
    parser.add_argument(
        "--validation",
        type=Path,
        nargs="+",
        required=True,
        metavar="LIBRARY",
        help="patch libraries of other subjects, for early stopping",
    )
    parser.add_argument("--output", type=Path, required=True, help="model to write (.safetensors)")
    parser.add_argument("--curves", type=Path, help="training curves to write (.csv)")
    parser.add_argument(
        "--checkpoint-dir",
        type=Path,
        required=True,
        help="folder of the checkpoints; a training found here is continued",
    )
    parser.add_argument("--name", help="the model's name; the output's stem when not given")
    network = parser.add_argument_group("network")
    network.add_argument(
        "--network",
        default="aniso-unet",
        help="aniso-unet, iso-unet, sru-net, or one of your own: the name of an entry point iqtflow.networks,"
        " or module:attribute",
    )
    network.add_argument(
        "--network-option",
        action="append",
        default=[],
        type=network_option,
        metavar="NAME=VALUE",
        help="a setting that only this network has; again for another one",
    )
    network.add_argument("--k", type=int, default=4, help="up-scaling factor")
    network.add_argument("--filters", type=int, default=16, help="channels of the first level")
    network.add_argument(
        "--shrink", type=int, default=2, help="b: shrinking layers of each bottleneck block (ANISO U-Net)"
    )
    network.add_argument(
        "--start-from",
        metavar="MODEL",
        help="model whose weights training begins with: a file, or the name of one that ships",
    )
    network.add_argument(
        "--residual",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="learn what to add to the cubic spline",
    )
    network.add_argument(
        "--uncertainty",
        choices=UNCERTAINTIES,
        default="learn",
        help="learn how large the error of the estimate is to be expected; only: keep the estimate of "
        "--start-from and learn its error alone",
    )
    loop = parser.add_argument_group("optimisation")
    loop.add_argument("--batch-size", type=int, default=32, help="patches in a step")
    loop.add_argument("--learning-rate", type=float, default=1e-3, help="of Adam, at the first step")
    loop.add_argument(
        "--schedule",
        choices=("decay", "cosine"),
        default="decay",
        help="learning rate: the paper's slow decay, or a cosine to zero at the last step",
    )
    loop.add_argument("--loss", choices=("mse", "l1"), default="mse", help="what is minimised")
    loop.add_argument(
        "--optimiser",
        choices=("adam", "adamw"),
        default="adam",
        help="the paper's Adam, or AdamW (betas .9 and .99, weight decay 1e-4)",
    )
    loop.add_argument(
        "--warmup", type=int, default=0, help="steps over which the learning rate rises from zero"
    )
    loop.add_argument("--clip", type=float, default=0.0, help="largest norm of the gradient; 0: any")
    loop.add_argument(
        "--averaging",
        type=float,
        default=0.0,
        help="decay of a moving average of the weights, which is validated and kept; 0: none",
    )
    loop.add_argument(
        "--background-weight",
        type=float,
        default=1.0,
        help="weight of voxels outside the brain in the loss",
    )
    loop.add_argument(
        "--precision",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of convolutions on a CPU; a GPU takes bfloat16",
    )
    loop.add_argument(
        "--patch-size",
        type=int,
        help="edge of the high-field patches in voxels, a multiple of k; 32, the paper's, or 48 where k is 3"
        " or 6",
    )
    loop.add_argument("--validation-batches", type=int, default=12, help="batches that a validation takes")
    loop.add_argument("--steps", type=int, help="steps at most; max-epochs decides when not given")
    loop.add_argument(
        "--steps-per-epoch", type=int, default=100, help="steps between validations (and checkpoints)"
    )
    loop.add_argument("--max-epochs", type=int, default=30, help="validations at most")
    loop.add_argument(
        "--patience",
        type=int,
        default=5,
        help="epochs without a better validation loss before stopping; 0: never stop early",
    )
    loop.add_argument("--seed", type=int, default=0, help="of initialisation and of every draw")
    draws = parser.add_argument_group("simulated low field")
    draws.add_argument(
        "--draws",
        type=number_of_draws,
        default="fresh",
        metavar="fresh|N",
        help="simulate anew for every batch, or take the first N draws that the libraries hold",
    )
    draws.add_argument(
        "--prior", default="ibadan-0.36T", help="SNR prior: a published one by name, or a JSON file"
    )
    draws.add_argument(
        "--thickness-fraction",
        type=float,
        nargs=2,
        default=(0.75, 0.75),
        metavar=("LOW", "HIGH"),
        help="slice thickness over spacing",
    )
    draws.add_argument(
        "--snr-scale",
        type=float,
        nargs=2,
        default=(1.0, 1.0),
        metavar=("LOW", "HIGH"),
        help="factor on both tissues' SNR",
    )
    draws.add_argument(
        "--bias-amplitude",
        type=float,
        default=0.0,
        help="largest log-amplitude of a smooth shading of input and target",
    )
    draws.add_argument(
        "--mirror",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="mirror patches and swap the in-plane axes",
    )
    draws.add_argument(
        "--zoom",
        type=float,
        nargs=2,
        default=(1.0, 1.0),
        metavar=("LOW", "HIGH"),
        help="factor on the voxel size of the high-field images, for half of the patches",
    )
    draws.add_argument(
        "--spacing-jitter",
        type=float,
        default=0.0,
        help="largest relative change of the slice spacing against the plane, for half of the patches",
    )
    draws.add_argument(
        "--contrast-jitter",
        type=float,
        default=0.0,
        help="largest relative change of grey over white matter beyond the prior",
    )
    draws.add_argument(
        "--stripes",
        type=float,
        default=0.0,
        help="largest relative change of every other slice, for a quarter of the patches",
    )
    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to train")
    machine.add_argument("--num-threads", type=workers, default=1, help="CPU threads of each process")
    machine.add_argument(
        "--devices", type=workers, default=1, help="GPUs (on the CPU: processes) of each computer"
    )
    machine.add_argument(
        "--num-nodes", type=workers, default=1, help="computers; start the command on each, with srun for one"
    )
    parser.add_argument("--tensorboard", type=Path, metavar="DIR", help="write curves for TensorBoard here")
    parser.add_argument(
        "--card",
        type=Path,
        help="JSON with more fields for the model's card (data, licence, evaluation subjects)",
    )
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
        inputs=(*libraries, options.card, options.start_from, options.prior),
        overwrite=options.overwrite,
    )
    # Before torch is there, which looks at once what GPUs it may see.
    if options.num_nodes > 1:  # the cluster has set the cards apart
        _train(options)
        return
    with device_claimed(
        options.device, lambda line: print(f"{PROG}: {line}", flush=True), count=options.devices
    ):
        _train(options)


def _train(options: argparse.Namespace) -> None:
    import torch

    from iqtflow.image.intensity import NORMALISATION
    from iqtflow.models.model_file import save_model
    from iqtflow.models.registry import choose_settings, setting_names
    from iqtflow.simulation.snr_prior import read_prior
    from iqtflow.training.checkpoints import LOG
    from iqtflow.training.module import curves_as_csv
    from iqtflow.training.plan import TrainingPlan
    from iqtflow.training.samplers import Degradation
    from iqtflow.training.trainer import ERROR_HEAD, train_member
    from iqtflow.utils.files import write_atomically

    if options.device == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "--device cuda",
            found="no CUDA device",
            expected="a visible NVIDIA GPU",
            next_step="Start the container with --gpus all (Docker) or --nv (Apptainer), or use --device "
            "cpu.",
        )
    allow_network(options.network)
    extra = _read_card(options.card)
    prior = read_prior(options.prior)
    degradation = Degradation(
        prior=prior,
        thickness_fraction=tuple(options.thickness_fraction),
        snr_scale=tuple(options.snr_scale),
        bias_amplitude=options.bias_amplitude,
        mirror=options.mirror,
        zoom=tuple(options.zoom),
        spacing_jitter=options.spacing_jitter,
        contrast_jitter=options.contrast_jitter,
        stripes=options.stripes,
    )
    defaults = vars(build_parser().parse_args(_LEAST))
    if options.uncertainty == "only" and options.start_from is None:
        raise UsageError(
            "--uncertainty only",
            found="no model whose estimate is to be kept",
            expected="one",
            next_step="Add --start-from MODEL.",
        )
    general = {name: getattr(options, name) for name in ("k", "filters", "shrink", "residual")}
    if options.uncertainty != "none" and "uncertainty" in setting_names(options.network):
        general["uncertainty"] = True
    settings = choose_settings(options.network, {**general, **dict(options.network_option)}, defaults)
    start = read_start(options.start_from, options.network, settings, seed=options.seed)
    plan = TrainingPlan(
        network=options.network,
        network_settings=settings,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        schedule=options.schedule,
        loss=options.loss,
        steps=options.steps,
        steps_per_epoch=options.steps_per_epoch,
        max_epochs=options.max_epochs,
        patience=options.patience,
        seed=options.seed,
        degradation=degradation,
        start_from=start and start.name,
        only_uncertainty=options.uncertainty == "only",
        draws=options.draws,
        patch_size=options.patch_size or choose_patch_size(options.k),
        validation_batches=options.validation_batches,
        optimiser=options.optimiser,
        warmup=options.warmup,
        clip=options.clip,
        averaging=options.averaging,
        background_weight=options.background_weight,
        precision=options.precision,
    )
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
        num_threads=options.num_threads,
        report=lambda line: _report(line, log, progress=sys.stderr.isatty()),
        progress=sys.stderr.isatty(),
        tensorboard=options.tensorboard,
    )
    if member is None:  # one of several processes; the first one writes
        return
    card = {
        "name": options.name or options.output.stem,
        "k": options.k,
        "contrast": "T1w",
        "network": {"name": options.network, "kwargs": settings},
        "normalisation": {"name": NORMALISATION},
        "geometry": "slab-centred",
        "predicts_error": any(name.startswith(ERROR_HEAD) for name in member.state_dict),
        **described(options.network, settings),
        "patch_size": plan.patch_size,
        "slice_profile": {"shape": "gaussian", "fwhm_over_spacing": list(options.thickness_fraction)},
        "snr_prior": prior.as_dict(),
        "training": {**member.facts, **({} if start is None else {"before": start.training}), **extra},
    }
    save_model(options.output, [member.state_dict], card)
    if options.curves:
        write_atomically(options.curves, lambda stream: stream.write(curves_as_csv(member.curves).encode()))
    print(
        f"{PROG}: wrote {options.output}: validation loss {member.facts['best_validation_loss']:.6f} after "
        f"{member.facts['steps']} steps",
        flush=True,
    )


def described(network: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a network says of its context and memory, for the model's card."""
    from iqtflow.models.registry import build_network

    built = build_network(network, **settings)
    memory = getattr(built, "pass_bytes", None)
    return {
        "context": getattr(built, "context", "patch"),
        **({} if memory is None else {"pass_bytes": dict(memory)}),
    }


class Start(NamedTuple):
    """Weights that a training begins with, what they are called, and the training that made them."""

    name: str
    weights: dict[str, torch.Tensor]
    training: dict[str, Any]


def read_start(
    model: str | Path | None, network: str, settings: dict[str, object], *, seed: int
) -> Start | None:
    """Return the weights of a model to begin with; None when no model is given.

    Parameters
    ----------
    model
        A model file, or the name of one that ships.
    network, settings
        Of the network that is to be trained.
    seed
        Of the training: chooses the member when the model is an ensemble.

    Raises
    ------
    InputError
        The model cannot be read, or is of another network.
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
            next_step="Choose the settings of that network (iqtflow --list-models), or begin without it.",
        )
    number = seed % len(source.members)
    name, training = f"{source.card['name']} (SHA-256 {source.sha256})", source.card.get("training", {})
    parts = training.get("members", [])
    # Ensembles that were joined to one have fewer trainings here than networks: then all are its origin.
    before = parts[number] if len(parts) == len(source.members) else training
    return Start(name, source.members[number].state_dict(), before)


def _estimates_by(network: Mapping[str, Any]) -> dict[str, Any]:
    """A network as a model's card describes it, whether it predicts its error or not."""
    settings = {key: value for key, value in network["kwargs"].items() if key != "uncertainty"}
    return {"name": network["name"], "kwargs": settings}


def read_source(path: Path) -> PatchLibrary | PairFile:
    """Open a patch library, or an explicit one, by what its name ends in."""
    from iqtflow.training.library import read_library
    from iqtflow.training.pairs import read_pairs

    return read_pairs(path) if path.suffix == ".npy" else read_library(path)


def choose_patch_size(k: int) -> int:
    """Edge of the paper's patches; for factors that do not divide it, of the next that all levels divide."""
    return 48 if k % 3 == 0 else 32


def _report(line: str, log: Path, *, progress: bool) -> None:
    """Print a line, unless the progress bar does, and add it to the log beside the checkpoints."""
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
