"""The optimisation problem as PyTorch Lightning wants it told, and what is said about it on the way."""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, Dataset, Sampler

from iqtflow.models.registry import build_network
from iqtflow.training.checkpoints import CURVES, guard
from iqtflow.training.samplers import simulate_batch
from iqtflow.utils.errors import InputError, IQTFlowError
from iqtflow.utils.files import write_text

if TYPE_CHECKING:
    from iqtflow.training.trainer import TrainingPlan

NON_FINITE_LIMIT = 20  #: steps whose loss or gradient is not finite after which training stops
COLUMNS = ("step", "train_loss", "val_loss", "learning_rate", "seconds")  #: of the training curves


class TrainingModule(lightning.LightningModule):
    """One network, its loss and its optimiser.

    Parameters
    ----------
    plan
        What decides the weights.
    train, validation
        Samplers of batches: ``batch(number, rank=..., world=...)``.
    report
        Receives lines of text, on the first process only.
    introduction
        Completed by the expected time of an epoch, the first line of a run.
    workers
        Processes that prepare batches.
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
    ) -> None:
        super().__init__()
        # Manual: a step is taken only when its gradient is finite, on all processes or on none.
        self.automatic_optimization = False
        self.plan, self.samplers, self.workers = plan, (train, validation), workers
        self.introduction, self._report = introduction, report
        self.network = build_network(plan.network, **plan.network_settings).to(
            memory_format=torch.channels_last_3d
        )
        self.average = None
        if plan.averaging:
            self.average = AveragedModel(self.network, avg_fn=_Decay(plan.averaging), use_buffers=True)
        if plan.only_uncertainty:
            self._freeze_estimate()
        self.curves: list[dict[str, float]] = []
        self.non_finite, self.seconds_before, self.interruptions = 0, 0.0, 0
        self._sum, self._count, self._began = torch.zeros(()), 0, time.monotonic()
        self._kept: list[torch.Tensor] = []

    def configure_optimizers(self) -> dict[str, Any]:
        """Adam with the plan's schedule."""
        learned = [value for value in self.network.parameters() if value.requires_grad]
        plan = self.plan
        optimiser: torch.optim.Optimizer
        if plan.optimiser == "adamw":
            optimiser = torch.optim.AdamW(
                learned, lr=plan.learning_rate, betas=(0.9, 0.99), weight_decay=1e-4
            )
        else:
            optimiser = torch.optim.Adam(learned, lr=plan.learning_rate)

        def factor(step: int) -> float:
            rise = min((step + 1) / (plan.warmup + 1), 1)
            if plan.schedule == "cosine":
                return rise * 0.5 * (1 + math.cos(math.pi * min(step / plan.total_steps, 1)))
            return rise / (1 + 1e-6 * step)

        return {
            "optimizer": optimiser,
            "lr_scheduler": torch.optim.lr_scheduler.LambdaLR(optimiser, factor),
        }

    def train_dataloader(self) -> DataLoader:
        """Batches of the epoch that is due."""
        per_epoch = self.plan.steps_per_epoch

        return self._loader(self.samplers[0], lambda: self.current_epoch * per_epoch, self._steps_due)

    def _steps_due(self) -> int:
        """Steps of the epoch that begins."""
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
        """Make sure that the libraries are still there: a file that is gone would end in a crash."""
        for sampler in self.samplers:
            check_sources(sampler)
        self.trainer.val_check_batch = self._steps_due()  # the last epoch may be shorter

    def training_step(self, batch: dict[str, Any], index: int) -> None:
        """Take one step of the optimiser, unless loss or gradient are not finite."""
        begin = time.monotonic()
        optimiser = self.optimizers()
        self._keep_statistics()
        objective, loss = self._losses(self.network, batch)
        optimiser.zero_grad(set_to_none=True)
        self.manual_backward(objective)
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        finite = bool(torch.isfinite(torch.nn.utils.get_total_norm(gradients) + objective.detach()))
        if self.trainer.world_size > 1:
            finite = self.trainer.strategy.reduce_boolean_decision(finite, all=True)
        if finite:
            if self.plan.clip:
                torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.plan.clip)
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
        _, loss = self._losses(self.judged, batch)
        self.log("val_loss", loss, on_epoch=True, sync_dist=self.trainer.world_size > 1, batch_size=1)

    def on_validation_epoch_end(self) -> None:
        """Add a row to the curves, and say how it goes."""
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
        """Add what is needed to go on as if nothing had happened."""
        checkpoint["iqtflow"] = {
            "curves": self.curves,
            "non_finite": self.non_finite,
            "interruptions": self.interruptions,
            "seconds": self.seconds_before + time.monotonic() - self._began,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it up again."""
        saved = checkpoint["iqtflow"]
        self.curves, self.non_finite = list(saved["curves"]), saved["non_finite"]
        self.seconds_before, self.interruptions = saved["seconds"], saved["interruptions"] + 1
        self.say(f"resuming after step {checkpoint['global_step']}")

    def take_over(self, checkpoint: dict[str, Any]) -> bool:
        """Take over the record of a training that had come to its end; return whether it had."""
        saved = checkpoint["iqtflow"]
        losses = [math.inf if math.isnan(row["val_loss"]) else row["val_loss"] for row in saved["curves"]]
        waited = len(losses) - 1 - losses.index(min(losses)) if losses else 0
        ended = checkpoint["global_step"] >= self.plan.total_steps
        ended |= 0 < self.plan.patience <= waited
        if ended:
            self.curves, self.non_finite = list(saved["curves"]), saved["non_finite"]
            self.seconds_before, self.interruptions = saved["seconds"], saved["interruptions"]
        return ended

    def say(self, line: str) -> None:
        """Report a line, once, without tearing a progress bar apart."""
        if not self.trainer.is_global_zero:
            return
        bar = self.trainer.progress_bar_callback
        if bar is not None and bar.is_enabled:
            bar.print(line)
        self._report(line)

    def train(self, mode: bool = True) -> TrainingModule:  # noqa: FBT001, FBT002 (as PyTorch has it)
        """As PyTorch's; an estimate that is to stay has its batch normalisation stay as well."""
        super().train(mode)
        if self.plan.only_uncertainty:
            self.network.eval()
        return self

    def _freeze_estimate(self) -> None:
        head = getattr(self.network, "error_head", None)
        if head is None:
            raise InputError(
                f"network {self.plan.network}",
                found="no error head, a module of this name that predicts the error's variance",
                expected="one, since only the uncertainty is to be learned",
                next_step="Choose one of iqtflow's networks.",
            )
        self.network.requires_grad_(requires_grad=False)
        self.network.eval()
        head.requires_grad_()

    @property
    def judged(self) -> nn.Module:
        """The network that is validated and kept: the average, where there is one."""
        return self.network if self.average is None else self.average.module

    def _losses(self, network: nn.Module, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """What is minimised, and what is told and chooses the best weights.

        The second channel of a network's output, if there is one, is the logarithm of its error's variance,
        and learned by the likelihood of a Gaussian error (Kendall and Gal 2017, eq. 8). The estimate is
        learned, and its best weights are chosen, as if there were none.
        """
        low, high = simulate_batch(batch)
        output = network(low.to(memory_format=torch.channels_last_3d)).float()
        estimate, log_variance = output[:, :1], output[:, 1:]
        weight = self._weight(batch, high)
        error = estimate - high
        loss = (weight * (error.abs() if self.plan.loss == "l1" else error.square())).mean()
        if log_variance.shape[1] == 0:
            return loss, loss
        squared = error.detach().square()
        surprise = (weight * (log_variance + squared * torch.exp(-log_variance))).mean() / 2
        return (surprise, surprise) if self.plan.only_uncertainty else (loss + surprise, loss)

    def _weight(self, batch: dict[str, Any], like: torch.Tensor) -> torch.Tensor:
        """Weight of each voxel in the loss, 1 on average over the brain; pairs that were stored know none."""
        if self.plan.background_weight == 1 or "brain" not in batch:
            return torch.ones((), device=like.device)
        brain = batch["brain"].float() / 255
        weight = brain + self.plan.background_weight * (1 - brain)
        # Losses are then means over the brain, whatever part of a batch it fills.
        return weight / weight.mean().clamp(min=1e-3)

    def _keep_statistics(self) -> None:
        """Remember the running statistics of batch normalisation: one bad batch would spoil them for good."""
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
            losses = [row["val_loss"] for row in self.curves]
            kept = f"The best weights (validation loss {min(losses):.6f}) are" if losses else "No weights are"
            raise IQTFlowError(
                f"training stopped: {self.non_finite} steps with a loss or gradient that is not finite. "
                f"{kept} kept; lower the learning rate, or check the training images for extreme values."
            )

    def _introduce(self, step_seconds: float) -> None:
        """Complete the first line by what a step takes: the first, on a GPU the third, when it is warm."""
        if self.device.type == "cuda" and self.global_step < 3:
            return
        # Validation is the forward half of a step, about a third of it.
        epoch = step_seconds * (self.plan.steps_per_epoch + self.plan.validation_batches / 3)
        steps = f"an epoch of {self.plan.steps_per_epoch} steps"
        left = epoch * (self.plan.total_steps - self.global_step) / self.plan.steps_per_epoch
        self.say(f"{self.introduction}; {steps} takes about {duration(epoch)}, at most {left:.0f} s left")
        self.introduction = ""


class _Decay:
    """How an average of weights takes up new ones."""

    def __init__(self, decay: float) -> None:
        self.decay = decay

    def __call__(self, average: torch.Tensor, new: torch.Tensor, count: Any) -> torch.Tensor:
        decay = min(self.decay, (float(count) + 1) / (float(count) + 10))
        return average.lerp(new, 1 - decay) if average.is_floating_point() else new


class CurvesOnDisk(Callback):
    """Writes the curves after each epoch, for who wants to look."""

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
    """Make sure that the files which a sampler has mapped are still whole.

    Raises
    ------
    InputError
        One is gone, was replaced or was cut short: reading on would end in a crash, or in other data.
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
                next_step="Put it back: the same command goes on from the last checkpoint.",
            )


def duration(seconds: float) -> str:
    """Return a time in words, to two digits or so."""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 2 else f"{seconds:.2g} s"


class _Batches(Dataset):
    """Batches by their numbers; one process's part of each."""

    def __init__(self, sampler: Any, rank: int, world: int) -> None:
        self.sampler, self.rank, self.world = sampler, rank, world

    def __getitem__(self, number: int) -> dict[str, Any]:
        return self.sampler.batch(number, rank=self.rank, world=self.world)


class _Numbers(Sampler):
    """Numbers of the batches of an epoch, which are known when it begins."""

    def __init__(self, first: Callable[[], int], count: Callable[[], int]) -> None:
        self.first, self.count = first, count

    def __len__(self) -> int:
        return self.count()

    def __iter__(self) -> Iterator[int]:
        first = self.first()
        return iter(range(first, first + self.count()))
