"""A volume through an ensemble of networks: mean and standard deviation, in a stream.

The way through the volume (one pass or tiles) is `iqtflow.inference.sliding_window`'s. On a CPU
convolutions run in bfloat16
where the processor multiplies it in hardware, and in float32 elsewhere; either way one patch of the scan is
first computed in both, and what differs by more than `HALF_TOLERANCE` is not used.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from iqtflow.inference.sliding_window import Plan, choose_plan, count_channels, patch_tile, through_tiles
from iqtflow.models.model_file import Model
from iqtflow.utils.system import free_memory_gb

PRECISIONS = ("float32", "bfloat16")

#: Share of the free memory that may be taken.
MEMORY_SHARE = 0.6
#: Voxels (in plane) and slices by which a volume is extended on each side: "same" convolutions put zeros
#: beyond the border, which must not reach the head.
MARGIN = (8, 8, 1)
#: Mean absolute difference of bfloat16 from float32 on a patch, white matter being 1, beyond which it is not
#: used.
HALF_TOLERANCE = 0.005


@dataclass(frozen=True)
class Enhanced:
    """Output of an ensemble for a volume of shape (w, h, d), slices last.

    Attributes
    ----------
    mean : ndarray, shape (w, h, k d), float32
        Mean over the networks, in the units of the input; below 0 set to 0.
    std : ndarray, shape (w, h, k d), float32, or None
        Standard deviation of the error that is to be expected: of networks that predict it, the root of the
        mean of their variances and of the variance of their estimates (law of total variance; as
        Lakshminarayanan et al. 2017, section 2.4, but with n - 1 in the denominator of the latter). Of others
        the standard deviation over the networks (n - 1, too); that of the estimate and the mirrored one for
        a single network with mirrored averaging; None for a single network without.
    details
        Device, precision, tiling, predicted memory: fields of a sidecar.
    predicted_gb
        Memory that it was predicted to take beside what the process held.
    warnings
        What a reader should know, as sentences.
    """

    mean: np.ndarray
    std: np.ndarray | None
    details: dict[str, Any]
    predicted_gb: float
    warnings: tuple[str, ...] = ()


def enhance_volume(
    data: np.ndarray,
    model: Model,
    *,
    scale: float,
    device: str = "cpu",
    precision: str | None = None,
    num_threads: int = 1,
    max_memory_gb: float | None = None,
    tiling: str = "auto",
    mirror_axis: int | None = None,
    tissue: np.ndarray | None = None,
    report: Callable[[str], None] | None = None,
) -> Enhanced:
    """Run an ensemble over a volume.

    The same input gives the same bits on the same kind of processor with the same number of threads.

    Parameters
    ----------
    data : ndarray, shape (w, h, d)
        Thick-slice scan in its own units, slices last.
    model
        From `iqtflow.models.model_file.load_model`.
    scale
        Intensity that the networks see as 1 (`iqtflow.image.intensity.intensity_scale`).
    device
        "cpu" or "cuda".
    precision
        One of `PRECISIONS`, for the convolutions; `fast_precision` when not given.
    num_threads
        CPU threads.
    max_memory_gb
        Memory that may be taken; never more than `MEMORY_SHARE` of what is free.
    tiling
        One of `iqtflow.inference.sliding_window.TILINGS`.
    mirror_axis
        Array axis that runs from left to right: each network also sees the volume mirrored along it, and the
        two estimates are averaged. None: not.
    tissue : ndarray of bool, shape (w, h, d), optional
        Brain. Tiles that touch none of it, and are dark, are air, and left to the spline; without it, all
        dark ones.
    report
        Receives one line that says which way is taken, and what memory it needs and finds.

    Returns
    -------
    Enhanced

    Notes
    -----
    Mean and variance are updated network by network (Welford 1962, doi:10.2307/1266577), so that the
    ensemble's size does not show in the memory.
    """
    torch.set_num_threads(num_threads)
    cuda = device == "cuda"
    padded, inner = _pad(data / np.float32(scale), model)
    free_gb = torch.cuda.mem_get_info()[0] / 1e9 if cuda else free_memory_gb()
    limit = min(MEMORY_SHARE * free_gb, math.inf if max_memory_gb is None else max_memory_gb)
    with torch.inference_mode(), torch.backends.cudnn.flags(benchmark=False, deterministic=True):
        checked = _check_precision(model, padded, precision or fast_precision(device), device)
        plan = choose_plan(
            padded.shape,
            model,
            tiling=tiling,
            max_memory_gb=limit,
            precision=checked,
            mirrored=mirror_axis is not None,
        )
        kind = "VRAM" if cuda else "RAM"
        if report is not None:
            report(
                f"{plan.words}, {checked}: {plan.predicted_gb:.2f} GB predicted, {free_gb:.1f} GB {kind} free"
            )
        volume = torch.from_numpy(padded)[None].to(device)
        if plan.skip_air:
            inside = np.zeros_like(padded) if tissue is None else _pad(tissue.astype(np.float32), model)[0]
            volume = torch.cat([volume, torch.from_numpy(inside)[None].to(device)])
            del inside
        del padded
        mean, std = _mean_and_std(model, volume[None], plan, checked, mirror_axis)
        for result in (mean, std):
            if result is not None:  # in place: copies of both would be the most that is ever held
                result.mul_(float(np.float32(scale)))
    k = model.k
    crop = (inner[0], inner[1], slice(inner[2].start * k, inner[2].stop * k))
    mean, std = (v if v is None else v.cpu().numpy()[crop] for v in (mean, std))
    details = {
        "Device": f"{device} ({torch.cuda.get_device_name()})" if cuda else device,
        "Precision": checked,
        "NumThreads": num_threads,
        "Tiling": plan.words,
        "MirroredAveraging": mirror_axis is not None,
        "PredictedMemoryGB": round(plan.predicted_gb, 2),
        "FreeMemoryGB": round(free_gb, 1),
    }
    return Enhanced(mean, std, details, plan.predicted_gb, _warnings(model, plan, limit, precision, checked))


def fast_precision(device: str) -> str:
    """Return bfloat16 where hardware multiplies it (CUDA; AVX512-BF16 or AMX on a CPU), else float32.

    Without such instructions a CPU converts back and forth, and is slower than in float32. Decided by the
    kind of processor, not by a stopwatch: the same machine gives the same bits.
    """
    if device == "cuda":
        return "bfloat16"
    known = (
        getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )
    return "bfloat16" if any(ask is not None and ask() for ask in known) else "float32"


def _mean_and_std(
    model: Model, volume: torch.Tensor, plan: Plan, precision: str, mirror_axis: int | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return mean and standard deviation, (w, h, k d) each."""
    mean = squares = expected = None
    for count, network in enumerate(model.members, start=1):
        output, variance = _predict(network, volume, plan, precision=precision)
        if mirror_axis is not None:
            turned, its_variance = _predict(network, volume.flip(mirror_axis + 2), plan, precision=precision)
            if variance is not None:
                variance.add_(its_variance.flip(mirror_axis)).mul_(0.5)
            del its_variance
            turned = turned.flip(mirror_axis)
            if len(model.members) == 1:
                squares = (output - turned).square_().mul_(0.5)
            output.add_(turned).mul_(0.5)
            del turned
        if variance is not None:
            expected = variance if expected is None else expected.lerp_(variance, 1 / count)
        del variance
        if mean is None:
            mean = output
            continue
        delta = output - mean
        mean += delta / count
        output.sub_(mean)
        squares = delta.mul_(output) if squares is None else squares.addcmul_(delta, output)
    if squares is not None:
        squares.div_(max(len(model.members) - 1, 1))
        expected = squares if expected is None else expected.add_(squares)
    return mean.clamp_(min=0), None if expected is None else expected.sqrt_()


