"""One change of the sub-pixel U-Net or of its training at a time, all with the same processor time.

    python benchmarks/ablations.py LIBRARIES OUT.jsonl [--seconds 400] [--seeds 0 1] [--only NAME ...]

LIBRARIES is a folder of patch libraries (``*_patches.safetensors``); those of A22, A23 and B09 are the
validation subjects. A variant's step is timed first. Its number of steps then fills the processor time, and
the learning rate falls to zero at the end. Each result is one line of OUT.jsonl; a run that was stopped goes
on with the next one. ``--table`` prints the results: PSNR in dB inside the brain of the validation patches
(white matter is 1), and MSSIM.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import iqtflow.training.module as training_module
from iqtflow.models.blocks import spline_upsample
from iqtflow.models.registry import build_network, register
from iqtflow.models.subpixel import Convolution, SubpixelUNet
from iqtflow.training.library import read_library
from iqtflow.training.plan import TrainingPlan
from iqtflow.training.samplers import Degradation, simulate_batch
from iqtflow.training.trainer import make_sampler, train_member

JUDGES = ("A22", "A23", "B09")
WIDE = Degradation(
    thickness_fraction=(0.5, 1), snr_scale=(0.6, 1), bias_amplitude=0.2, mirror=True,
    zoom=(0.85, 1.2), spacing_jitter=0.08, contrast_jitter=0.1, stripes=0.05,
)  # fmt: skip
NETWORK = {"k": 4}
BASE = TrainingPlan(
    network="subpixel-unet", network_settings=NETWORK, batch_size=8, patch_size=48, optimiser="muon",
    schedule="cosine", warmup=20, clip=0.1, averaging=0.99, precision="bfloat16", background_weight=0.1,
    patience=0, validation_batches=12, degradation=WIDE,
)  # fmt: skip


class Variant(SubpixelUNet):
    """The sub-pixel U-Net with another edge of the cells, padding or normalisation."""

    def __init__(self, k: int = 4, *, cell: int = 2, padding: str = "replicate", norm: str = "", **rest: Any):
        super().__init__(k, **rest)
        self.cell = cell
        if cell != 2:
            self.stem = Convolution(cell * cell, self.stem.out_channels)
            self.head = nn.Conv3d(self.head.in_channels, cell * cell * k, 1)
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)
        for name, layer in list(self.named_modules()):
            if isinstance(layer, Convolution):
                parent = self.get_submodule(name.rpartition(".")[0])
                # The second convolution of a block begins near zero: a normalisation would undo that.
                change = _padded(layer, padding, norm if name.endswith("first") else "")
                setattr(parent, name.rpartition(".")[2], change)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As `SubpixelUNet.forward`."""
        s, k = self.cell, self.k
        b, _, w, h, d = x.shape
        cells = x.reshape(b, w // s, s, h // s, s, d).permute(0, 2, 4, 1, 3, 5)
        cells = cells.reshape(b, s * s, w // s, h // s, d).contiguous(memory_format=torch.channels_last_3d)
        y = self.head(self.encode_decode(cells))
        thin = (
            y.reshape(b, s, s, k, w // s, h // s, d).permute(0, 4, 1, 5, 2, 6, 3).reshape(b, 1, w, h, k * d)
        )
        return thin.float() + spline_upsample(x, k)


def _padded(layer: nn.Conv3d, padding: str, norm: str) -> nn.Module:
    if padding == "replicate":
        new: nn.Module = layer
    else:
        new = nn.Conv3d(layer.in_channels, layer.out_channels, 3, padding=1, padding_mode=padding)
        new.load_state_dict(layer.state_dict())
    if norm == "batch":
        return nn.Sequential(new, nn.BatchNorm3d(layer.out_channels))
    if norm == "group":
        return nn.Sequential(new, nn.GroupNorm(8, layer.out_channels))
    return new


def ssim_loss(estimate: torch.Tensor, high: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """1 - SSIM with a window of 5 x 5 x 5, where white matter is 1."""

    def mean(v: torch.Tensor) -> torch.Tensor:
        return nn.functional.avg_pool3d(v, 5, 1, 2, count_include_pad=False)

    a, b = mean(estimate), mean(high)
    va, vb, ab = mean(estimate**2) - a * a, mean(high**2) - b * b, mean(estimate * high) - a * b
    c1, c2 = (0.01 * 1.5) ** 2, (0.03 * 1.5) ** 2
    similarity = (2 * a * b + c1) * (2 * ab + c2) / ((a * a + b * b + c1) * (va + vb + c2))
    return (weight * (1 - similarity)).mean()


class Losses:
    """L1, and SSIM beside it after a share of the steps."""

    def __init__(self, steps: int, late: float) -> None:
        self.late, self.count = int(steps * late), 0

    def __call__(self, output: Any, high: Any, weight: Any, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """As `iqtflow.training.losses.losses`."""
        error = (weight * (output[:, :1] - high).abs()).mean()
        if torch.is_grad_enabled():
            self.count += 1
        if self.count < self.late or not torch.is_grad_enabled():
            return error, error
        return error + 0.1 * ssim_loss(output[:, :1], high, weight), error


def variants() -> dict[str, dict[str, Any]]:
    """Changes to `BASE`, by name."""

    def net(**settings: Any) -> dict[str, Any]:
        return {"network": "variant", "network_settings": {**NETWORK, **settings}}

    return {
        "base": {},
        "AdamW": {"optimiser": "adamw"},
        "widths 24, 48, 96": net(widths=[24, 48, 96]),
        "widths 48, 96, 192": net(widths=[48, 96, 192]),
        "widths 32, 64, 128, 128": net(widths=[32, 64, 128, 128], blocks=[2, 2, 2, 2]),
        "1 block a level": net(blocks=[1, 1, 1]),
        "3 blocks a level": net(blocks=[3, 3, 3]),
        "cells of 1": net(cell=1),
        "cells of 4": net(cell=4),
        "padding by zeros": net(padding="zeros"),
        "padding by reflection": net(padding="reflect"),
        "batch normalisation": net(norm="batch"),
        "group normalisation": net(norm="group"),
        "L1": {"loss": "l1"},
        "L1, late SSIM": {"loss": "l1-ssim"},
        "patches of 32": {"patch_size": 32, "batch_size": 24},
        "narrow degradation": {"degradation": Degradation(mirror=True)},
        "ANISO U-Net(2)": {
            "network": "aniso-unet",
            "network_settings": {"k": 4, "filters": 16, "shrink": 2, "residual": True},
        },
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("libraries", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=400, help="processor time of a training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--only", nargs="+", help="names of variants")
    parser.add_argument("--table", action="store_true", help="print what OUT.jsonl holds")
    options = parser.parse_args()
    done = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    if options.table:
        return table(done)
    torch.set_num_threads(1)
    register("variant", Variant)
    files = sorted(options.libraries.glob("*_patches.safetensors"))
    judges = [f for f in files if any(f"sub-{name}_" in f.name for name in JUDGES)]
    train = [f for f in files if f not in judges]
    train += [f for f in train if "sub-B" in f.name] * 3  # few of this scanner: each counts four times
    sources = [read_library(f) for f in train], [read_library(f) for f in judges]
    for seed in options.seeds:
        for name, change in variants().items():
            if (options.only and name not in options.only) or any(
                (row["name"], row["seed"], row["seconds"]) == (name, seed, options.seconds) for row in done
            ):
                continue
            row = {"name": name, "seed": seed, "seconds": options.seconds}
            row |= train_variant(change, sources, seed, options.seconds)
            with options.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(row, flush=True)
    return None


def train_variant(change: dict[str, Any], sources: Any, seed: int, seconds: float) -> dict[str, Any]:
    """Time a step, train, and judge on the validation subjects."""
    late = change.get("loss") == "l1-ssim"
    plan = dataclasses.replace(BASE, **{**change, **({"loss": "l1"} if late else {})}, seed=seed)
    step = time_step(plan, sources)
    steps = int(seconds / step)
    plan = dataclasses.replace(plan, steps=steps, steps_per_epoch=steps, validation_batches=1)
    usual: Callable[..., Any] = training_module.losses
    if late:
        training_module.losses = Losses(steps, 0.7)
    began = time.process_time()
    try:
        with tempfile.TemporaryDirectory() as folder:
            member = train_member(*sources, plan, checkpoint_dir=folder, report=lambda _: None)
    finally:
        training_module.losses = usual
    used = time.process_time() - began
    network = build_network(plan.network, **plan.network_settings)
    network.load_state_dict(member.state_dict)
    size = sum(p.numel() for p in network.parameters())
    return {"steps": steps, "used": round(used), "step": round(step, 3), "parameters": size} | judge(
        network, sources[1]
    )


def time_step(plan: TrainingPlan, sources: tuple[Any, Any]) -> float:
    """Processor seconds of a step: the least of four."""
    plan = dataclasses.replace(plan, steps=6, steps_per_epoch=6, validation_batches=1, schedule="decay")
    times: list[float] = []

    class Timer(training_module.Callback):  # type: ignore[misc, valid-type]
        def on_train_batch_start(self, *_: Any) -> None:
            self.began = time.process_time()

        def on_train_batch_end(self, *_: Any) -> None:
            times.append(time.process_time() - self.began)

    sampler = make_sampler(sources[0], plan, seed=0)
    began = time.process_time()
    for number in range(4):
        sampler.batch(number)
    data = (time.process_time() - began) / 4
    usual = train_member.__globals__["make_callbacks"]
    train_member.__globals__["make_callbacks"] = lambda *a, **k: [*usual(*a, **k), Timer()]
    try:
        with tempfile.TemporaryDirectory() as folder:
            train_member(*sources, plan, checkpoint_dir=folder, report=lambda _: None)
    finally:
        train_member.__globals__["make_callbacks"] = usual
    return min(times[2:]) + data


@torch.inference_mode()
def judge(network: nn.Module, sources: Any) -> dict[str, float]:
    """PSNR and MSSIM inside the brain, on the same 24 batches for all variants."""
    from skimage.metrics import structural_similarity

    network = network.eval().to(memory_format=torch.channels_last_3d)
    sampler = make_sampler(sources, dataclasses.replace(BASE, batch_size=4), seed=0xE7A1)
    squared, count, similar = 0.0, 0.0, []
    for number in range(24):
        batch = sampler.batch(number)
        inside = batch["brain"].numpy() > 127
        low, high = simulate_batch(batch)
        with torch.autocast("cpu", torch.bfloat16):
            estimate = network(low.to(memory_format=torch.channels_last_3d)).float()[:, :1]
        a, b = estimate.numpy(), high.numpy()
        squared += float(((a - b)[inside] ** 2).sum())
        count += inside.sum()
        for one, two, mask in zip(a[:, 0], b[:, 0], inside[:, 0], strict=True):
            _, image = structural_similarity(
                one,
                two,
                data_range=1.5,
                gaussian_weights=True,
                sigma=1.5,
                use_sample_covariance=False,
                full=True,
            )
            core = (slice(6, -6),) * 3
            if mask[core].any():
                similar.append(float(image[core][mask[core]].mean()))
    return {
        "psnr": round(-10 * float(np.log10(squared / count)), 3),
        "mssim": round(statistics.mean(similar), 4),
    }


def table(rows: list[dict[str, Any]]) -> None:
    """Print means and single values, best first."""
    print("| variant | parameters (million) | steps | s a step | PSNR (each seed) | against base | MSSIM |")
    print("|---|---|---|---|---|---|---|")
    names = {row["name"]: [r for r in rows if r["name"] == row["name"]] for row in rows}
    base = {row["seed"]: row["psnr"] for row in names.get("base", [])}
    for name, group in sorted(names.items(), key=lambda item: -statistics.mean(r["psnr"] for r in item[1])):
        each = ", ".join(f"{r['psnr']:.2f}" for r in group)
        mean = statistics.mean(r["psnr"] for r in group)
        gap = [r["psnr"] - base[r["seed"]] for r in group if r["seed"] in base]
        against = f"{statistics.mean(gap):+.2f}" if gap else ""
        first = group[0]
        print(
            f"| {name} | {first['parameters'] / 1e6:.1f} | {first['steps']} | {first['step']:.2f} "
            f"| {mean:.2f} ({each}) | {against} | {statistics.mean(r['mssim'] for r in group):.3f} |"
        )


if __name__ == "__main__":
    sys.exit(main())
