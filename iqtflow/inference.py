"""A volume through an ensemble of networks, in the context that the networks were trained in.

A network that learned on patches has seen nothing but padding beyond them. At its deepest level a patch of 32
voxels is 2 x 2 x 2 large, and every convolution there meets more zeros than tissue; in the middle of a whole
brain it meets tissue only, and answers with another function. So such a network (``context`` "patch" in the
model's card) is given tiles of the training patch, blended where they overlap. Measured with an ANISO U-Net
(k = 4) at the centre of two brains: one pass 20.4 and 19.1 dB, tiles of 128 voxels 22.0 and 21.3, of 64 25.8
and 26.9, of 32 26.2 and 29.3 (cubic spline 19.1 and 21.1).

A network of ``context`` "whole" takes the volume in one pass, or in the largest tiles that memory allows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from iqtflow.geometry import spline_matrix
from iqtflow.memory import free_memory_gb
from iqtflow.models import Model

PRECISIONS = ("float32", "bfloat16")

#: Memory of one pass in bytes for each high-resolution voxel of the padded volume: for each channel of the
#: first level, and besides. Measured in float32 with ANISO U-Net on a CPU, channels last: 442 bytes at 16
#: channels, 208 at 8; bfloat16 takes half.
BYTES_PER_CHANNEL, BYTES_BESIDES = 27, 24
#: Share of the free memory that one pass may take.
MEMORY_SHARE = 0.6
#: Voxels (in plane) and slices by which a volume is extended on each side: "same" convolutions put zeros
#: beyond the border, which must not reach the head.
MARGIN = (8, 8, 1)
#: Share of a tile that the next one repeats, and sigma of the Gaussian that weighs a tile's voxels, over its
#: edge. Half of a tile repeated takes three times as long and gains less than 0.1 dB.
OVERLAP, BLENDING_SIGMA = 0.25, 0.2
#: Edge of the patches that networks are trained on, in high-resolution voxels: no tile is smaller.
SMALLEST_TILE = 32
#: Tiles that pass through a network together.
TILES_AT_A_TIME = 8
#: A tile nowhere brighter than this share of white matter is air (a scan's noise is a few per cent of it).
AIR_LEVEL = 0.25


@dataclass(frozen=True)
class Enhanced:
    """Output of an ensemble for a volume of shape (w, h, d), slices last.

    Attributes
    ----------
    mean : ndarray, shape (w, h, k d), float32
        Mean over the networks, in the units of the input; below 0 set to 0.
    std : ndarray, shape (w, h, k d), float32, or None
        Standard deviation over the networks (n - 1 in the denominator); None for a single one.
    details
        Device, precision, tiling, predicted memory: fields of a sidecar.
    """

    mean: np.ndarray
    std: np.ndarray | None
    details: dict[str, Any]


def enhance_volume(
    data: np.ndarray,
    model: Model,
    *,
    scale: float,
    device: str = "cpu",
    precision: str | None = None,
    num_threads: int = 1,
    max_memory_gb: float | None = None,
) -> Enhanced:
    """Run an ensemble over a volume.

    The same input gives the same bits on the same kind of processor with the same number of threads.

    Parameters
    ----------
    data : ndarray, shape (w, h, d)
        Thick-slice scan in its own units, slices last.
    model
        From `iqtflow.models.load_model`.
    scale
        Intensity that the networks see as 1 (`iqtflow.normalisation.intensity_scale`).
    device
        "cpu" or "cuda".
    precision
        One of `PRECISIONS`, for the convolutions; bfloat16 on CUDA and float32 on a CPU when not given.
    num_threads
        CPU threads.
    max_memory_gb
        Memory that one pass may take; `MEMORY_SHARE` of what is free when not given.

    Returns
    -------
    Enhanced

    Notes
    -----
    Mean and standard deviation are updated network by network (Welford 1962, doi:10.2307/1266577), so that
    the ensemble's size does not show in the memory.
    """
    torch.set_num_threads(num_threads)
    precision = precision or ("bfloat16" if device == "cuda" else "float32")
    padded, inner = _pad(data / np.float32(scale), model)
    if max_memory_gb is None:
        max_memory_gb = MEMORY_SHARE * (
            torch.cuda.mem_get_info()[0] / 1e9 if device == "cuda" else free_memory_gb()
        )
    at_once = 1
    if model.card.get("context", "patch") == "patch":
        tile, at_once = patch_tile(model), TILES_AT_A_TIME
        padded = _at_least(padded, tile)
    else:
        tile = choose_tile(padded.shape, model, max_memory_gb=max_memory_gb, precision=precision)
    whole = tile == padded.shape
    with torch.inference_mode(), torch.backends.cudnn.flags(benchmark=False, deterministic=True):
        volume = torch.from_numpy(padded)[None, None].to(device)
        mean = squares = None
        for count, network in enumerate(model.members, start=1):
            output = _predict(network, volume, tile, precision=precision)
            if mean is None:
                mean = output
            else:
                delta = output - mean
                mean += delta / count
                squares = (
                    delta.mul_(output - mean) if squares is None else squares.addcmul_(delta, output - mean)
                )
        std = None if squares is None else squares.div_(len(model.members) - 1).sqrt_()
        mean.clamp_(min=0)
    k = model.k
    crop = (inner[0], inner[1], slice(inner[2].start * k, inner[2].stop * k))
    mean, std = (v if v is None else v.cpu().numpy()[crop] * np.float32(scale) for v in (mean, std))
    sizes = " x ".join(map(str, (*tile[:2], tile[2] * k)))
    details = {
        "Device": device if device == "cpu" else f"{device} ({torch.cuda.get_device_name()})",
        "Precision": precision,
        "NumThreads": num_threads,
        "Tiling": f"whole volume in one pass ({sizes})" if whole else f"tiles of {sizes}, blended",
        "PredictedMemoryGB": round(at_once * predict_memory_gb(tile, model, precision=precision), 2),
    }
    return Enhanced(mean, std, details)


def patch_tile(model: Model) -> tuple[int, int, int]:
    """Return the shape of the training patch in thick-slice voxels, slices last."""
    return (SMALLEST_TILE, SMALLEST_TILE, SMALLEST_TILE // model.k)


def predict_memory_gb(shape: Sequence[int], model: Model, *, precision: str = "float32") -> float:
    """Return the memory (GB) that one pass takes over a thick-slice volume of this shape, slices last."""
    channels = model.card["network"]["kwargs"].get("filters", 16)
    half = 0.5 if precision == "bfloat16" else 1.0
    return math.prod(shape) * model.k * (half * BYTES_PER_CHANNEL * channels + BYTES_BESIDES) / 1e9


def choose_tile(
    shape: Sequence[int], model: Model, *, max_memory_gb: float, precision: str = "float32"
) -> tuple[int, ...]:
    """Choose the largest tile, of the shape of the volume or less, whose pass stays within a limit.

    Parameters
    ----------
    shape
        Of the padded thick-slice volume, slices last; multiples of what the networks need.
    model
        Decides multiples and memory.
    max_memory_gb
        The limit. A tile as large as a training patch is returned even if that is beyond it.
    precision
        Of the pass.

    Returns
    -------
    tuple of int
        Longest edges, counted in high-resolution voxels, are halved first.
    """
    multiple, k = model.members[0].min_multiple, model.k
    smallest = (SMALLEST_TILE, SMALLEST_TILE, max(SMALLEST_TILE // k, multiple[2]))
    tile = [int(n) for n in shape]
    while predict_memory_gb(tile, model, precision=precision) > max_memory_gb:
        reducible = [axis for axis in range(3) if tile[axis] > smallest[axis]]
        if not reducible:
            break
        axis = max(reducible, key=lambda a: tile[a] / smallest[a])
        tile[axis] = max(_round_up(tile[axis] / 2, multiple[axis]), smallest[axis])
    return tuple(tile)


def _predict(
    network: torch.nn.Module, volume: torch.Tensor, tile: tuple[int, ...], *, precision: str
) -> torch.Tensor:
    """Run one network over (1, 1, w, h, d); returns (w, h, k d), float32."""
    network = network.to(volume.device, memory_format=torch.channels_last_3d)
    matrix = torch.tensor(spline_matrix(tile[2], network.k), dtype=torch.float32, device=volume.device)
    half = precision == "bfloat16"

    def enhance(tiles: torch.Tensor) -> torch.Tensor:
        tiles = tiles.to(memory_format=torch.channels_last_3d)
        with torch.autocast(volume.device.type, dtype=torch.bfloat16) if half else nullcontext():
            return network(tiles).float()

    def enhance_busy(tiles: torch.Tensor) -> torch.Tensor:
        """Half of a scan's tiles are air, which holds nothing to enhance: the spline will do for them."""
        output = tiles @ matrix.T
        busy = tiles.flatten(1).amax(dim=1) > AIR_LEVEL
        if busy.any():
            output[busy] = enhance(tiles[busy])
        return output

    if tile == tuple(volume.shape[2:]):
        return enhance(volume)[0, 0]
    from monai.inferers import sliding_window_inference

    # MONAI rounds the step between tiles down, so half a voxel less of overlap is asked for.
    weights = _blending_weights((*tile[:2], tile[2] * network.k), volume.device)
    steps = [max(int((1 - OVERLAP) * n), 1) for n in tile]
    overlap = [max((n - step - 0.5) / n, 0.0) for n, step in zip(tile, steps, strict=True)]
    return sliding_window_inference(
        volume,
        tile,
        TILES_AT_A_TIME if tile[0] == SMALLEST_TILE else 1,
        enhance_busy,
        overlap=overlap,
        process_fn=lambda output, _, __: (output, weights),
    )[0, 0]


