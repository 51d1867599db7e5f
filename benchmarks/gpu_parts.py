"""Shared by `gpu_train.py` and `gpu_check.py`: the training of a model's card, and ways to run a step."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from iqtflow.models.card import Card
from iqtflow.simulation.snr_prior import SNRPrior
from iqtflow.training.device_cuts import Volumes
from iqtflow.training.library import read_library
from iqtflow.training.module import TrainingModule
from iqtflow.training.plan import TrainingPlan
from iqtflow.training.samplers import Degradation
from iqtflow.training.trainer import VALIDATION_SEED, make_sampler

#: Ways to run a step. Two others were slower on an H200: borders padded by joined slices, and convolutions in
#: two dimensions with the neighbouring planes as channels (docs/results/gpu.md).
WAYS = ("eager", "compiled")
TRIAL_SECONDS = 100  #: no further way is tried later


def plan_of(card: Card, **changes: Any) -> TrainingPlan:
    """Return the plan that a model (of several networks: its first) was trained with, with changes."""
    plan = dict(card.first_member["plan"])
    degradation = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in plan.pop("degradation").items()
    }
    prior = degradation.pop("prior")
    covariance = tuple(map(tuple, prior["covariance"]))
    degradation["prior"] = SNRPrior(**{**prior, "mean": tuple(prior["mean"]), "covariance": covariance})
    return dataclasses.replace(TrainingPlan(**{**plan, "degradation": Degradation(**degradation)}), **changes)


def make_module(
    train: Sequence[Path], validation: Sequence[Path], plan: TrainingPlan, device: str
) -> TrainingModule:
    """Return network, samplers and volumes of a training on these libraries."""
    sources, judges = ([read_library(path) for path in paths] for paths in (train, validation))
    volumes = Volumes([*sources, *judges])
    samplers = [
        make_sampler(group, plan, seed=seed, volumes=volumes)
        for group, seed in ((sources, plan.seed), (judges, VALIDATION_SEED))
    ]
    torch.manual_seed(plan.seed)
    return TrainingModule(plan, *samplers, print, volumes=volumes).to(device)


def take_trunk(weights: Mapping[str, torch.Tensor], network: nn.Module) -> list[str]:
    """Copy the weights that fit into a network, perhaps of another factor; return the names of the others.

    Factors differ in the pooling along the slice axis: its weights are then summed or shared out. The head of
    another factor keeps its first weights, so that training begins at the spline.
    """
    left = []
    with torch.no_grad():
        for name, target in network.state_dict().items():
            source = weights.get(name)
            if target.ndim == 5 and source is not None and source.shape[:-1] == target.shape[:-1]:
                n = target.shape[-1]
                if source.shape[-1] != n:
                    source = source.sum(-1, keepdim=True).expand(target.shape) / n
            if source is None or source.shape != target.shape:
                left.append(name)
            else:
                target.copy_(source)
    return left


class Batches(Dataset):
    """Batches of a sampler by their numbers."""

    def __init__(self, sampler: Any) -> None:
        self.sampler = sampler

    def __getitem__(self, number: int) -> dict[str, Any]:
        return self.sampler.batch(number)


def loader(sampler: Any, count: int, device: str, workers: int) -> DataLoader:
    """Return the first `count` batches, drawn by `workers` processes ahead of time."""
    return DataLoader(
        Batches(sampler),
        sampler=range(count),
        batch_size=None,
        num_workers=workers,
        pin_memory=device == "cuda",
        prefetch_factor=4 if workers else None,
        worker_init_fn=_one_thread,
    )


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)


def to_device(batch: dict[str, Any], device: str) -> dict[str, Any]:
    """Move a batch to the device, while the device works."""
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
    }


class Step:
    """One step of training, run in one of `WAYS`. Nothing in it waits for the GPU."""

    def __init__(self, module: TrainingModule, device: str) -> None:
        self.module, self.device = module, device
        self.optimiser = module.configure_optimizers()["optimizer"]
        self.taken = 0
        self.refused = torch.zeros((), dtype=torch.int64, device=device)  #: steps without a finite gradient

    def choose(self, way: str) -> None:
        """Run steps in this way from now on."""
        network = self.module.network
        network.__dict__.pop("encode_decode", None)
        if way == "compiled":
            network.encode_decode = torch.compile(network.encode_decode, dynamic=False)

    def losses(self, network: nn.Module, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Objective and reported loss in mixed precision."""
        with torch.autocast(self.device, dtype=torch.bfloat16):
            return self.module.losses(network, batch)

    def __call__(self, batch: dict[str, Any], learning_rate: float) -> torch.Tensor:
        """Take a step; return the loss. A gradient that is not finite counts as zero."""
        module = self.module
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate
        objective, loss = self.losses(module.network, dict(batch))
        self.optimiser.zero_grad(set_to_none=True)
        objective.backward()
        norms = [
            torch.nn.utils.clip_grad_norm_(part, module.plan.clip or 1e9) for part in module.parts if part
        ]
        is_finite = torch.isfinite(torch.stack(norms)).all()
        self.refused += ~is_finite
        for value in module.network.parameters():
            if value.grad is not None:
                value.grad = torch.where(is_finite, value.grad, 0)
        self.optimiser.step()
        self.taken += 1
        if module.average is not None:
            # Not `update_parameters`, which waits for the GPU to read its counter.
            pairs = [list(network.parameters()) for network in (module.judged, module.network)]
            with torch.no_grad():
                module.average.multi_avg_fn(*pairs, self.taken)
        return loss.detach()


def synchronise(device: str) -> None:
    """Wait until the device has finished."""
    if device == "cuda":
        torch.cuda.synchronize()


def time_ways(
    step: Step,
    batch: dict[str, Any],
    ways: Sequence[str],
    *,
    steps: int = 8,
    report: Callable[[str], None] = print,
) -> dict[str, float]:
    """Return patches per second of training in each way; the weights stay as they are (learning rate 0).

    A way that fails is left out: not every version of PyTorch compiles every network.
    """
    speeds: dict[str, float] = {}
    n = len(batch["scale"])
    first = time.monotonic()
    for way in ways:
        if speeds and time.monotonic() - first > TRIAL_SECONDS:
            break
        begin = time.monotonic()
        try:
            step.choose(way)
            for _ in range(3):
                step(batch, 0.0)
            synchronise(step.device)
            ready = time.monotonic()
            for _ in range(steps):
                step(batch, 0.0)
            synchronise(step.device)
        except Exception as fault:
            told = f"{type(fault).__name__}: {(str(fault).splitlines() or [''])[0]}"
            report(f"  batch {n}, {way}: failed, {told}")
            continue
        speeds[way] = steps * n / (time.monotonic() - ready)
        report(f"  batch {n}, {way}: {speeds[way]:,.0f} patches/s; first steps took {ready - begin:.0f} s")
    step.optimiser.state.clear()
    return speeds


def validate(
    step: Step, networks: Mapping[str, nn.Module], batches: Sequence[dict[str, Any]]
) -> dict[str, float]:
    """Mean validation loss of each network."""
    with torch.no_grad():
        return {
            name: sum(float(step.losses(network, dict(batch))[1]) for batch in batches) / len(batches)
            for name, network in networks.items()
        }


def forever(batches: DataLoader) -> Iterator[tuple[dict[str, Any], float]]:
    """Yield batches, and the seconds that each had to be waited for."""
    source = iter(batches)
    while True:
        begin = time.monotonic()
        batch = next(source)
        yield batch, time.monotonic() - begin
