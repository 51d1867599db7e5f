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

from iqtflow.models import subpixel
from iqtflow.models.card import Card
from iqtflow.simulation.snr_prior import SNRPrior
from iqtflow.training.device_cuts import Volumes
from iqtflow.training.library import read_library
from iqtflow.training.module import TrainingModule
from iqtflow.training.plan import TrainingPlan
from iqtflow.training.samplers import Degradation
from iqtflow.training.trainer import VALIDATION_SEED, make_sampler

#: Ways to run a step: how it convolves (see `Step.choose`; "best": as the fastest so far), and whether the
#: network is compiled.
WAYS = (("pad", False), ("slices", False), ("planes", False), ("best", True))
TRIAL_SECONDS = 60  #: no further way is tried later
CPU_WAYS = (("pad", False), ("slices", False))


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
        self._compiled: Any = None

    def choose(self, way: tuple[str, bool]) -> None:
        """Run steps in this way from now on.

        ``pad`` is what the package does. ``slices`` pads by joining slices: the gradient of ``pad`` needs
        atomic sums on a GPU. ``planes`` convolves in two dimensions, with the neighbouring planes as
        channels: cuDNN has faster kernels for two dimensions than for three.
        """
        how, is_compiled = way
        subpixel.repeat_border = repeat_by_slices if how == "slices" else _PAD
        subpixel.convolve = convolve_by_planes if how == "planes" else _CONVOLVE
        network = self.module.network
        network.__dict__.pop("encode_decode", None)
        if is_compiled:
            # One function for all ways: what was compiled in a trial is used again.
            torch._dynamo.config.recompile_limit = 32
            self._compiled = self._compiled or torch.compile(network.encode_decode, dynamic=False)
            network.encode_decode = self._compiled

    def losses(self, network: nn.Module, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Objective and reported loss in mixed precision."""
        with torch.autocast(self.device, dtype=torch.bfloat16):
            return self.module.losses(network, batch)

    def __call__(self, batch: dict[str, Any], learning_rate: float) -> torch.Tensor:
        """Take a step, a step of length zero if its gradient is not finite; return the loss."""
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
            decay = min(module.plan.averaging, (self.taken + 1) / (self.taken + 10))
            pairs = [list(network.parameters()) for network in (module.judged, module.network)]
            with torch.no_grad():
                torch._foreach_lerp_(*pairs, 1 - decay)
        return loss.detach()


_PAD, _CONVOLVE = subpixel.repeat_border, subpixel.convolve


def repeat_by_slices(x: torch.Tensor) -> torch.Tensor:
    """As `iqtflow.models.subpixel.repeat_border`; its gradient needs no atomic sums on a GPU."""
    for axis in (2, 3, 4):
        n = x.shape[axis]
        x = torch.cat([x.narrow(axis, 0, 1), x, x.narrow(axis, n - 1, 1)], axis)
    return x.contiguous(memory_format=torch.channels_last_3d)


def convolve_by_planes(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """As `iqtflow.models.subpixel.convolve`, by a convolution in two dimensions."""
    b, _, w, h, d = x.shape
    x = x.permute(0, 4, 1, 2, 3)
    for axis, n in ((1, d), (3, w), (4, h)):
        x = torch.cat([x.narrow(axis, 0, 1), x, x.narrow(axis, n - 1, 1)], axis)
    planes = torch.cat([x[:, i : d + i] for i in range(3)], 2).flatten(0, 1)
    y = nn.functional.conv2d(
        planes.contiguous(memory_format=torch.channels_last),
        weight.permute(0, 4, 1, 2, 3).flatten(1, 2).contiguous(memory_format=torch.channels_last),
        bias,
    )
    return y.unflatten(0, (b, d)).permute(0, 2, 3, 4, 1)


def synchronise(device: str) -> None:
    """Wait until the device has finished."""
    if device == "cuda":
        torch.cuda.synchronize()


def time_ways(
    step: Step,
    batch: dict[str, Any],
    ways: Sequence[tuple[str, bool]],
    *,
    steps: int = 8,
    report: Callable[[str], None] = print,
) -> dict[tuple[str, bool], float]:
    """Return patches per second of training in each way; the weights stay as they are (learning rate 0).

    A way that fails is left out: not every version of PyTorch compiles every network.
    """
    speeds: dict[tuple[str, bool], float] = {}
    n = len(batch["scale"])
    first = time.monotonic()
    for one_way in ways:
        way = one_way
        if speeds and time.monotonic() - first > TRIAL_SECONDS:
            break
        if way[0] == "best" and speeds:
            way = (max(speeds, key=lambda one: speeds[one])[0], True)
        words = f"{way[0]}, {'compiled' if way[1] else 'eager'}"
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
            report(f"  batch {n}, {words}: failed, {told}")
            continue
        speeds[way] = steps * n / (time.monotonic() - ready)
        report(f"  batch {n}, {words}: {speeds[way]:,.0f} patches/s; first steps took {ready - begin:.0f} s")
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
