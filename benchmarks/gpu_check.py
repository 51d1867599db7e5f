"""Check on one GPU what was written without one, and measure; a short table comes last.

    python benchmarks/gpu_check.py --train LIBRARY... --validation LIBRARY... --model MODEL [--ways FILE]

1. Cutting: patches cut on the device are those of the processor.
2. Precision: the network on the device in single precision and in bfloat16 against the CPU.
3. Volume: one pass over a whole volume.
4. Data: patches/s that the processes draw, and that the device cuts.
5. Resume: a training that stops and goes on.
6. Steps: patches/s of training at several batch sizes, eager and compiled, and the share of the floor: the
   time that the convolutions alone need at the measured memory bandwidth or bfloat16 rate of the device,
   whichever is longer, over the time of a step. The fastest way is written to `--ways`, where `gpu_train.py`
   reads it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gpu_parts import WAYS, Step, loader, make_module, plan_of, synchronise, time_ways, to_device
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from iqtflow.models.model_file import Model, load_model
from iqtflow.training.library import read_library
from iqtflow.training.samplers import DrawSampler
from iqtflow.training.trainer import train_member

PEOPLE = 8  #: libraries that the checks read
VOLUME = (256, 256, 44)  #: a clinical scan, slices last; its enhanced volume has k times as many slices


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", nargs="+", type=Path, required=True)
    parser.add_argument("--validation", nargs="+", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[32, 64, 128, 256])
    parser.add_argument("--volume", nargs=3, type=int, default=VOLUME)
    parser.add_argument("--workers", type=int, default=max((os.cpu_count() or 1) - 2, 0))
    parser.add_argument("--seconds", type=float, default=150, help="no check and no batch size begins later")
    parser.add_argument("--ways", type=Path)
    options = parser.parse_args()
    torch.backends.cudnn.benchmark = True
    name = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    model, began = load_model(options.model), time.monotonic()
    options.train = options.train[:PEOPLE]
    options.until = began + options.seconds
    table = [("device", f"{name}, torch {torch.__version__}")]
    checks: list[Callable[[Any, Model], str]] = [cutting, precision, volume, data, resume, steps]
    failed = False
    for check in checks:
        begin = time.monotonic()
        if begin > options.until:
            table.append((check.__name__, "not begun: no time left"))
            continue
        try:
            told = check(options, model)
        except Exception as fault:
            told, failed = f"FAILED: {type(fault).__name__}: {(str(fault).splitlines() or [''])[0]}", True
        table.append((check.__name__, f"{told} ({time.monotonic() - begin:.0f} s)"))
        print(*table[-1], flush=True)
    print("\n".join(f"| {left:9} | {right} |" for left, right in table))
    raise SystemExit(failed)


def _module(options: argparse.Namespace, model: Model, batch_size: int) -> Any:
    plan = plan_of(model.card, batch_size=batch_size, seed=1)
    module = make_module(options.train, options.validation, plan, options.device)
    module.network.load_state_dict(model.members[0].state_dict())
    return module


def cutting(options: argparse.Namespace, model: Model) -> str:
    """Compare patches cut on the device with those of the processor."""
    module = _module(options, model, 8)
    plan = module.plan
    sources = [read_library(path) for path in options.train]
    same = {"k": model.k, "batch_size": 8, "seed": plan.seed, "patch": plan.patch_size}
    expected = DrawSampler(sources, degradation=plan.degradation, **same).batch(0)
    found = module.volumes.cut(to_device(module.samplers[0].batch(0), options.device))
    worst = {
        name: float((found[name].cpu().float() - expected[name].float()).abs().max())
        for name in ("intensity", "tissue", "brain")
    }
    if worst["intensity"] > 0.01 or max(worst["tissue"], worst["brain"]) > 1:
        raise AssertionError(f"largest differences {worst}")
    return f"largest differences {worst}"


def precision(options: argparse.Namespace, model: Model) -> str:
    """Compare the device with the CPU, in single precision and in bfloat16."""
    network = model.members[0]
    x = torch.rand(1, 1, 96, 96, 24)
    with torch.inference_mode():
        reference = network(x)[:, :1]
        moved, there = network.to(options.device), x.to(options.device)
        single = moved(there)[:, :1].float().cpu()
        with torch.autocast(options.device, dtype=torch.bfloat16):
            half = moved(there)[:, :1].float().cpu()
    network.cpu()
    errors = [float((one - reference).norm() / reference.norm()) for one in (single, half)]
    if errors[0] > 2e-3 or errors[1] > 2e-2:
        raise AssertionError(f"relative errors {errors}")
    return f"relative error against the CPU: float32 {errors[0]:.1e}, bfloat16 {errors[1]:.1e}"


def steps(options: argparse.Namespace, model: Model) -> str:
    """Measure steps; the fastest way at the first batch size is measured at the others."""
    best, shares, way = {}, {}, None
    bandwidth, rate = measure_device(options.device)
    for size in options.batch_sizes:
        if best and time.monotonic() > options.until:
            break
        module = _module(options, model, size)
        step = Step(module, options.device)
        batch = to_device(module.samplers[0].batch(0), options.device)
        moved, operations = count_step(step, batch)
        few = options.device == "cpu"
        ways = [way] if way else WAYS[:1] if few else WAYS
        speeds = time_ways(step, batch, ways, steps=1 if few else 10)
        if not speeds:
            break
        way = max(speeds, key=lambda one: speeds[one])
        best[size] = round(speeds[way], 1)
        floor = max(moved / bandwidth, operations / rate)
        shares[size] = f"{100 * floor * speeds[way] / size:.0f} %"
        bound = "bandwidth" if moved / bandwidth > operations / rate else "arithmetic"
    if way is None:
        raise AssertionError("no way works")
    if options.ways:
        options.ways.write_text(json.dumps(way))
    memory = torch.cuda.max_memory_allocated() / 1e9 if options.device == "cuda" else 0
    return (
        f"patches/s by batch {best}; share of the floor {shares} ({bound}: {bandwidth / 1e9:,.0f} GB/s, "
        f"{rate / 1e12:.2f} TFLOP/s); {way}; {memory:.1f} GB"
    )


def measure_device(device: str) -> tuple[float, float]:
    """Measure bytes/s of a large copy (read and written), and operations/s of a bfloat16 matrix product."""
    length, n = (2**29, 8192) if device == "cuda" else (2**26, 512)
    source = torch.ones(length, dtype=torch.uint8, device=device)
    target, matrix = torch.empty_like(source), torch.ones(n, n, dtype=torch.bfloat16, device=device)

    def shortest(work: Callable[[], object]) -> float:
        times = []
        for _ in range(6):
            synchronise(device)
            begin = time.perf_counter()
            work()
            synchronise(device)
            times.append(time.perf_counter() - begin)
        return min(times)

    copied = shortest(lambda: target.copy_(source))
    return 2 * length / copied, 2 * n**3 / shortest(lambda: matrix @ matrix)


def count_step(step: Step, batch: dict[str, Any]) -> tuple[int, int]:
    """Count the least bytes that the convolutions of a step move, and its operations.

    Forward, a convolution reads its input and weights and writes its output, all in bfloat16. Backward, it
    reads both and the output's gradient, and writes the gradients of both.
    """
    moved = 0

    def note(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal moved
        moved += 2 * (3 * inputs[0].numel() + 2 * output.numel() + 3 * layer.weight.numel())

    layers = [one for one in step.module.network.modules() if isinstance(one, nn.Conv3d | nn.ConvTranspose3d)]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    with FlopCounterMode(display=False) as counter:
        step.losses(step.module.network, dict(batch))[0].backward()
    for hook in hooks:
        hook.remove()
    return moved, counter.get_total_flops()


def data(options: argparse.Namespace, model: Model) -> str:
    """Measure how many patches the processes draw."""
    module, count = _module(options, model, 16), 20 if options.device == "cuda" else 2
    source = iter(loader(module.samplers[0], 10 * count, options.device, options.workers))
    next(source)
    begin = time.monotonic()
    # More batches than are fetched ahead.
    for _ in range(5 * count):
        next(source)
    drawn = 5 * count * 16 / (time.monotonic() - begin)
    batch = to_device(module.samplers[0].batch(0), options.device)
    module.volumes.cut(batch)
    synchronise(options.device)
    begin = time.monotonic()
    for _ in range(count):
        module.volumes.cut(batch)
    synchronise(options.device)
    cut = count * 16 / (time.monotonic() - begin)
    return f"{options.workers} processes draw {drawn:,.0f} patches/s; the device cuts {cut:,.0f}"


def volume(options: argparse.Namespace, model: Model) -> str:
    """Measure one pass over a whole volume."""
    network = model.members[0].to(options.device)
    x = torch.rand(1, 1, *options.volume, device=options.device)
    times = []
    with torch.inference_mode(), torch.autocast(options.device, dtype=torch.bfloat16):
        for _ in range(4 if options.device == "cuda" else 1):
            synchronise(options.device)
            begin = time.monotonic()
            network(x)
            synchronise(options.device)
            times.append(time.monotonic() - begin)
    network.cpu()
    shape = "x".join(map(str, options.volume))
    return f"one pass over {shape}, k = {model.k}: first {times[0]:.2f} s, then {min(times):.3f} s"


def resume(options: argparse.Namespace, model: Model) -> str:
    """Train 2 epochs, go on to 4; compare with 4 at once."""
    groups = [[read_library(path) for path in paths[:2]] for paths in (options.train, options.validation)]
    changes = {"batch_size": 4, "steps_per_epoch": 3, "validation_batches": 1, "start_from": None}

    def train(folder: str, count: int) -> Any:
        plan = plan_of(model.card, steps=count, **changes)
        begin = {"device": options.device, "report": lambda line: None}
        return train_member(
            *groups, plan, checkpoint_dir=folder, start=model.members[0].state_dict(), **begin
        )

    with tempfile.TemporaryDirectory() as place:
        train(f"{place}/parts", 6)
        parts, whole = train(f"{place}/parts", 12), train(f"{place}/whole", 12)
    losses = [one.curves[-1]["val_loss"] for one in (parts, whole)]
    if len(parts.curves) != 4 or abs(losses[0] / losses[1] - 1) > 0.05:
        raise AssertionError(f"{len(parts.curves)} epochs, validation losses {losses}")
    return f"4 epochs; validation loss in two parts {losses[0]:.6f}, at once {losses[1]:.6f}"


if __name__ == "__main__":
    sys.exit(main())
