"""Train a model on one GPU for a given time, starting from a model.

    python benchmarks/gpu_train.py --train LIBRARY... --validation LIBRARY... --start-from MODEL --k 4 \
        --seconds 400 --output MODEL

Network and simulator are those of the model's card. The learning rate rises for `--warmup` steps, then
falls in proportion to the time that is left, to zero: whatever the speed of the GPU, the training ends in
time. Every `--every` seconds the moving average of the weights is written, so that a run that is killed
leaves its best state. To go on, start from the model that was written. A model of another factor k gives its
trunk.

Muon's updates have a fixed length: a batch eight times as large needs about 1.5 times the learning rate
(0.001 for 8 patches, 0.0015 for 64), not eight times.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from gpu_parts import (
    WAYS,
    Step,
    forever,
    loader,
    make_module,
    plan_of,
    take_trunk,
    time_ways,
    to_device,
    validate,
)

from iqtflow.models.model_file import Model, load_model, save_model
from iqtflow.training.module import TrainingModule

VALIDATION_SECONDS = 60  #: time between two validations


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--train", nargs="+", type=Path, required=True)
    add("--validation", nargs="+", type=Path, required=True)
    add("--start-from", required=True, metavar="MODEL")
    add("--k", type=int, required=True)
    add("--seconds", type=float, required=True, help="in all, start included")
    add("--output", type=Path, required=True)
    add("--device", choices=("cpu", "cuda"), default="cuda")
    add("--batch-size", type=int, default=64)
    add("--learning-rate", type=float, default=0.0015)
    add("--warmup", type=int, default=100, help="steps")
    add("--every", type=float, default=120, help="seconds between two writings of the model")
    add("--workers", type=int, default=max((os.cpu_count() or 1) - 2, 0), help="processes that draw batches")
    add("--widths", type=int, nargs="+", help="another width; the weights are then new")
    add("--blocks", type=int, nargs="+", help="blocks of each level; the weights of further blocks are new")
    add("--averaging", type=float, help="decay of the moving average of the weights")
    add("--snr-scale", type=float, nargs=2)
    add("--coarse-plane", type=float, nargs=2)
    add("--ways", type=Path, help="JSON file with the fastest way to run a step; written when missing")
    return parser.parse_args()


def main() -> None:
    options, began = parse(), time.monotonic()
    device = options.device
    torch.backends.cudnn.benchmark = True
    source = load_model(options.start_from)
    settings: dict[str, Any] = {**source.card["network"]["kwargs"], "k": options.k}
    for name in ("widths", "blocks"):
        if getattr(options, name):
            settings[name] = list(getattr(options, name))
    plan = plan_of(
        source.card,
        network_settings=settings,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        warmup=options.warmup,
        schedule="decay",
        seed=int(time.time()),  # another slice sees other patches
        start_from=f"{source.card.name} (SHA-256 {source.sha256})",
    )
    wide = {
        name: tuple(getattr(options, name))
        for name in ("snr_scale", "coarse_plane")
        if getattr(options, name)
    }
    plan = dataclasses.replace(
        plan,
        averaging=options.averaging or plan.averaging,
        degradation=dataclasses.replace(plan.degradation, **wide),
    )
    module = make_module(options.train, options.validation, plan, device)
    left = take_trunk(source.members[0].state_dict(), module.network)
    module.judged.load_state_dict(module.network.state_dict())
    step = Step(module, device)
    print(
        f"k = {options.k}, {len(options.train)} libraries, batch {plan.batch_size}, from {source.card.name}; "
        f"new weights: {', '.join(left) or 'none'}; ready after {time.monotonic() - began:.0f} s",
        flush=True,
    )
    batches = forever(loader(module.samplers[0], 10**9, device, options.workers))
    numbers = range(plan.validation_batches)
    judges = [to_device(module.samplers[1].batch(number), device) for number in numbers]
    choose_way(step, to_device(next(batches)[0], device), options.ways)
    # Minus the time for the last validation and for writing.
    seconds = options.seconds - (time.monotonic() - began) - 10
    facts = run(step, batches, judges, options, seconds, lambda facts: write(module, source, facts, options))
    write(module, source, facts, options)
    print(f"wrote {options.output}: {json.dumps(facts)}", flush=True)


def choose_way(step: Step, batch: dict[str, Any], file: Path | None) -> None:
    """Run steps in the fastest way: that of the file, or the winner of a short trial."""
    if file is not None and file.exists():
        way = json.loads(file.read_text())
    else:
        on_cpu = step.device == "cpu"
        speeds = time_ways(step, batch, WAYS[:1] if on_cpu else WAYS, steps=1 if on_cpu else 8)
        way = max(speeds, key=lambda one: speeds[one])
        if file is not None:
            file.write_text(json.dumps(way))
    step.choose(way)


def run(
    step: Step,
    batches: Iterator[tuple[dict[str, Any], float]],
    judges: list[dict[str, Any]],
    options: argparse.Namespace,
    seconds: float,
    save: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Train until the time is over; return the facts of the training."""
    module = step.module
    count, waited, losses = 0, 0.0, []
    first = loss = validate(step, {"start": module.network}, judges)["start"]
    print(f"validation loss at the start {first:.6f}; {seconds:.0f} s for training", flush=True)
    began = saved = judged = time.monotonic()

    def facts() -> dict[str, Any]:
        spent = round(time.monotonic() - began, 1)
        return {
            "steps": count,
            "seconds": spent,
            "best_validation_loss": loss,
            "non_finite_steps": int(step.refused),
        }

    def speed() -> str:
        spent = time.monotonic() - began
        return (
            f"{spent:.0f} s: step {count}, {count * options.batch_size / spent:,.0f} patches/s, "
            f"{100 * waited / spent:.1f} % waiting for data"
        )

    while (elapsed := time.monotonic() - began) < seconds:
        batch, wait = next(batches)
        waited += wait
        rate = min((count + 1) / (options.warmup + 1), 1) * (1 - elapsed / seconds)
        losses.append(step(to_device(batch, step.device), options.learning_rate * rate))
        count += 1
        if time.monotonic() - judged > VALIDATION_SECONDS:
            loss = validate(step, {"average": module.judged}, judges)["average"]
            mean = float(torch.stack(losses).mean())
            print(f"{speed()}, training loss {mean:.6f}, validation loss {loss:.6f}", flush=True)
            losses, judged = [], time.monotonic()
        if time.monotonic() - saved > options.every:
            save(facts())
            saved = time.monotonic()
    print(f"{speed()}, {int(step.refused)} steps left out as not finite", flush=True)
    last = validate(step, {"weights": module.network, "average": module.judged}, judges)
    # A slow GPU takes few steps: the average then still holds early weights.
    if last["weights"] < last["average"]:
        module.judged.load_state_dict(module.network.state_dict())
    loss = min(last.values())
    print(f"validation loss {first:.6f} at the start, {loss:.6f} at the end ({last})", flush=True)
    return facts()


def write(module: TrainingModule, source: Model, run: dict[str, Any], options: argparse.Namespace) -> None:
    """Write the moving average of the weights, in half precision, with its card."""
    card = {key: value for key, value in source.card.items() if key not in ("figures", "familiar", "remarks")}
    network, plan = module.network, module.plan
    train, validation = (sorted({one.subject for one in sampler.sources}) for sampler in module.samplers)
    card |= {
        "name": options.output.stem,
        "k": options.k,
        "network": {"name": plan.network, "kwargs": plan.network_settings},
        "pass_bytes": dict(network.pass_bytes),
        "training": {
            **run,
            **{"epochs": 0, "interruptions": 0, "devices": 1, "device": options.device},
            "precision": "bf16-mixed",
            "training_subjects": train,
            "validation_subjects": validation,
            "plan": {**plan.as_dict(), "steps": run["steps"]},
            "before": source.card.training,
        },
    }
    save_model(options.output, [module.judged.state_dict()], card)
    size = options.output.stat().st_size
    if size > 16 * 2**20:
        print(f"{options.output} has {size / 2**20:.1f} MiB, more than 16", flush=True)


if __name__ == "__main__":
    sys.exit(main())
