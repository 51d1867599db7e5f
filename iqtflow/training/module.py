"""One training as a PyTorch Lightning module: batches, optimiser, checkpoints, training curves, log lines."""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, Dataset, Sampler

from iqtflow.models.registry import build_network
from iqtflow.training.checkpoints import CURVES, guard
from iqtflow.training.device_cuts import Volumes
from iqtflow.training.half_precision import ShortConvolutionsInFloat32
from iqtflow.training.losses import brain_weight, losses
from iqtflow.training.optimisers import Muon
from iqtflow.training.plan import TrainingPlan
from iqtflow.training.samplers import simulate_batch
from iqtflow.utils.errors import InputError, IQTFlowError
from iqtflow.utils.files import write_text

NON_FINITE_LIMIT = 20  #: training stops after more steps than this with a loss or gradient that is not finite
ERROR_HEAD = "error_head."  #: start of the names of weights that predict the error
COLUMNS = ("step", "train_loss", "val_loss", "learning_rate", "seconds")  #: of the training curves


class TrainingModule(lightning.LightningModule):
    """One network, its loss and its optimiser.

    Parameters
    ----------
    plan
        All settings that decide the weights.
    train, validation
        Samplers of batches: ``batch(number, rank=..., world=...)``.
    report
        Function that receives lines of text, on the first process only.
    introduction
        Start of the first line; the expected time of an epoch is added.
    workers
        Number of processes that prepare batches.
    volumes
        Cuts the patches of a batch on the device; None: the samplers cut them.
    """

    def __init__(
        self,
        plan: TrainingPlan,
        train: Any,
        validation: Any,
        report: Callable[[str], None],
        *,
        introduction: str = "",
        workers: int = 0,
        volumes: Volumes | None = None,
    ) -> None:
        super().__init__()
        # Manual: a step is taken only if its gradient is finite on all processes.
        self.automatic_optimization = False
        self.plan, self.samplers, self.workers = plan, (train, validation), workers
        self.volumes = volumes
        self.introduction, self._report = introduction, report
        self.network = build_network(plan.network, **plan.network_settings).to(
            memory_format=torch.channels_last_3d
        )
        self.average = None
        if plan.averaging:
            self.average = AveragedModel(self.network, multi_avg_fn=_Decay(plan.averaging), use_buffers=True)
        if plan.only_uncertainty:
            self._freeze_estimate()
        self.curves: list[dict[str, float]] = []
        self.non_finite, self.seconds_before, self.interruptions = 0, 0.0, 0
        self._sum, self._count, self._began = torch.zeros(()), 0, time.monotonic()
        self._kept: list[torch.Tensor] = []
        named = list(self.network.named_parameters())
        self.parts = [
            [value for name, value in named if name.startswith(ERROR_HEAD) is of_error]
            for of_error in (False, True)
        ]

    def configure_optimizers(self) -> dict[str, Any]:
        """Return the plan's optimiser and schedule."""
        learned = [value for value in self.network.parameters() if value.requires_grad]
        plan = self.plan
        optimiser: torch.optim.Optimizer
        if plan.optimiser == "muon":
            optimiser = Muon(self.network, plan.learning_rate)
        elif plan.optimiser == "adamw":
            optimiser = torch.optim.AdamW(learned, plan.learning_rate, (0.9, 0.99), weight_decay=1e-4)
        else:
            optimiser = torch.optim.Adam(learned, lr=plan.learning_rate)

        def factor(step: int) -> float:
            rise = min((step + 1) / (plan.warmup + 1), 1)
            if plan.schedule == "cosine":
                return rise * 0.5 * (1 + math.cos(math.pi * min(step / plan.total_steps, 1)))
            return rise / (1 + 1e-6 * step)

        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
        return {"optimizer": optimiser, "lr_scheduler": schedule}

    def train_dataloader(self) -> DataLoader:
        """Batches of the current epoch."""
        per_epoch = self.plan.steps_per_epoch
        return self._loader(self.samplers[0], lambda: self.current_epoch * per_epoch, self._steps_due)

    def _steps_due(self) -> int:
        """Steps of the current epoch; the last one may be shorter."""
        return max(min(self.plan.steps_per_epoch, self.plan.total_steps - self.global_step), 1)

    def val_dataloader(self) -> DataLoader:
        """The same batches at every validation."""
        return self._loader(self.samplers[1], lambda: 0, lambda: self.plan.validation_batches)

    def _loader(self, sampler: Any, first: Callable[[], int], count: Callable[[], int]) -> DataLoader:
        return DataLoader(
            _Batches(sampler, self.global_rank, self.trainer.world_size),
            sampler=_Numbers(first, count),
            batch_size=None,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=self.device.type == "cuda",
        )

    def on_train_epoch_start(self) -> None:
        """Check that the libraries still exist; a missing file would crash the process."""
        for sampler in self.samplers:
            check_sources(sampler)
        self.trainer.val_check_batch = self._steps_due()

    def training_step(self, batch: dict[str, Any], index: int) -> None:
        """Take one step of the optimiser, if loss and gradient are finite."""
        begin = time.monotonic()
        optimiser = self.optimizers()
        self._keep_statistics()
        objective, loss = self.losses(self.network, batch)
        optimiser.zero_grad(set_to_none=True)
        self.manual_backward(objective)
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        finite = bool(torch.isfinite(torch.nn.utils.get_total_norm(gradients) + objective.detach()))
        if self.trainer.world_size > 1:
            finite = self.trainer.strategy.reduce_boolean_decision(finite, all=True)
        if finite:
            if self.plan.clip:
                # The likelihood's gradient can be ten thousand times the estimate's: each has its own limit.
                for part in self.parts:
                    torch.nn.utils.clip_grad_norm_(part, self.plan.clip)
            optimiser.step()
            self.lr_schedulers().step()
            if self.average is not None:
                self.average.update_parameters(self.network)
            self._sum, self._count = self._sum.to(loss.device) + loss.detach(), self._count + 1
        else:
            self._refuse_step()
        if self.introduction:
            self._introduce(time.monotonic() - begin)

    def validation_step(self, batch: dict[str, Any], _: int) -> None:
        """Loss of one batch."""
        _, loss = self.losses(self.judged, batch)
        self.log("val_loss", loss, on_epoch=True, sync_dist=self.trainer.world_size > 1, batch_size=1)

    def on_validation_epoch_end(self) -> None:
        """Add a row to the training curves, and report it."""
        now = self.seconds_before + time.monotonic() - self._began
        mean = self._sum / max(self._count, 1)
        if self.trainer.world_size > 1:
            mean = self.trainer.strategy.reduce(mean.to(self.device), reduce_op="mean")
        row = {
            "step": self.global_step,
            "train_loss": float(mean) if self._count else float("nan"),
            "val_loss": float(self.trainer.callback_metrics["val_loss"]),
            "learning_rate": self.optimizers().param_groups[0]["lr"],
            "seconds": round(now, 1),
        }
        self.curves.append(row)
        if self.logger:
            named = {"loss/training": row["train_loss"], "loss/validation": row["val_loss"]}
            self.logger.log_metrics({**named, "learning_rate": row["learning_rate"]}, step=row["step"])
        self._sum, self._count = torch.zeros(()), 0
        left = now / max(self.global_step, 1) * (self.plan.total_steps - self.global_step)
        skipped = f", {self.non_finite} steps left out as not finite" if self.non_finite else ""
        self.say(
            f"epoch {len(self.curves)}: step {row['step']} of {self.plan.total_steps}, training loss "
            f"{row['train_loss']:.6f}, validation loss {row['val_loss']:.6f}, {now:.0f} s, at most "
            f"{left:.0f} s left{skipped}"
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the training curves and counters."""
        checkpoint["iqtflow"] = {
            "curves": self.curves,
            "non_finite": self.non_finite,
            "interruptions": self.interruptions,
            "seconds": self.seconds_before + time.monotonic() - self._began,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the training curves and counters."""
        self._restore(checkpoint["iqtflow"])
        self.interruptions += 1
        self.say(f"resuming after step {checkpoint['global_step']}")

    def take_over(self, checkpoint: dict[str, Any]) -> bool:
        """Return whether the training of a checkpoint was complete; restore its curves and counters then."""
        saved = checkpoint["iqtflow"]
        told = [math.inf if math.isnan(row["val_loss"]) else row["val_loss"] for row in saved["curves"]]
        waited = len(told) - 1 - told.index(min(told)) if told else 0
        ended = checkpoint["global_step"] >= self.plan.total_steps
        ended |= 0 < self.plan.patience <= waited
        if ended:
            self._restore(saved)
        return ended

    def _restore(self, saved: dict[str, Any]) -> None:
        self.curves, self.non_finite = list(saved["curves"]), saved["non_finite"]
        self.seconds_before, self.interruptions = saved["seconds"], saved["interruptions"]

    def say(self, line: str) -> None:
        """Report a line, on the first process only, above the progress bar."""
        if not self.trainer.is_global_zero:
            return
        bar = self.trainer.progress_bar_callback
        if bar is not None and bar.is_enabled:
            bar.print(line)
        self._report(line)

    def train(self, mode: bool = True) -> TrainingModule:  # noqa: FBT001, FBT002 (as PyTorch has it)
        """Switch to training mode, but not the frozen network when only the predicted error is trained."""
        super().train(mode)
        if self.plan.only_uncertainty:
            self.network.eval()
        return self

    def _freeze_estimate(self) -> None:
        head = getattr(self.network, "error_head", None)
        if head is None:
            raise InputError(
                f"network {self.plan.network}",
                found="no module error_head, which predicts the variance of the error",
                expected="one, since only the predicted error is trained",
                next_step="Choose one of iqtflow's networks.",
            )
        self.network.requires_grad_(requires_grad=False)
        self.network.eval()
        head.requires_grad_()

    @property
    def judged(self) -> nn.Module:
        """The network that is validated and saved: the moving average of the weights, if there is one."""
        return self.network if self.average is None else self.average.module

    def simulate(self, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the low-field and the high-field patches of a batch."""
        if self.volumes is not None:
            batch = self.volumes.cut(batch)
        low, high = simulate_batch(batch, distribution=self.plan.degradation.noise)
        return low.to(memory_format=torch.channels_last_3d), high

    def way_around_short_convolutions(self) -> AbstractContextManager[object]:
        """Return the context in which a network is computed; on a GPU it would only take time."""
        return ShortConvolutionsInFloat32() if self.device.type == "cpu" else nullcontext()

    def losses(self, network: nn.Module, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """What is minimised, and what is reported."""
        low, high = self.simulate(batch)
        with self.way_around_short_convolutions():
            output = network(low).float()
        weight = brain_weight(batch.get("brain"), self.plan.background_weight, high.device)
        kind, only = self.plan.loss, self.plan.only_uncertainty
        return losses(output, high, weight, loss=kind, only_uncertainty=only)

    def _keep_statistics(self) -> None:
        """Keep a copy of batch normalisation's running statistics: one bad batch would spoil them."""
        running = self._running()
        if len(self._kept) != len(running) or (running and self._kept[0].device != running[0].device):
            self._kept = [value.clone() for value in running]
        elif running:
            torch._foreach_copy_(self._kept, running)

    def _running(self) -> list[torch.Tensor]:
        return [value for value in self.network.buffers() if value.is_floating_point()]

    def _refuse_step(self) -> None:
        for value, kept in zip(self._running(), self._kept, strict=True):
            value.copy_(kept)
        self.non_finite += 1
        if self.non_finite > NON_FINITE_LIMIT:
            best = min((row["val_loss"] for row in self.curves), default=None)
            kept = "No weights" if best is None else f"The best weights (validation loss {best:.6f})"
            raise IQTFlowError(
                f"training stopped: {self.non_finite} steps with a loss or gradient that is not finite. "
                f"{kept} are kept; lower the learning rate, or check the training images for extreme values."
            )

    def _introduce(self, step_seconds: float) -> None:
        """Report the first line with the expected time: from the first step, on a GPU from the third."""
        if self.device.type == "cuda" and self.global_step < 3:
            return
        # Validation is the forward half of a step, about a third of it.
        epoch = step_seconds * (self.plan.steps_per_epoch + self.plan.validation_batches / 3)
        steps = f"an epoch of {self.plan.steps_per_epoch} steps"
        left = epoch * (self.plan.total_steps - self.global_step) / self.plan.steps_per_epoch
        self.say(f"{self.introduction}; {steps} takes about {duration(epoch)}, at most {left:.0f} s left")
        self.introduction = ""


class _Decay:
    """Update rule of the moving average of the weights: decay of at most (n + 1) / (n + 10) at step n."""

    def __init__(self, decay: float) -> None:
        self.decay = decay

    def __call__(self, averages: list[torch.Tensor], values: list[torch.Tensor], count: Any) -> None:
        decay = min(self.decay, (float(count) + 1) / (float(count) + 10))
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, values, 1 - decay)
        else:
            torch._foreach_copy_(averages, values)


class CurvesOnDisk(Callback):
    """Writes the training curves to a file after each epoch."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / CURVES

    def on_validation_end(self, trainer: lightning.Trainer, module: TrainingModule) -> None:
        """Write the table so far."""
        if trainer.is_global_zero and module.curves:
            guard(self.path, lambda: write_text(self.path, curves_as_csv(module.curves)))


def curves_as_csv(curves: Sequence[dict[str, float]]) -> str:
    """Training curves as text with the columns step, train_loss, val_loss, learning_rate and seconds."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(curves)
    return text.getvalue()


def check_sources(sampler: Any) -> None:
    """Make sure that the memory-mapped files of a sampler are still complete.

    Raises
    ------
    InputError
        A file is missing, was replaced or was cut short.
    """
    for source in getattr(sampler, "sources", ()):
        try:
            now = source.path.stat()
            found = None if source.size == now.st_size else f"{now.st_size} bytes"
        except OSError as fault:
            found = fault.strerror or str(fault)
        if found:
            raise InputError(
                source.path,
                found=f"{found} while it was being trained on",
                expected=f"the library of sub-{source.subject}, {source.size} bytes",
                next_step="Put it back, and run the same command again to continue.",
            )


def duration(seconds: float) -> str:
    """Return a time in words, with about two digits."""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 2 else f"{seconds:.2g} s"


class _Batches(Dataset):
    """One process's part of each batch, by the batch's number."""

    def __init__(self, sampler: Any, rank: int, world: int) -> None:
        self.sampler, self.rank, self.world = sampler, rank, world

    def __getitem__(self, number: int) -> dict[str, Any]:
        return self.sampler.batch(number, rank=self.rank, world=self.world)


class _Numbers(Sampler):
    """Numbers of the batches of an epoch; they are computed when the epoch begins."""

    def __init__(self, first: Callable[[], int], count: Callable[[], int]) -> None:
        self.first, self.count = first, count

    def __len__(self) -> int:
        return self.count()

    def __iter__(self) -> Iterator[int]:
        first = self.first()
        return iter(range(first, first + self.count()))