def _blending_weights(shape: Sequence[int], device: torch.device) -> torch.Tensor:
    """Gaussian over a tile's output, (1, 1, w, h, k d).

    MONAI's own, on the tile's input, would be the same for all k thin slices of a thick one: the weights'
    steps show as seams between thick slices (at k = 8, steps between slices were 20 % too large there).
    """
    weights = torch.ones(1, 1, *shape, device=device)
    for axis, n in enumerate(shape):
        distance = (torch.arange(n, device=device) - (n - 1) / 2) / (BLENDING_SIGMA * n)
        weights *= torch.exp(-0.5 * distance**2).reshape([-1 if a == axis else 1 for a in range(3)])
    return weights.clamp_(min=1e-3)


def _at_least(padded: np.ndarray, tile: tuple[int, ...]) -> np.ndarray:
    """Extend a volume that is smaller than a tile, at the far ends, by its edge value."""
    return np.pad(padded, [(0, max(t - n, 0)) for n, t in zip(padded.shape, tile, strict=True)], mode="edge")


def _pad(data: np.ndarray, model: Model) -> tuple[np.ndarray, tuple[slice, ...]]:
    """Extend by the edge value, by the margin and on to the next multiple; also return where the data are."""
    widths, inner = [], []
    for n, margin, multiple in zip(data.shape, MARGIN, model.members[0].min_multiple, strict=True):
        total = _round_up(n + 2 * margin, multiple)
        before = (total - n) // 2
        widths.append((before, total - n - before))
        inner.append(slice(before, before + n))
    return np.pad(data, widths, mode="edge").astype(np.float32), tuple(inner)


def _round_up(n: float, multiple: int) -> int:
    return math.ceil(n / multiple) * multiple
