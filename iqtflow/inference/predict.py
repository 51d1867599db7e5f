"""An ensemble of networks over a volume: mean and standard deviation, computed network by network.

`iqtflow.inference.sliding_window` decides between one pass and tiles. On a CPU convolutions run in bfloat16
if the processor has instructions for it, else in float32. bfloat16 is first compared with float32 on one
patch of the scan; if they differ by more than `HALF_TOLERANCE`, float32 is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import torch

from iqtflow.image.geometry import bounding_box, thin_box
from iqtflow.inference.sliding_window import Plan, choose_plan, count_channels, patch_tile, through_tiles
from iqtflow.models.model_file import Model
from iqtflow.utils.system import (
    fast_precision,
    free_memory_gb,
    give_back_freed_memory,
    peak_memory_gb,
)

PRECISIONS = ("float32", "bfloat16")

#: Freed memory (GB) that is kept in pieces too small for the next arrays, about.
FRAGMENTS_GB = 0.2
#: Share of the free memory that may be used.
MEMORY_SHARE = 0.6
#: Voxels (in plane) and slices added on each side of a volume: convolutions put zeros outside the border,
#: which must not reach the head.
MARGIN = (8, 8, 1)
#: Voxels kept around what is not 0: the cubic spline is not 0 there.
SPLINE_MARGIN = 2
#: Largest mean absolute difference of bfloat16 from float32 on a patch, where white matter is 1.
HALF_TOLERANCE = 0.005


@dataclass(frozen=True)
class Enhanced:
    """Output of an ensemble for a volume of shape (w, h, d), slices last.

    Attributes
    ----------
    mean : ndarray, shape (w, h, k d), float32
        Mean over the networks, in the units of the input; values below 0 are set to 0.
    std : ndarray, shape (w, h, k d), float32, or None
        Standard deviation, in the units of the input. For networks that predict their error: square root of
        the mean of their variances plus the variance of their outputs (law of total variance; as
        Lakshminarayanan et al. 2017, section 2.4, but with n - 1 for the outputs). For other ensembles:
        standard deviation of the outputs (n - 1). For a single network with mirrored averaging: standard
        deviation of its two outputs. Else None.
    details
        Device, precision, tiling and predicted memory: fields of a sidecar.
    predicted_gb
        Predicted memory in GB, in addition to what the process used.
    warnings
        Sentences for the user.
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

    The same input gives the same bits on the same type of processor with the same number of threads.

    Parameters
    ----------
    data : ndarray, shape (w, h, d)
        Thick-slice scan in its own units, slices last.
    model
        From `iqtflow.models.model_file.load_model`.
    scale
        Intensity that becomes 1 for the networks (`iqtflow.image.intensity.intensity_scale`).
    device
        "cpu" or "cuda".
    precision
        Precision of the convolutions, one of `PRECISIONS`; None: `iqtflow.utils.system.fast_precision`.
    num_threads
        CPU threads.
    max_memory_gb
        Memory that may be used, in GB; never more than `MEMORY_SHARE` of the free memory.
    tiling
        One of `iqtflow.inference.sliding_window.TILINGS`.
    mirror_axis
        Array axis from left to right. Each network also gets the volume mirrored along it, and the two
        outputs are averaged. None: no mirroring.
    tissue : ndarray of bool, shape (w, h, d), optional
        Brain mask. Dark tiles without brain are air and get the cubic spline only; without a mask all dark
        tiles do.
    report
        Function that receives one line: one pass or tiles, precision, predicted and free memory.

    Returns
    -------
    Enhanced

    Notes
    -----
    Mean and variance are updated network by network (Welford 1962, doi:10.2307/1266577). The memory does not
    grow with the number of networks.
    """
    torch.set_num_threads(num_threads)
    cuda = device == "cuda"
    # An erased background (zeros) needs no network.
    seen = (data != 0) if tissue is None else (data != 0) | tissue
    box = tuple(slice(0, n) for n in data.shape)
    if tiling != "paper" and seen.any():
        box = bounding_box(seen, SPLINE_MARGIN)
    whole_shape = (*data.shape[:2], data.shape[2] * model.k)
    data, tissue = data[box], None if tissue is None else tissue[box]
    padded, inner = _pad(data / np.float32(scale), model)
    give_back_freed_memory()
    free_gb = torch.cuda.mem_get_info()[0] / 1e9 if cuda else free_memory_gb()
    in_use_gb = 0.0 if cuda else psutil.Process().memory_info().rss / 1e9
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
        # Of the same memory as the peak that is measured: the whole program's, or the networks' on a GPU.
        expected_gb = in_use_gb + plan.predicted_gb
        expected_gb = expected_gb if cuda else max(peak_memory_gb(), expected_gb + FRAGMENTS_GB)
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
            if result is not None:  # in place: copies of both would be the peak of memory
                result.mul_(float(np.float32(scale)))
    k = model.k
    crop = thin_box(inner, k)
    mean, std = (
        v if v is None else _put_back(v.cpu().numpy()[crop], box, whole_shape, k) for v in (mean, std)
    )
    details = {
        "Device": f"{device} ({torch.cuda.get_device_name()})" if cuda else device,
        "Precision": checked,
        "NumThreads": num_threads,
        "Tiling": plan.words,
        "MirroredAveraging": mirror_axis is not None,
        "PredictedMemoryGB": round(expected_gb, 2),
        "FreeMemoryGB": round(free_gb, 1),
    }
    return Enhanced(mean, std, details, plan.predicted_gb, _warnings(model, plan, limit, precision, checked))


def _put_back(part: np.ndarray, box: tuple[slice, ...], shape: tuple[int, ...], k: int) -> np.ndarray:
    """Put the box of thin slices at its place in a volume of zeros."""
    if part.shape == shape:
        return part
    volume = np.zeros(shape, np.float32)
    volume[thin_box(box, k)] = part
    return volume


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
    """Run one network over a volume (see `iqtflow.inference.sliding_window.through_tiles`). Return its
    estimate and, if it predicts its error, the variance of the error; (w, h, k d) each, float32.
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
    """Run a network; turn the second channel, the logarithm of the variance, into the variance, so that tiles
    can be averaged.
    """
    half = precision == "bfloat16"
    with torch.autocast(tiles.device.type, dtype=torch.bfloat16) if half else nullcontext():
        output = network(tiles.to(memory_format=torch.channels_last_3d)).float()
    output[:, 1:].exp_()
    return output


