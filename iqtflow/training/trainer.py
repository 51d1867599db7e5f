"""Training of one network (one member of an ensemble), with PyTorch Lightning's loop.

A batch is a function of the seed and of its number, and a checkpoint is written after each epoch under a
temporary name and renamed. So a training that was killed at any instant goes on from the last finished epoch
and, on a CPU, ends with the weights of an uninterrupted one.

Several devices share out each batch: `batch_size` is that of all of them together, and the patches of a batch
and their noise are the same whatever their number. Gradients are averaged over devices; batch normalisation
is not: each device normalises by its own part of the batch, since collecting the statistics of 60 layers
twice a step would take longer than the step. Give each device 8 patches or more.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning
import torch

from iqtflow.training.checkpoints import BEST, LAST, claim, read_checkpoint, require_fit
from iqtflow.training.library import PATCH, PatchLibrary
from iqtflow.training.module import TrainingModule
from iqtflow.training.pairs import PairFile, PairSampler
from iqtflow.training.samplers import Degradation, DrawSampler
from iqtflow.training.stored import StoredSampler
from iqtflow.training.training_setup import (
    count_workers,
    is_first_process,
    make_callbacks,
    make_logger,
    make_plugins,
)
from iqtflow.utils.errors import InputError, UsageError

FRESH = "fresh"  #: draws: anew for every batch
Source = PatchLibrary | PairFile

ERROR_HEAD = "error_head."  #: what names of weights begin with that predict a network's error
_VALIDATION_SEED = 0xE7A1
#: Settings that came later: cards and checkpoints without them are those of their defaults.
_LATER = ("optimiser", "warmup", "clip", "averaging", "background_weight", "precision")
_STREAM = 2  #: version of what a seed and a batch's number give; checkpoints of another are not continued


@dataclass(frozen=True)
class TrainingPlan:
    """Everything that decides the weights. The defaults are the paper's (section 3.1), but for the residual
    connection and fresh draws.

    Attributes
    ----------
    network, network_settings
        Name and keyword arguments for `iqtflow.models.registry.build_network`; ``k`` is among the latter.
    batch_size
        Patches in a step.
    learning_rate
        Of Adam, at the first step.
    schedule
        "decay": Keras' time-based decay ``lr / (1 + 1e-6 step)``, the paper's; "cosine": down to zero at the
        last step.
    loss
        "mse" (the paper's) or "l1".
    steps
        Steps at most; None leaves it to `max_epochs`.
    steps_per_epoch, max_epochs
        Steps between validations, and their largest number.
    patience
        Epochs without a better validation loss before training stops; 0 never stops early.
    seed
        Of initialisation and of every draw.
    degradation
        Distribution of the simulator's parameters. Of stored draws all but `mirror` and `prior` were settled
        when they were made; `prior` has to be theirs.
    start_from
        Name and SHA-256 of the model whose weights training begins with; None begins with Glorot's.
    only_uncertainty
        Keep the estimate of the weights that training begins with, and learn its error alone. Losses are then
        those of the error: mean negative logarithm of its Gaussian likelihood, but for a constant.
    draws
        "fresh": every batch is simulated anew; N: the first N stored draws of each subject (Table 2).
    patch_size
        Edge of the high-field patches in voxels. Larger ones show the network more of what surrounds a
        voxel, for the same libraries.
    validation_batches
        Batches that a validation takes.
    optimiser
        "adam" (the paper's), or "adamw": with betas .9 and .99 and a weight decay of 1e-4.
    warmup
        Steps over which the learning rate rises from zero.
    clip
        Largest norm of the gradient; 0 leaves it alone.
    averaging
        Decay of an exponential moving average of the weights, which is what is validated and kept; 0 for
        none. The average over n steps begins with a decay of (n + 1) / (n + 10).
    background_weight
        Weight of voxels outside the brain in the loss; 1 is the paper's. Validation weighs alike.
    precision
        "float32", or "bfloat16" for the convolutions. CUDA always takes the latter.
    """

    network: str = "aniso-unet"
    network_settings: dict[str, Any] = field(
        default_factory=lambda: {"k": 4, "filters": 16, "shrink": 2, "residual": True}
    )
    batch_size: int = 32
    learning_rate: float = 1e-3
    schedule: str = "decay"
    loss: str = "mse"
    steps: int | None = None
    steps_per_epoch: int = 100
    max_epochs: int = 30
    patience: int = 5
    seed: int = 0
    degradation: Degradation = field(default_factory=Degradation)
    start_from: str | None = None
    only_uncertainty: bool = False
    draws: int | str = FRESH
    patch_size: int = PATCH
    validation_batches: int = 12
    optimiser: str = "adam"
    warmup: int = 0
    clip: float = 0.0
    averaging: float = 0.0
    background_weight: float = 1.0
    precision: str = "float32"

    @property
    def total_steps(self) -> int:
        """Steps of a training that is not stopped early."""
        return self.steps if self.steps is not None else self.max_epochs * self.steps_per_epoch


@dataclass(frozen=True)
class TrainedMember:
    """Weights of one network and the facts of its training."""

    state_dict: dict[str, torch.Tensor]
    facts: dict[str, Any]
    curves: list[dict[str, float]]


def train_member(
    train: Sequence[Source],
    validation: Sequence[Source],
    plan: TrainingPlan,
    *,
    checkpoint_dir: str | os.PathLike,
    start: Mapping[str, torch.Tensor] | None = None,
    device: str = "cpu",
    devices: int = 1,
    num_nodes: int = 1,
    num_threads: int = 1,
    report: Callable[[str], None] = print,
    progress: bool = False,
    tensorboard: str | os.PathLike | None = None,
) -> TrainedMember | None:
    """Train one network, or go on with a training that was interrupted.

    Parameters
    ----------
    train, validation
        Libraries of two disjoint sets of subjects: patch libraries, or explicit ones of pairs.
    plan
        What decides the weights.
    checkpoint_dir
        Folder of the checkpoints. It must outlive an interruption. Changing `steps`, `max_epochs` or
        `patience` between runs is allowed (train longer); any other change is refused.
    start
        Weights to begin with, of the network that the plan describes; `TrainingPlan.start_from` names them.
    device
        "cpu" or "cuda". Mixed precision (bfloat16) is used on CUDA only.
    devices, num_nodes
        Devices (on the CPU: processes) of each computer, and computers. All run this same call: Lightning
        starts the processes of one computer, SLURM's ``srun`` those of several.
    num_threads
        Threads of one process on the CPU.
    report
        Receives lines of text: one at the start, one for each epoch.
    progress
        Show a progress bar.
    tensorboard
        Folder for TensorBoard, if any.

    Returns
    -------
    TrainedMember or None
        The weights of the best validation loss; None on all processes but the first.

    Raises
    ------
    InputError
        A subject is on both sides of the split, libraries do not suit the plan, one vanished, or the
        checkpoints are of other settings.
    OutputError
        A checkpoint cannot be written; the last one is whole.
    IQTFlowError
        Loss or gradient were not finite too often; the best weights so far stay in `checkpoint_dir`.
    """
    _check(train, validation, plan, devices * num_nodes)
    torch.set_num_threads(num_threads)
    folder = Path(checkpoint_dir).absolute()
    if is_first_process():
        claim(folder, _identity(train, validation, plan))
    lightning.seed_everything(plan.seed, workers=True, verbose=False)
    sampler = make_sampler(train, plan, seed=plan.seed)
    validator = make_sampler(validation, plan, seed=_VALIDATION_SEED)
    half = device == "cuda" or plan.precision == "bfloat16"
    precision = "bf16-mixed" if half else "32-true"
    workers = count_workers() if device == "cuda" else 0
    module = TrainingModule(plan, sampler, validator, report, workers=workers)
    if start is not None:
        begin_with(module.network, start)
        begin_with(module.judged, start)
    module.introduction = _introduce(
        module, train, validation, device=device, devices=devices * num_nodes, num_threads=num_threads
    )
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        # Advice about worker processes, progress bars and the like.
        warnings.filterwarnings("ignore", module="lightning")
        trainer = lightning.Trainer(
            accelerator="gpu" if device == "cuda" else "cpu",
            devices=devices,
            num_nodes=num_nodes,
            strategy="ddp" if devices * num_nodes > 1 else "auto",
            use_distributed_sampler=False,  # batches are shared out by the samplers
            precision=precision,
            benchmark=device == "cuda",
            max_steps=plan.total_steps,
            max_epochs=-1,
            callbacks=make_callbacks(folder, patience=plan.patience, progress=progress),
            plugins=make_plugins(),
            logger=make_logger(tensorboard),
            enable_progress_bar=progress,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            default_root_dir=folder,
        )
        resume = folder / LAST
        begun = read_checkpoint(resume) if resume.exists() else None
        if begun:
            require_fit(resume, begun, module.state_dict())
        steps = begun["global_step"] if begun else 0
        began = time.monotonic()
        # Lightning would add an epoch to a training that had been stopped early.
        if begun is None or not module.take_over(begun):
            del begun
            trainer.fit(module, ckpt_path=resume if resume.exists() else None, weights_only=True)
            steps = trainer.global_step
    if not trainer.is_global_zero:
        return None
    facts = {
        "steps": int(steps),
        "epochs": len(module.curves),
        "best_validation_loss": min(row["val_loss"] for row in module.curves),
        "seconds": round(module.seconds_before + time.monotonic() - began, 1),
        "interruptions": module.interruptions,
        "non_finite_steps": module.non_finite,
        "device": device,
        "devices": devices * num_nodes,
        "precision": "bf16-mixed" if half else "float32",
        "training_subjects": _subjects(train),
        "validation_subjects": _subjects(validation),
        "plan": plan_as_dict(plan),
    }
    return TrainedMember(_best_state(folder, module), facts, module.curves)


def make_sampler(
    sources: Sequence[Any], plan: TrainingPlan, *, seed: int
) -> DrawSampler | StoredSampler | PairSampler:
    """Return what makes the batches of a plan from these sources.

    Raises
    ------
    InputError
        Sources are of two kinds, or do not suit the plan.
    """
    if len({type(source) for source in sources}) > 1:
        raise InputError(
            "patch libraries",
            found="libraries of volumes beside libraries of pairs",
            expected="one kind",
            next_step="Give .safetensors files, or .npy files.",
        )
    same: dict[str, Any] = {"batch_size": plan.batch_size, "seed": seed, "patch": plan.patch_size}
    same["k"] = plan.network_settings["k"]
    pairs = any(isinstance(source, PairFile) for source in sources)
    if plan.draws == FRESH and not pairs:
        return DrawSampler(sources, degradation=plan.degradation, **same)
    neutral = Degradation(prior=plan.degradation.prior, mirror=plan.degradation.mirror)
    if plan.draws == FRESH or plan.degradation != neutral:
        raise InputError(
            "draws",
            found="fresh ones, from pairs that were drawn before"
            if plan.draws == FRESH
            else "thickness, SNR or shading to be drawn, with stored draws",
            expected="a number of stored draws" if plan.draws == FRESH else "settings of the draws as stored",
            next_step="Choose --draws N."
            if plan.draws == FRESH
            else "Leave these settings out, or choose --draws fresh.",
        )
    make = PairSampler if pairs else StoredSampler
    return make(
        sources,
        n_draws=int(plan.draws),
        mirror=plan.degradation.mirror,
        prior=plan.degradation.prior,
        **same,
    )


def begin_with(network: torch.nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Give a network weights; either may lack an error head, which then begins anew, or is left."""
    own = {name: value for name, value in network.state_dict().items() if name.startswith(ERROR_HEAD)}
    kept = {name: value for name, value in weights.items() if name in own or not name.startswith(ERROR_HEAD)}
    network.load_state_dict({**own, **kept})


def plan_as_dict(plan: TrainingPlan) -> dict[str, Any]:
    """The plan as JSON-ready fields; a start from Glorot's weights and a training of all of them, the usual
    ones, go without saying.
    """
    fields = json.loads(json.dumps(dataclasses.asdict(plan)))
    usual = {"start_from": None, "only_uncertainty": False}
    usual |= {name: getattr(TrainingPlan, name) for name in _LATER}
    degradation = fields["degradation"]
    for name, value in json.loads(json.dumps(dataclasses.asdict(Degradation()))).items():
        if name in ("zoom", "spacing_jitter", "contrast_jitter", "stripes") and degradation[name] == value:
            del degradation[name]
    return {key: value for key, value in fields.items() if key not in usual or value != usual[key]}


def _check(train: Sequence[Source], validation: Sequence[Source], plan: TrainingPlan, processes: int) -> None:
    both = {*_subjects(train)} & {*_subjects(validation)}
    if both:
        raise InputError(
            "subject split",
            found=f"{', '.join(sorted(both))} in training and in validation",
            expected="disjoint sets of subjects",
            next_step="Correct the split file.",
        )
    if plan.batch_size % processes:
        raise UsageError(
            "batch size",
            found=f"{plan.batch_size} patches for {processes} devices",
            expected="the same number for each",
            next_step=f"Choose a multiple of {processes}.",
        )


def _subjects(sources: Sequence[Source]) -> list[str]:
    return sorted({source.subject for source in sources})


def _identity(train: Sequence[Source], validation: Sequence[Source], plan: TrainingPlan) -> dict[str, Any]:
    """All that decides the weights, but for how long is trained."""
    identity = plan_as_dict(dataclasses.replace(plan, steps=None, max_epochs=0, patience=0))
    for part, sources in (("train", train), ("validation", validation)):
        identity[part] = {source.path.name: source.fingerprint for source in sources}
    return {**identity, "stream": _STREAM}


def _introduce(
    module: TrainingModule,
    train: Sequence[Source],
    validation: Sequence[Source],
    *,
    device: str,
    devices: int,
    num_threads: int,
) -> str:
    """First line of a run: where, what, on whom, from which draws."""
    plan = module.plan
    settings = ", ".join(f"{key} = {value}" for key, value in plan.network_settings.items())
    parameters = sum(p.numel() for p in module.network.parameters())
    where = f"{device} ({num_threads} threads)" if device == "cpu" else torch.cuda.get_device_name()
    start = f", starting from {plan.start_from.split(' (')[0]}" if plan.start_from else ""
    start += ", whose estimate stays: only its error is learned" if plan.only_uncertainty else ""
    draws = "fresh draws" if plan.draws == FRESH else f"{plan.draws} stored draw(s) of each"
    return (
        f"{f'{devices} x ' if devices > 1 else ''}{where}, "
        f"{'bfloat16 mixed' if 'cuda' in device or plan.precision == 'bfloat16' else 'float32'} precision; "
        f"{plan.network} ({settings}; {parameters:,} parameters); {len(_subjects(train))} training and "
        f"{len(_subjects(validation))} validation subjects, {sum(s.n_patches for s in train):,} patches; "
        f"{draws}, SNR prior {plan.degradation.prior.name}; at most {plan.total_steps:,} steps of "
        f"{plan.batch_size} patches{start}"
    )


def _best_state(folder: Path, module: TrainingModule) -> dict[str, torch.Tensor]:
    best = read_checkpoint(folder / BEST)
    require_fit(folder / BEST, best, module.state_dict())
    module.load_state_dict(best["state_dict"])
    kept = module.judged.state_dict()
    return {name: value.detach().cpu().contiguous() for name, value in kept.items()}
