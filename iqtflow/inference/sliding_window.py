"""How a volume passes through a network: in one pass, in tiles that are blended, or as in the paper; and the
memory that each way takes.

A network that was trained on patches has seen only padding outside them. At its deepest level a patch of 32
voxels has 2 x 2 x 2 places, and every convolution there sees more zeros than tissue. Inside a whole brain it
sees only tissue, and gives another result. Such a network (``context`` "patch" in the model's card) therefore
gets tiles of the size of the training patch, blended where they overlap. Measured with an ANISO U-Net (k = 4)
at the centre of two brains: one pass 20.4 and 19.1 dB, tiles of 128 voxels 22.0 and 21.3, of 64 25.8 and
26.9, of 32 26.2 and 29.3 (cubic spline 19.1 and 21.1).

A network of ``context`` "whole" takes the volume in one pass, or in the largest tiles that fit in the memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from iqtflow.config import SETTINGS
from iqtflow.image.geometry import spline_matrix
from iqtflow.models.model_file import Model
from iqtflow.utils.errors import InputError

#: Choices. auto: one pass if the model's context and the memory allow it, else tiles. paper: all patches of a
#: grid with a step of half a patch, also those in air, with equal weights (Lin et al. 2019, section 3.1).
TILINGS = SETTINGS["enhance"]["tiling"].choices

#: Thin-slice volumes (float32) in memory during a pass: the output of a network; tiles also need the sum of
#: their weights. `_volumes_gb` adds the running mean and variance.
VOLUMES_OUTPUT, VOLUMES_TILES = 1, 1
#: Copies of the padded scan, and memory (GB) for weights in the layout of the convolutions and their scratch.
COPIES_OF_SCAN, OVERHEAD_GB = 2, 0.05
#: More copies of the padded scan where air is skipped: the tissue mask, and both side by side.
COPIES_FOR_AIR = 3
#: Overlap of neighbouring tiles, and sigma of the Gaussian weights of a tile's voxels, both over the tile's
#: edge. An overlap of a half takes three times as long and gains less than 0.1 dB.
OVERLAP, BLENDING_SIGMA = 0.25, 0.2
#: Overlap of neighbouring patches in the paper.
PAPER_OVERLAP = 0.5
#: Tiles that pass through a network together.
TILES_AT_A_TIME = 8
#: A tile is air if no voxel is brighter than this share of white matter (noise is a few per cent of it).
AIR_LEVEL = 0.25


@dataclass(frozen=True)
class Plan:
    """How a volume passes through a network.

    Attributes
    ----------
    tile
        Shape of a tile in thick-slice voxels, slices last; that of the volume for one pass.
    step
        Distance between neighbouring tiles, in thick-slice voxels.
    at_once
        Tiles in a batch.
    whole
        Whether it is one pass.
    uniform
        Whether all voxels of a tile have the same weight where tiles overlap.
    skip_air
        Whether tiles without tissue get the cubic spline only.
    predicted_gb
        Memory that it takes, in addition to what the process already uses.
    words
        Description for the user.
    """

    tile: tuple[int, ...]
    step: tuple[int, ...]
    at_once: int
    whole: bool
    uniform: bool
    skip_air: bool
    predicted_gb: float
    words: str


def choose_plan(
    shape: Sequence[int],
    model: Model,
    *,
    tiling: str = "auto",
    max_memory_gb: float,
    precision: str = "float32",
    mirrored: bool = False,
) -> Plan:
    """Choose how a volume passes through a model's networks.

    Parameters
    ----------
    shape
        Shape of the padded thick-slice volume, slices last; multiples of the network's `min_multiple`.
    model
        Its context, upsampling factor, width and number of networks decide.
    tiling
        One of `TILINGS`.
    max_memory_gb
        Memory that may be used.
    precision
        "float32" or "bfloat16".
    mirrored
        Whether each network also gets the mirrored scan.

    Returns
    -------
    Plan

    Raises
    ------
    InputError
        One pass is asked for and does not fit in the memory, or `tiling` is not one of `TILINGS`.
    """
    if tiling not in TILINGS:
        raise InputError(
            "tiling",
            found=repr(tiling),
            expected=f"one of {', '.join(TILINGS)}",
            next_step="Correct the name.",
        )
    patch, shape = patch_tile(model), tuple(int(n) for n in shape)
    skips_air = tiling != "paper"
    held = {
        whole: _volumes_gb(shape, model, whole=whole, mirrored=mirrored, skips_air=skips_air and not whole)
        for whole in (True, False)
    }

    def predict(tile: Sequence[int], at_once: int = 1, *, whole: bool) -> float:
        return held[whole] + at_once * predict_memory_gb(tile, model, precision=precision)

    needed = predict(shape, whole=True)
    if tiling == "whole" and needed > max_memory_gb:
        raise InputError(
            "one pass over the whole volume",
            found=f"{needed:.1f} GB needed, {max_memory_gb:.1f} GB may be taken",
            expected="a pass that fits in the memory",
            next_step="Use --tiling auto, or free memory.",
        )
    edges = " x ".join(map(str, (*shape[:2], shape[2] * model.k)))
    if tiling == "whole" or (tiling == "auto" and model.card.whole and needed <= max_memory_gb):
        return Plan(shape, shape, 1, True, False, False, needed, f"whole volume in one pass ({edges})")
    if tiling == "auto" and model.card.whole:
        tile = choose_tile(
            shape, model, max_memory_gb=max(max_memory_gb - held[False], 0), precision=precision
        )
    else:
        tile = tuple(min(a, b) for a, b in zip(patch, shape, strict=True))
        double = tuple(min(2 * a, b) for a, b in zip(patch, shape, strict=True))
        # What such a network sees of its surroundings is wider than a patch.
        if tiling == "tiles" and model.card.whole and predict(double, whole=False) <= max_memory_gb:
            tile = double
    at_once = TILES_AT_A_TIME if tile == patch else 1
    overlap = PAPER_OVERLAP if tiling == "paper" else OVERLAP
    step = tuple(max(int((1 - overlap) * n), 1) for n in tile)
    edges = " x ".join(map(str, (*tile[:2], tile[2] * model.k)))
    words = (
        f"the paper's tiling: patches of {edges} at half their edge, averaged"
        if tiling == "paper"
        else f"tiles of {edges}, blended"
    )
    return Plan(
        *(tile, step, at_once, False, not skips_air, skips_air),
        predicted_gb=predict(tile, at_once, whole=False),
        words=words,
    )


def patch_tile(model: Model) -> tuple[int, int, int]:
    """Return the shape of the training patch in thick-slice voxels, slices last."""
    edge = model.card.patch_size
    slices = _round_up(edge // model.k, model.members[0].min_multiple[2])
    return (edge, edge, slices)


def predict_memory_gb(shape: Sequence[int], model: Model, *, precision: str = "float32") -> float:
    """Return the memory (GB) that one pass takes over a thick-slice volume of this shape, slices last."""
    return model.card.pass_gb(math.prod(shape) * model.k, precision=precision)


def choose_tile(
    shape: Sequence[int], model: Model, *, max_memory_gb: float, precision: str = "float32"
) -> tuple[int, ...]:
    """Choose the largest tile whose pass fits in the memory; the longest edges are halved first.

    Parameters
    ----------
    shape, model, precision
        As for `choose_plan`.
    max_memory_gb
        Memory that one pass may use. The tile is never smaller than a training patch, even if that needs
        more.

    Returns
    -------
    tuple of int
        Shape in thick-slice voxels, slices last.
    """
    multiple = model.members[0].min_multiple
    smallest = patch_tile(model)
    tile = [int(n) for n in shape]
    while predict_memory_gb(tile, model, precision=precision) > max_memory_gb:
        reducible = [axis for axis in range(3) if tile[axis] > smallest[axis]]
        if not reducible:
            break
        axis = max(reducible, key=lambda a: tile[a] / smallest[a])
        tile[axis] = max(_round_up(tile[axis] / 2, multiple[axis]), smallest[axis])
    return tuple(tile)


def through_tiles(
    volume: torch.Tensor,
    plan: Plan,
    k: int,
    enhance: Callable[[torch.Tensor], torch.Tensor],
    *,
    channels: int = 1,
) -> torch.Tensor:
    """Run a network over a volume, tile by tile.

    Parameters
    ----------
    volume : tensor, shape (1, 1 or 2, w, h, d)
        At least as large as a tile along each axis. A plan that skips air needs the second channel: it is not
        0 in the brain, which is never air, even where it is dark (a large ventricle, a cyst).
    plan
        From `choose_plan`.
    k
        Upsampling factor.
    enhance
        The network: (n, 1, *tile) to (n, channels, w, h, k d).
    channels
        1, or 2 with the variance of the error.

    Returns
    -------
    tensor, shape (1, channels, w, h, k d)
    """
    from monai.inferers import sliding_window_inference

    matrix = torch.tensor(spline_matrix(plan.tile[2], k), dtype=torch.float32, device=volume.device)

    def enhance_busy(both: torch.Tensor) -> torch.Tensor:
        """Half of a scan's tiles are air and need no network; they get the cubic spline."""
        tiles, tissue = both[:, :1], both[:, 1:]
        output = tiles @ matrix.T
        if channels > 1:  # the variance of the error is 0 in air
            output = torch.nn.functional.pad(output, (0, 0, 0, 0, 0, 0, 0, channels - 1))
        busy = (tiles.flatten(1).amax(dim=1) > AIR_LEVEL) | tissue.flatten(1).any(dim=1)
        if busy.any():
            output[busy] = enhance(tiles[busy])
        return output

    shape = (*plan.tile[:2], plan.tile[2] * k)
    if plan.uniform:
        weights = torch.ones(1, 1, *shape, device=volume.device)
    else:
        weights = _blending_weights(shape, volume.device)
    # MONAI rounds the step between tiles down; half a voxel less of overlap gives the right step.
    overlap = [max((n - step - 0.5) / n, 0.0) for n, step in zip(plan.tile, plan.step, strict=True)]
    return sliding_window_inference(
        volume,
        plan.tile,
        plan.at_once,
        enhance_busy if plan.skip_air else enhance,
        overlap=overlap,
        process_fn=lambda output, _, __: (output, weights),
    )