def _check_precision(model: Model, padded: np.ndarray, precision: str, device: str) -> str:
    """Return the precision; float32 if bfloat16 changes the result on a patch of the scan too much."""
    if precision != "bfloat16":
        return precision
    tile = patch_tile(model)
    first = [max((n - t) // 2, 0) for n, t in zip(padded.shape, tile, strict=True)]
    centre = tuple(slice(f, f + t) for f, t in zip(first, tile, strict=True))
    patch = torch.from_numpy(np.ascontiguousarray(padded[centre]))[None, None].to(device)
    network = model.members[0].to(patch.device, memory_format=torch.channels_last_3d)
    exact, rough = (_run(network, patch, p)[:, 0] for p in PRECISIONS)
    difference = (rough - exact).abs().mean().item()
    return precision if difference <= HALF_TOLERANCE else "float32"


def _warnings(
    model: Model, plan: Plan, limit_gb: float, asked: str | None, precision: str
) -> tuple[str, ...]:
    found = []
    if plan.whole and not model.card.whole:
        found.append(
            "The model was trained on patches, but ran over the whole volume in one pass, as asked. The "
            "enhanced volume may be wrong. Use --tiling auto."
        )
    if plan.predicted_gb > limit_gb:
        found.append(
            f"The smallest tiles need {plan.predicted_gb:.2f} GB of memory, more than the {limit_gb:.2f} GB "
            "that may be used."
        )
    if asked == "bfloat16" and precision != asked:
        found.append("bfloat16 changed the result on a patch of the scan too much: float32 was used.")
    return tuple(found)


def _pad(data: np.ndarray, model: Model) -> tuple[np.ndarray, tuple[slice, ...]]:
    """Pad with the edge value: by the margin, up to the next multiple, and up to the size of a training
    patch. Also return the place of the data.
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
