"""Training of one network (one member of an ensemble) with PyTorch Lightning.

A batch depends on the seed and its number only. A checkpoint is written after each epoch under a temporary
name, then renamed. A training that was killed at any time therefore continues from the last complete epoch.
On a CPU its weights are then those of an uninterrupted training.

Several devices share each batch: `batch_size` is their sum, and the patches of a batch and their noise do not
depend on the number of devices. Gradients are averaged over devices. Batch normalisation is not: each device
normalises its own part of the batch, since exchanging the statistics of 60 layers twice a step takes longer
than the step. Give each device 8 patches or more.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, TQDMProgressBar

from iqtflow.training.checkpoints import (
    BEST,
    LAST,
    AtomicCheckpointIO,
    claim,
    read_checkpoint,
    require_fit,
)
from iqtflow.training.device_cuts import PlaceSampler, Volumes, volume_bytes
from iqtflow.training.finish import finish
from iqtflow.training.library import PatchLibrary
from iqtflow.training.module import ERROR_HEAD, CurvesOnDisk, TrainingModule
from iqtflow.training.pairs import PairFile, PairSampler
from iqtflow.training.plan import FRESH, TrainingPlan
from iqtflow.training.samplers import Degradation, DrawSampler, StoredSampler
from iqtflow.utils.errors import InputError, UsageError

Source = PatchLibrary | PairFile

VALIDATION_SEED = 0xE7A1
_STREAM = 2  #: version of the batches that a seed gives; checkpoints of another version are not continued


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
    """Train one network, or continue a training that was interrupted.

    Parameters
    ----------
    train, validation
        Patch libraries, or libraries of pairs, of two sets of subjects without overlap.
    plan
        All settings that decide the weights.
    checkpoint_dir
        Folder of the checkpoints; keep it until the training is complete. `steps`, `max_epochs` and
        `patience` may change between runs, to train longer; other changes are refused.
    start
        Weights to start from, of the network in the plan; `TrainingPlan.start_from` names their model.
    device
        "cpu" or "cuda".
    devices, num_nodes
        Devices (on the CPU: processes) of each computer, and number of computers. All processes make this
        same call. Lightning starts those of one computer, SLURM's ``srun`` those of several.
    num_threads
        CPU threads of each process.
    report
        Function that receives lines of text: one at the start, one for each epoch.
    progress
        Show a progress bar.
    tensorboard
        Folder for TensorBoard's files; None: none are written.

    Returns
    -------
    TrainedMember or None
        The weights with the best validation loss; None on all processes except the first.

    Raises
    ------
    InputError
        A subject is in both sets, a library does not fit the plan or is missing, or the checkpoints were
        made with other settings.
    UsageError
        The devices cannot share a batch in equal parts, or TensorBoard is not installed.
    OutputError
        A checkpoint cannot be written; the last complete one is kept.
    IQTFlowError
        Loss or gradient were not finite too often; the best weights are kept in `checkpoint_dir`.
    """
    _check(train, validation, plan, devices * num_nodes)
    torch.set_num_threads(num_threads)
    folder = Path(checkpoint_dir).absolute()
    if is_first_process():
        claim(folder, _identity(train, validation, plan))
    lightning.seed_everything(plan.seed, workers=True, verbose=False)
    volumes = make_volumes([*train, *validation], plan, device)
    sampler = make_sampler(train, plan, seed=plan.seed, volumes=volumes)
    validator = make_sampler(validation, plan, seed=VALIDATION_SEED, volumes=volumes)
    half = device == "cuda" or plan.precision == "bfloat16"
    precision = "bf16-mixed" if half else "32-true"
    # Processes that prepare batches for a GPU.
    workers = max(min(8, (os.cpu_count() or 1) - 1), 0) if device == "cuda" else 0
    module = TrainingModule(plan, sampler, validator, report, workers=workers, volumes=volumes)
    if start is not None:
        begin_with(module.network, start)
        begin_with(module.judged, start)
    before = copy.deepcopy(module.judged.state_dict()) if plan.average_with_start else None
    module.introduction = _introduce(
        module, train, validation, device=device, devices=devices * num_nodes, num_threads=num_threads
    )
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        # Lightning's advice about worker processes, progress bars and the like.
        warnings.filterwarnings("ignore", module="lightning")
        trainer = lightning.Trainer(
            accelerator="gpu" if device == "cuda" else "cpu",
            devices=devices,
            num_nodes=num_nodes,
            strategy="ddp" if devices * num_nodes > 1 else "auto",
            use_distributed_sampler=False,  # our samplers share the batches
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
        # Lightning would add an epoch to a training that was stopped early.
        if begun is None or not module.take_over(begun):
            del begun
            trainer.fit(module, ckpt_path=resume if resume.exists() else None, weights_only=True)
            steps = trainer.global_step
    if not trainer.is_global_zero:
        return None
    facts: dict[str, Any] = {
        "steps": int(steps),
        "epochs": len(module.curves),
        "best_validation_loss": min(row["val_loss"] for row in module.curves),
        # Those of the curve: a finished training that writes its model again states the same.
        "seconds": module.curves[-1]["seconds"],
        "interruptions": module.interruptions,
        "non_finite_steps": module.non_finite,
        "device": device,
        "devices": devices * num_nodes,
        "precision": "bf16-mixed" if half else "float32",
        "training_subjects": _subjects(train),
        "validation_subjects": _subjects(validation),
        "plan": plan.as_dict(),
    }
    best, last = (read_checkpoint(folder / name) for name in (BEST, LAST))
    require_fit(folder / BEST, best, module.state_dict())
    module.load_state_dict(best["state_dict"])
    later = last["state_dict"] if last["global_step"] != best["global_step"] else None
    weights, end = finish(module.to(device), later, before, half=half)
    facts.update(end)
    if "averaged" in end:
        report(
            f"average of the weights before and after, share of the new ones {end['averaged']['share']:g}: "
            f"validation loss {min(end['averaged']['validation_loss'].values()):.6f}"
        )
    if "statistics" in end:
        losses = end["statistics"]["validation_loss"]
        after = f", {losses['last, exact']:.6f} after the last step" if "last, exact" in losses else ""
        report(
            f"batch normalisation: validation loss {losses['running']:.6f} with its running statistics, "
            f"{losses['exact']:.6f} with those of {end['statistics']['batches']} batches{after}"
        )
    return TrainedMember(weights, facts, module.curves)


def make_volumes(sources: Sequence[Any], plan: TrainingPlan, device: str) -> Volumes | None:
    """Return the volumes of the libraries for cutting patches on a GPU; None where the samplers cut them: on
    the CPU, for stored draws, and where the GPU is too small.
    """
    if device != "cuda" or plan.draws != FRESH or any(isinstance(source, PairFile) for source in sources):
        return None
    if volume_bytes(sources) > torch.cuda.mem_get_info()[0] / 2:
        return None
    return Volumes(sources)


def make_sampler(
    sources: Sequence[Any], plan: TrainingPlan, *, seed: int, volumes: Volumes | None = None
) -> DrawSampler | StoredSampler | PairSampler:
    """Return the sampler that makes the batches of a plan from these libraries; with `volumes`, fresh draws
    that are cut from them on the device.

    Raises
    ------
    InputError
        The libraries are of two kinds, or do not fit the plan.
    """
    if len({type(source) for source in sources}) > 1:
        raise InputError(
            "patch libraries",
            found="libraries of volumes and libraries of pairs",
            expected="one kind",
            next_step="Give .safetensors files, or .npy files.",
        )
    same: dict[str, Any] = {"batch_size": plan.batch_size, "seed": seed, "patch": plan.patch_size}
    same["k"] = plan.network_settings["k"]
    pairs = any(isinstance(source, PairFile) for source in sources)
    degradation = plan.degradation
    if plan.draws == FRESH and pairs:
        raise InputError(
            "draws",
            found="fresh draws, with libraries of pairs, which are drawn already",
            expected="a number of stored draws",
            next_step="Choose --draws N.",
        )
    if volumes is not None:
        return PlaceSampler(sources, volumes=volumes, degradation=degradation, **same)
    if plan.draws == FRESH:
        return DrawSampler(sources, degradation=degradation, **same)
    if degradation != Degradation(prior=degradation.prior, mirror=degradation.mirror):
        raise InputError(
            "draws",
            found="settings of the simulator, with stored draws, which are simulated already",
            expected="stored draws as they are",
            next_step="Leave these settings out, or choose --draws fresh.",
        )
    make = PairSampler if pairs else StoredSampler
    same |= {"n_draws": int(plan.draws), "mirror": degradation.mirror, "prior": degradation.prior}
    return make(sources, **same)


def begin_with(network: torch.nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Load weights into a network; an error head that the weights lack keeps its own, one that the network
    lacks is ignored.
    """
    own = {name: value for name, value in network.state_dict().items() if name.startswith(ERROR_HEAD)}
    kept = {name: value for name, value in weights.items() if name in own or not name.startswith(ERROR_HEAD)}
    network.load_state_dict({**own, **kept})


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
    """All settings that decide the weights, except the length of the training."""
    identity = dataclasses.replace(plan, steps=None, max_epochs=0, patience=0).as_dict()
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
    """First line of a run: device, network, subjects, draws."""
    plan = module.plan
    settings = ", ".join(f"{key} = {value}" for key, value in plan.network_settings.items())
    parameters = sum(p.numel() for p in module.network.parameters())
    where = f"{device} ({num_threads} threads)" if device == "cpu" else torch.cuda.get_device_name()
    start = f", starting from {plan.start_from.split(' (')[0]}" if plan.start_from else ""
    start += ", training only its predicted error" if plan.only_uncertainty else ""
    draws = "fresh draws" if plan.draws == FRESH else f"{plan.draws} stored draw(s) of each"
    return (
        f"{f'{devices} x ' if devices > 1 else ''}{where}, "
        f"{'bfloat16 mixed' if 'cuda' in device or plan.precision == 'bfloat16' else 'float32'} precision; "
        f"{plan.network} ({settings}; {parameters:,} parameters); {len(_subjects(train))} training and "
        f"{len(_subjects(validation))} validation subjects, {sum(s.n_patches for s in train):,} patches; "
        f"{draws}, SNR prior {plan.degradation.prior.name}; at most {plan.total_steps:,} steps of "
        f"{plan.batch_size} patches{start}"
    )