def count_channels(network: torch.nn.Module) -> int:
    """Number of output channels of a network: 2 if it predicts the variance of its error, else 1."""
    return 1 if getattr(network, "error_head", None) is None else 2


def _volumes_gb(shape: Sequence[int], model: Model, *, whole: bool, mirrored: bool, skips_air: bool) -> float:
    """Memory (GB) of the volumes in memory during a pass."""
    channels, n = count_channels(model.members[0]), len(model.members)
    # Means, sum of squares, the output for the unmirrored scan.
    extra = channels * (n > 1) + (n > 2) + channels * mirrored
    count = VOLUMES_OUTPUT * channels + extra + (0 if whole else VOLUMES_TILES)
    copies = COPIES_OF_SCAN + (COPIES_FOR_AIR if skips_air else 0)
    return math.prod(shape) * 4 * (model.k * count + copies) / 1e9 + OVERHEAD_GB


def _blending_weights(shape: Sequence[int], device: torch.device) -> torch.Tensor:
    """Gaussian weights of a tile's output, (1, 1, w, h, k d).

    MONAI's weights are computed on the tile's input. They are the same for all k thin slices of a thick one,
    and their steps are visible as seams between thick slices (20 % too large a step between slices at k = 8).
    """
    weights = torch.ones(1, 1, *shape, device=device)
    for axis, n in enumerate(shape):
        distance = (torch.arange(n, device=device) - (n - 1) / 2) / (BLENDING_SIGMA * n)
        weights *= torch.exp(-0.5 * distance**2).reshape([-1 if a == axis else 1 for a in range(3)])
    return weights.clamp_(min=1e-3)


def _round_up(n: float, multiple: int) -> int:
    return math.ceil(n / multiple) * multiple
