"""Patches that a processor core trains on in a second: networks, number formats, memory layouts.

    python benchmarks/bench_networks.py [--rounds 3] [--patch 48] [--batch-size 2]

Forward, backward and a step of Adam on random patches, one thread, processor time. The ways take turns, so
that other work on the machine hits all of them. The ratio is to the first way: ANISO U-Net with 12 filters
in single precision, with which this project began.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import nn

from iqtflow.models.registry import build_network
from iqtflow.training.half_precision import ShortConvolutionsInFloat32

K = 4
LAYOUTS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last_3d}
ANISO = ("ANISO U-Net, 12 filters", "aniso-unet", {"filters": 12, "residual": True})
SUBPIXEL = ("sub-pixel U-Net", "subpixel-unet", {"blocks": (2, 2, 3)})
#: Network, number format, layout.
WAYS = [
    (ANISO, "float32", "channels last"),
    (ANISO, "bfloat16", "channels last"),
    (ANISO, "bfloat16", "contiguous"),
    (SUBPIXEL, "float32", "channels last"),
    (SUBPIXEL, "bfloat16", "channels last"),
    (SUBPIXEL, "bfloat16", "contiguous"),
]


def main() -> None:
    """Measure all ways in turn; print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--patch", type=int, default=48)
    parser.add_argument("--batch-size", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    steps = [make_step(*way, patch=options.patch, batch_size=options.batch_size) for way in WAYS]
    times: list[list[float]] = [[] for _ in WAYS]
    for _ in range(options.rounds + 1):
        for step, taken in zip(steps, times, strict=True):
            begin = time.process_time()
            step()
            taken.append(time.process_time() - begin)
    cubes = options.batch_size * (options.patch / 32) ** 3  # in patches of 32 voxels
    speeds = [cubes / min(taken[1:]) for taken in times]
    print(
        "| network | format | memory layout | patches of 32 voxels a second | ratio |\n|---|---|---|---|---|"
    )
    for ((words, *_), kind, layout), speed in zip(WAYS, speeds, strict=True):
        print(f"| {words} | {kind} | {layout} | {speed:.1f} | {speed / speeds[0]:.2f} |")


def make_step(
    network: tuple[str, str, dict], kind: str, layout: str, *, patch: int, batch_size: int
) -> Callable[[], None]:
    """Return a function that takes one step of training."""
    torch.manual_seed(0)
    _, name, settings = network
    model = build_network(name, k=K, **settings).to(memory_format=LAYOUTS[layout])
    optimiser = torch.optim.Adam(model.parameters())
    low = torch.rand(batch_size, 1, patch, patch, patch // K).to(memory_format=LAYOUTS[layout])
    high = torch.rand(batch_size, 1, patch, patch, patch)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        with (
            torch.autocast("cpu", torch.bfloat16) if kind == "bfloat16" else nullcontext(),
            ShortConvolutionsInFloat32(),
        ):
            estimate = model(low)
        nn.functional.mse_loss(estimate.float(), high).backward()
        optimiser.step()

    return step


if __name__ == "__main__":
    main()
