"""Training of one network (one member of an ensemble), with PyTorch Lightning's loop.

A batch is a function of the seed and of its number (`iqtflow.draws`), and a checkpoint is written after each
epoch under a temporary name and renamed. So a training that was killed at any instant goes on from the last
finished epoch and, on a CPU, ends with the weights of an uninterrupted one.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import logging
import math
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, Dataset

from iqtflow.draws import Degradation, DrawSampler, simulate_batch
from iqtflow.errors import InputError, IQTFlowError
from iqtflow.networks import build_network
from iqtflow.patches import PatchLibrary

VALIDATION_BATCHES = 12
NON_FINITE_LIMIT = 20  #: steps with a non-finite loss after which training stops
_VALIDATION_SEED = 0xE7A1


@dataclass(frozen=True)
class TrainingPlan:
    """Everything that decides the weights. The defaults are the paper's (section 3.1), but for the residual
    connection and fresh draws.

    Attributes
    ----------
    network, network_settings
        Name and keyword arguments for `iqtflow.networks.build_network`; ``k`` is among the latter.
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
        Distribution of the simulator's parameters.
    start_from
        Name and SHA-256 of the model whose weights training begins with; None begins with Glorot's.
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
    train: Sequence[PatchLibrary],
    validation: Sequence[PatchLibrary],
    plan: TrainingPlan,
    *,
    checkpoint_dir: str | os.PathLike,
    start: Mapping[str, torch.Tensor] | None = None,
    device: str = "cpu",
    num_threads: int = 1,
    report: Callable[[str], None] = print,
) -> TrainedMember:
    """Train one network, or go on with a training that was interrupted.

    Parameters
    ----------
    train, validation
        Libraries of two disjoint sets of subjects.
    plan
        What decides the weights.
    checkpoint_dir
        Folder of the checkpoints. It must outlive an interruption. Changing `steps` or `max_epochs` between
        runs is allowed (train longer); any other change is refused.
    start
        Weights to begin with, of the network that the plan describes; `TrainingPlan.start_from` names them.
    device
        "cpu" or "cuda". Mixed precision (bfloat16) is used on CUDA only.
    num_threads
        Threads of one process on the CPU.
    report
        Receives one line of text for each epoch.

    Returns
    -------
    TrainedMember
        The weights of the best validation loss.

    Raises
    ------
    InputError
        A subject is on both sides of the split, or the checkpoints are of other settings.
    IQTFlowError
        The loss was not finite too often; the best weights so far stay in `checkpoint_dir`.
    """
    both = {lib.subject for lib in train} & {lib.subject for lib in validation}
    if both:
        raise InputError(
            "subject split",
            found=f"{', '.join(sorted(both))} in training and in validation",
            expected="disjoint sets of subjects",
            next_step="Correct the split file.",
        )
    torch.set_num_threads(num_threads)
    checkpoint_dir = Path(checkpoint_dir)
    checkpoint_dir.mkdir(parents=True, exist_ok=True)
    _check_identity(checkpoint_dir, train, validation, plan)
    lightning.seed_everything(plan.seed, workers=True, verbose=False)
    module = _Training(plan, train, validation, report)
    if start is not None:
        module.network.load_state_dict(start)
    # Both files are renamed into place by Lightning's atomic save.
    best = ModelCheckpoint(
        checkpoint_dir, filename="best", monitor="val_loss", save_top_k=1, enable_version_counter=False
    )
    last = ModelCheckpoint(
        checkpoint_dir, filename="last", monitor=None, save_top_k=1, enable_version_counter=False
    )
    callbacks: list[Callback] = [best, last]
    if plan.patience:
        callbacks.append(EarlyStopping("val_loss", patience=plan.patience, mode="min"))
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", module="lightning"
        )  # advice about worker processes and progress bars
        trainer = lightning.Trainer(
            accelerator="gpu" if device == "cuda" else "cpu",
            devices=1,
            precision="bf16-mixed" if device == "cuda" else "32-true",
            max_steps=plan.total_steps,
            max_epochs=-1,
            callbacks=callbacks,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            reload_dataloaders_every_n_epochs=1,
            default_root_dir=checkpoint_dir,
        )
        resume = checkpoint_dir / "last.ckpt"
        began = time.monotonic()
        trainer.fit(module, ckpt_path=resume if resume.exists() else None, weights_only=True)
    state = _best_state(checkpoint_dir, module)
    facts = {
        "steps": int(trainer.global_step),
        "epochs": len(module.curves),
        "best_validation_loss": min(row["val_loss"] for row in module.curves),
        "seconds": round(module.seconds_before + time.monotonic() - began, 1),
        "non_finite_steps": module.non_finite,
        "device": device,
        "precision": "bf16-mixed" if device == "cuda" else "float32",
        "training_subjects": sorted(lib.subject for lib in train),
        "validation_subjects": sorted(lib.subject for lib in validation),
        "plan": plan_as_dict(plan),
    }
    return TrainedMember(state, facts, module.curves)