def make_callbacks(folder: Path, *, patience: int, progress: bool) -> list[Callback]:
    """Return Lightning's callbacks: curves and checkpoints after each epoch, early stopping, progress bar."""
    # The best weights first: the last checkpoint stores their score.
    kept = {"enable_version_counter": False, "save_top_k": 1}
    callbacks: list[Callback] = [
        CurvesOnDisk(folder),
        ModelCheckpoint(folder, filename=Path(BEST).stem, monitor="val_loss", **kept),
        ModelCheckpoint(folder, filename=Path(LAST).stem, monitor=None, **kept),
    ]
    if patience:
        # After validation only: a continued training first passes the end of an epoch, and has no loss yet.
        when = {"check_finite": False, "check_on_train_epoch_end": False}
        callbacks.append(_Patience("val_loss", patience=patience, mode="min", **when))
    if progress:
        callbacks.append(TQDMProgressBar())
    return callbacks


class _Patience(EarlyStopping):
    """Early stopping with the patience of this run, not the one in the checkpoint."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the count, but not the limit."""
        super().load_state_dict({**state_dict, "patience": self.patience})


def make_plugins() -> list[Any]:
    """Return our writer of checkpoints, and Lightning's way to find the processes."""
    from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment

    plugins: list[Any] = [AtomicCheckpointIO()]
    if _started_by_srun():
        # A restarted job continues from the last epoch by itself; no extra checkpoint is needed.
        plugins.append(SLURMEnvironment(auto_requeue=False))
    elif SLURMEnvironment.detect():
        # One process inside a job: the job's number of tasks does not apply.
        plugins.append(LightningEnvironment())
    return plugins


def _started_by_srun() -> bool:
    """Whether SLURM has started one process for each device."""
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1


def is_first_process() -> bool:
    """Whether this is the first process; Lightning is not set up yet."""
    if _started_by_srun():
        return int(os.environ.get("SLURM_PROCID", 0)) == 0
    return int(os.environ.get("LOCAL_RANK", 0)) == 0 and int(os.environ.get("NODE_RANK", 0)) == 0


def make_logger(tensorboard: str | os.PathLike | None) -> Any:
    """Return a TensorBoard logger for a folder; False for None.

    Raises
    ------
    UsageError
        TensorBoard is not installed.
    """
    if tensorboard is None:
        return False
    try:
        from lightning.pytorch.loggers import TensorBoardLogger

        return TensorBoardLogger(Path(tensorboard).absolute(), name="", version="")
    except ModuleNotFoundError as fault:
        raise UsageError(
            "--tensorboard",
            found="no TensorBoard",
            expected="the package tensorboard",
            next_step='Install it (pip install "iqtflow[tensorboard]"), or leave the option out.',
        ) from fault