def _predict(
    network: torch.nn.Module, volume: torch.Tensor, plan: Plan, *, precision: str
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Run one network over a volume as `iqtflow.inference.sliding_window.through_tiles` takes it; returns
    the estimate and the variance of its error, where the network predicts it, (w, h, k d) each, float32.
    """
    network = network.to(volume.device, memory_format=torch.channels_last_3d)
    if plan.whole:
        output = _run(network, volume, precision)
    else:
        output = through_tiles(
            volume,
            plan,
            network.k,
            lambda tiles: _run(network, tiles, precision),
            channels=count_channels(network),
        )
    return output[0, 0], output[0, 1] if output.shape[1] > 1 else None


def _run(network: torch.nn.Module, tiles: torch.Tensor, precision: str) -> torch.Tensor:
    """Run a network; a second channel, the logarithm of the variance, becomes the variance, which tiles may
    average.
    """
    half = precision == "bfloat16"
    with torch.autocast(tiles.device.type, dtype=torch.bfloat16) if half else nullcontext():
        output = network(tiles.to(memory_format=torch.channels_last_3d)).float()
    output[:, 1:].exp_()
    return output


def _check_precision(model: Model, padded: np.ndarray, precision: str, device: str) -> str:
    """Return the precision, or float32 when a patch of the scan comes out differently in half of it."""
    if precision != "bfloat16":
        return precision
    tile = patch_tile(model)
    centre = tuple(
        slice(max((n - t) // 2, 0), max((n - t) // 2, 0) + t) for n, t in zip(padded.shape, tile, strict=True)
    )
    patch = torch.from_numpy(np.ascontiguousarray(padded[centre]))[None, None].to(device)
    network = model.members[0].to(patch.device, memory_format=torch.channels_last_3d)
    exact, rough = (_run(network, patch, p)[:, 0] for p in PRECISIONS)
    difference = (rough - exact).abs().mean().item()
    return precision if difference <= HALF_TOLERANCE else "float32"


def _warnings(
    model: Model, plan: Plan, limit_gb: float, asked: str | None, precision: str
) -> tuple[str, ...]:
    found = []
    if plan.whole and model.card.get("context", "patch") == "patch":
        found.append(
            "The model was trained on patches and run over the whole volume in one pass, as asked: it knows "
            "no more context than its patches, and its estimate may be of no use this way (--tiling auto)."
        )
    if plan.predicted_gb > limit_gb:
        found.append(
            f"The smallest tiles need {plan.predicted_gb:.2f} GB beside the rest, of {limit_gb:.2f} GB that "
            "may be taken."
        )
    if asked == "bfloat16" and precision != asked:
        found.append("A patch of the scan came out differently in bfloat16: float32 was used.")
    return tuple(found)


def _pad(data: np.ndarray, model: Model) -> tuple[np.ndarray, tuple[slice, ...]]:
    """Extend by the edge value, by the margin and on to the next multiple; also return where the data are.

    At the far ends go on to a training patch, if there is less.
    """
    widths, inner = [], []
    for n, margin, multiple, patch in zip(
        data.shape, MARGIN, model.members[0].min_multiple, patch_tile(model), strict=True
    ):
        total = math.ceil((n + 2 * margin) / multiple) * multiple
        before = (total - n) // 2
        widths.append((before, max(total, patch) - n - before))
        inner.append(slice(before, before + n))
    return np.pad(data, widths, mode="edge").astype(np.float32), tuple(inner)