def plan_as_dict(plan: TrainingPlan) -> dict[str, Any]:
    """The plan as JSON-ready fields; a start from Glorot's weights, the usual one, goes without saying."""
    fields = json.loads(json.dumps(dataclasses.asdict(plan)))
    return {key: value for key, value in fields.items() if key != "start_from" or value is not None}


def curves_as_csv(curves: Sequence[dict[str, float]]) -> str:
    """Training curves as text with the columns step, train_loss, val_loss, learning_rate and seconds."""
    text = io.StringIO()
    writer = csv.DictWriter(
        text, fieldnames=["step", "train_loss", "val_loss", "learning_rate", "seconds"], lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows(curves)
    return text.getvalue()


class _Batches(Dataset):
    """Batches number `first` to `first + count - 1` of a sampler, one batch an item."""

    def __init__(self, sampler: DrawSampler, first: int, count: int) -> None:
        self.sampler, self.first, self.count = sampler, first, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.sampler.batch(self.first + index)


class _Training(lightning.LightningModule):
    """The optimisation problem as Lightning wants it told."""

    def __init__(
        self,
        plan: TrainingPlan,
        train: Sequence[PatchLibrary],
        validation: Sequence[PatchLibrary],
        report: Callable[[str], None],
    ) -> None:
        super().__init__()
        self.plan, self.report = plan, report
        k = plan.network_settings["k"]
        self.network = build_network(plan.network, **plan.network_settings).to(
            memory_format=torch.channels_last_3d
        )
        # Validation sees the same kind of scans as training, and always the same ones.
        self.samplers = [
            DrawSampler(libs, k=k, batch_size=plan.batch_size, degradation=plan.degradation, seed=seed)
            for libs, seed in ((train, plan.seed), (validation, _VALIDATION_SEED))
        ]
        self.loss = nn.L1Loss() if plan.loss == "l1" else nn.MSELoss()
        self.curves: list[dict[str, float]] = []
        self.non_finite, self.seconds_before = 0, 0.0
        self._sum, self._count, self._began = 0.0, 0, time.monotonic()

    def configure_optimizers(self) -> dict[str, Any]:
        optimiser = torch.optim.Adam(self.network.parameters(), lr=self.plan.learning_rate)
        total = self.plan.total_steps
        if self.plan.schedule == "cosine":

            def factor(step: int) -> float:
                return 0.5 * (1 + math.cos(math.pi * min(step / total, 1)))
        else:

            def factor(step: int) -> float:
                return 1 / (1 + 1e-6 * step)

        return {
            "optimizer": optimiser,
            "lr_scheduler": {
                "scheduler": torch.optim.lr_scheduler.LambdaLR(optimiser, factor),
                "interval": "step",
            },
        }

    def train_dataloader(self) -> DataLoader:
        per_epoch = min(self.plan.steps_per_epoch, self.plan.total_steps)  # or nothing would be validated
        return DataLoader(
            _Batches(self.samplers[0], self.current_epoch * per_epoch, per_epoch), batch_size=None
        )

    def val_dataloader(self) -> DataLoader:
        return DataLoader(_Batches(self.samplers[1], 0, VALIDATION_BATCHES), batch_size=None)

    def training_step(self, batch: dict[str, torch.Tensor], _: int) -> torch.Tensor | None:
        loss = self._loss(batch)
        if not torch.isfinite(loss):
            self.non_finite += 1
            if self.non_finite > NON_FINITE_LIMIT:
                raise IQTFlowError(
                    f"training stopped: {self.non_finite} steps with a non-finite loss. The best weights "
                    "are kept; "
                    "lower the learning rate, or check the training images for extreme values."
                )
            return None
        self._sum, self._count = self._sum + loss.detach(), self._count + 1
        return loss

    def validation_step(self, batch: dict[str, torch.Tensor], _: int) -> None:
        self.log("val_loss", self._loss(batch), on_epoch=True, batch_size=self.plan.batch_size)

    def on_validation_epoch_end(self) -> None:
        now = self.seconds_before + time.monotonic() - self._began
        row = {
            "step": self.global_step,
            "train_loss": float(self._sum / max(self._count, 1)),
            "val_loss": float(self.trainer.callback_metrics["val_loss"]),
            "learning_rate": self.optimizers().param_groups[0]["lr"],
            "seconds": round(now, 1),
        }
        self.curves.append(row)
        self._sum, self._count = 0.0, 0
        left = now / max(self.global_step, 1) * (self.plan.total_steps - self.global_step)
        self.report(
            f"epoch {len(self.curves)}: step {row['step']} of {self.plan.total_steps}, training loss "
            f"{row['train_loss']:.6f}, "
            f"validation loss {row['val_loss']:.6f}, {now:.0f} s, at most {left:.0f} s left"
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["iqtflow"] = {
            "curves": self.curves,
            "non_finite": self.non_finite,
            "seconds": self.seconds_before + time.monotonic() - self._began,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint["iqtflow"]
        self.curves, self.non_finite, self.seconds_before = (
            list(saved["curves"]),
            saved["non_finite"],
            saved["seconds"],
        )
        self.report(f"resuming after step {checkpoint['global_step']}")

    def _loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        low, high = simulate_batch(batch)
        return self.loss(self.network(low.to(memory_format=torch.channels_last_3d)), high)


def _best_state(checkpoint_dir: Path, module: _Training) -> dict[str, torch.Tensor]:
    saved = torch.load(checkpoint_dir / "best.ckpt", map_location="cpu", weights_only=True)["state_dict"]
    module.load_state_dict(saved)
    return {name: value.detach().cpu().contiguous() for name, value in module.network.state_dict().items()}


def _check_identity(
    checkpoint_dir: Path,
    train: Sequence[PatchLibrary],
    validation: Sequence[PatchLibrary],
    plan: TrainingPlan,
) -> None:
    """Refuse to continue a training of other settings; leave a note of ours for the next start."""
    identity = plan_as_dict(dataclasses.replace(plan, steps=None, max_epochs=0))
    identity["train"] = sorted(lib.subject for lib in train)
    identity["validation"] = sorted(lib.subject for lib in validation)
    text = json.dumps(identity, indent=1, sort_keys=True)
    note = checkpoint_dir / "settings.json"
    if note.exists() and note.read_text() != text:
        before = json.loads(note.read_text())
        changed = ", ".join(
            f"{key}: {before.get(key)} -> {identity.get(key)}"
            for key in sorted(set(before) | set(identity))
            if before.get(key) != identity.get(key)
        )
        raise InputError(
            checkpoint_dir,
            found=f"checkpoints of another training ({changed})",
            expected="checkpoints of this one, or none",
            next_step="Restore the settings, or choose another work directory.",
        )
    temporary = note.with_name(f".{note.name}.{os.getpid()}")
    temporary.write_text(text)
    os.replace(temporary, note)


def plan_digest(plan: TrainingPlan, subjects: Sequence[str]) -> str:
    """Short name of a training, from all that decides its weights but its length: names the checkpoint
    folder.
    """
    identity = plan_as_dict(dataclasses.replace(plan, steps=None, max_epochs=0))
    return hashlib.sha256(json.dumps([identity, sorted(subjects)], sort_keys=True).encode()).hexdigest()[:12]
