"""Compare a training step of iqtflow with a plain loop around the same network, on the same device.

    python benchmarks/bench_training.py [--device cpu|cuda] [--filters 16] [--batch-size 32] [--steps 8]

The two take turns in one process: a step of iqtflow (reading, fresh draws of the simulator, Lightning,
checks, optimiser), then a step of the plain loop (forward, backward, Adam) on a batch in memory. On a CPU,
look at the processor time, which other programs hardly change; the wall clock is printed, too. On a GPU,
look at the wall clock, after three steps of warming up. There the batch sizes 32, 64 and 128 are measured
in mixed precision, with the share of the time that the memory of the device needs for what the layers read
and write, and a profile of the rest.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda if there is a GPU")
    parser.add_argument("--filters", type=int, default=16)
    parser.add_argument("--batch-size", type=int, nargs="+", help="default: 32; on a GPU 32 64 128")
    parser.add_argument("--steps", type=int, default=8, help="number of measured steps")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    options = parser.parse_args()

    import torch

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no CUDA device here")
    sizes = options.batch_size or ((32, 64, 128) if device == "cuda" else (32,))
    name = torch.cuda.get_device_name() if device == "cuda" else f"cpu, {options.threads} thread(s)"
    print(f"{name}; load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors; medians of steps")
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            compare(Path(folder) / str(size), device, size, options)
    if device == "cpu":
        print("no CUDA device: patches a second in mixed precision and the bandwidth floor were not measured")


def compare(folder: Path, device: str, batch_size: int, options: argparse.Namespace) -> None:
    """Measure both loops and print a line for each."""
    import torch
    from lightning.pytorch.callbacks import Callback
    from training_phantoms import write_libraries

    import iqtflow.training.trainer as training
    from iqtflow.models.registry import build_network
    from iqtflow.training.library import read_library

    folder.mkdir()
    libraries = [read_library(path) for path in write_libraries(folder)]
    settings = {"k": 4, "filters": options.filters, "shrink": 2, "residual": True}
    warm = 3 if device == "cuda" else 1
    plan = training.TrainingPlan(
        network_settings=settings,
        batch_size=batch_size,
        steps=options.steps + warm,
        steps_per_epoch=options.steps + warm,
        patience=0,
        validation_batches=1,
    )
    torch.manual_seed(0)
    network = build_network("aniso-unet", **settings).to(device, memory_format=torch.channels_last_3d)
    step = plain_step(network, device, batch_size)
    clock = Clock(device)

    class Alternate(Callback):
        """Times each step of iqtflow, and runs a plain step after it."""

        def __init__(self) -> None:
            self.ours: list[tuple[float, float]] = []
            self.plain: list[tuple[float, float]] = []
            self.begin: tuple[float, float] | None = None

        def on_train_batch_end(self, *_: Any) -> None:
            if self.begin is not None:
                self.ours.append(clock.since(self.begin))
            begin = clock.now()
            step()
            self.plain.append(clock.since(begin))
            self.begin = clock.now()

    watch = Alternate()
    callbacks = training.make_callbacks
    training.make_callbacks = lambda *args, **more: [*callbacks(*args, **more), watch]
    try:
        training.train_member(
            libraries[:2],
            libraries[2:],
            plan,
            checkpoint_dir=folder / "checkpoints",
            device=device,
            num_threads=options.threads,
            report=lambda line: None,
        )
    finally:
        training.make_callbacks = callbacks
    which = 0 if device == "cuda" else 1
    ours, plain = (
        statistics.median(times[which] for times in side[warm - 1 :]) for side in (watch.ours, watch.plain)
    )
    walls = [statistics.median(times[0] for times in side) for side in (watch.ours, watch.plain)]
    kind = "wall clock" if device == "cuda" else "processor time"
    traffic = bytes_moved(network, batch_size)
    print(
        f"batch {batch_size}: ours {1e3 * ours:.1f} ms, plain {1e3 * plain:.1f} ms ({kind}): overhead of "
        f"loop and data {100 * (ours / plain - 1):+.1f} %; wall clock {1e3 * walls[0]:.1f} and "
        f"{1e3 * walls[1]:.1f} ms; a step moves {traffic / 1e9:.1f} GB in bfloat16",
        flush=True,
    )
    if device == "cuda":
        tell_gpu(ours, batch_size, traffic, step)


def plain_step(network: Any, device: str, batch_size: int) -> Callable[[], None]:
    """Return one step of a plain loop: forward, backward, Adam, on a batch in memory."""
    import torch

    low = torch.rand(batch_size, 1, 32, 32, 8, device=device).contiguous(memory_format=torch.channels_last_3d)
    high = torch.rand(batch_size, 1, 32, 32, 32, device=device)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    mixed = device == "cuda"

    def step() -> None:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=mixed):
            loss = torch.nn.functional.mse_loss(network(low).float(), high)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()

    return step


class Clock:
    """Wall clock and processor time, after the device has finished."""

    def __init__(self, device: str) -> None:
        self.device = device

    def now(self) -> tuple[float, float]:
        """Return seconds of both since a time."""
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()

    def since(self, begin: tuple[float, float]) -> tuple[float, float]:
        """Return seconds of both since `begin`."""
        now = self.now()
        return now[0] - begin[0], now[1] - begin[1]


def bytes_moved(network: Any, batch_size: int) -> float:
    """Bytes that the layers of a step read and write in bfloat16, each array once for each use: forward input
    and output; backward the input, its gradient and the output's. Weights and Adam come to 32 bytes each.
    """
    import torch

    total = 0.0

    def note(module: Any, inputs: tuple[Any, ...], output: Any) -> None:
        nonlocal total
        total += 2 * (3 * sum(x.numel() for x in inputs) + 2 * output.numel())

    hooks = [m.register_forward_hook(note) for m in network.modules() if not list(m.children())]
    with torch.no_grad():
        low = torch.zeros(1, 1, 32, 32, 8, device=next(network.parameters()).device)
        network.eval()(low)
        network.train()
    for hook in hooks:
        hook.remove()
    return total * batch_size + 32 * sum(p.numel() for p in network.parameters())


def tell_gpu(seconds: float, batch_size: int, traffic: float, step: Callable[[], None]) -> None:
    """Print patches per second, the share that memory transfers need, and a profile."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    clock = Clock("cuda")
    target.copy_(source)
    begin = clock.now()
    for _ in range(20):
        target.copy_(source)
    bandwidth = 20 * 2 * source.numel() / clock.since(begin)[0]
    floor = traffic / bandwidth
    print(
        f"  {batch_size / seconds:,.0f} patches/s; memory moves {bandwidth / 1e12:.2f} TB/s, floor "
        f"{1e3 * floor:.2f} ms a step: {100 * floor / seconds:.0f} % of it reached"
    )
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as record:
        for _ in range(5):
            step()
        torch.cuda.synchronize()
    print(record.key_averages().table(sort_by="self_cuda_time_total", row_limit=8))


if __name__ == "__main__":
    main()
