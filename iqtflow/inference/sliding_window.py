"""How a volume is cut for the networks: in one pass, in tiles that blend, or as the paper does; and what
memory each way takes.

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
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from iqtflow.image.geometry import spline_matrix
from iqtflow.inference.footprint import pass_bytes
from iqtflow.models.model_file import Model
from iqtflow.utils.errors import InputError

#: Ways through a volume. auto: whole if the model's context and the memory allow, else tiles. paper: every
#: patch of a grid of half a patch's step, air too, with equal weights (Lin et al. 2019, section 3.1).
TILINGS = ("auto", "whole", "tiles", "paper")

#: Volumes of the high-resolution grid (float32) that are held beside a pass: a network's output; tiles also
#: need the sum of their weights. Running means come on top, see `held_volumes`.
VOLUMES_OUTPUT, VOLUMES_TILES = 1, 1
#: Copies of the padded scan, and memory (GB) for weights in the layout of the convolutions and their scratch.
COPIES_OF_SCAN, OVERHEAD_GB = 2, 0.05
#: Copies of the padded scan more where air is left out: where tissue is, and both side by side.
COPIES_FOR_AIR = 3
#: Share of a tile that the next one repeats, and sigma of the Gaussian that weighs a tile's voxels, over its
#: edge. Half of a tile repeated takes three times as long and gains less than 0.1 dB.
OVERLAP, BLENDING_SIGMA = 0.25, 0.2
#: Share of a patch that the paper's next one repeats.
PAPER_OVERLAP = 0.5
#: Edge of the patches that networks are trained on, in high-resolution voxels: no tile is smaller.
SMALLEST_TILE = 32
#: Tiles that pass through a network together.
TILES_AT_A_TIME = 8
#: A tile nowhere brighter than this share of white matter is air (a scan's noise is a few per cent of it).
AIR_LEVEL = 0.25


@dataclass(frozen=True)
class Plan:
    """The way through a volume.

    Attributes
    ----------
    tile
        Shape of a tile in thick-slice voxels, slices last; that of the volume for one pass.
    step
        Distance between neighbouring tiles.
    at_once
        Tiles in a batch.
    whole
        Whether it is one pass.
    uniform
        Whether all voxels of a tile weigh the same where tiles overlap.
    skip_air
        Whether tiles without tissue are left to the spline.
    predicted_gb
        Memory that it takes beside what the process holds already.
    words
        For people.
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
    """Choose the way through a volume.

    Parameters
    ----------
    shape
        Of the padded thick-slice volume, slices last; multiples of what the networks need.
    model
        Its context, factor, width and number of members decide.
    tiling
        One of `TILINGS`.
    max_memory_gb
        What may be taken.
    precision
        Of the pass.
    mirrored
        Whether each network also sees the mirrored scan.

    Raises
    ------
    InputError
        One pass is asked for and does not fit.
    """
    if tiling not in TILINGS:
        raise InputError(
            "tiling",
            found=repr(tiling),
            expected=f"one of {', '.join(TILINGS)}",
            next_step="Correct the name.",
        )
    patch, shape = patch_tile(model), tuple(int(n) for n in shape)
    knows_whole = model.card.get("context", "patch") == "whole"
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
            expected="a volume that fits",
            next_step="Let the package choose (--tiling auto), or free memory.",
        )
    edges = " x ".join(map(str, (*shape[:2], shape[2] * model.k)))
    if tiling == "whole" or (tiling == "auto" and knows_whole and needed <= max_memory_gb):
        return Plan(shape, shape, 1, True, False, False, needed, f"whole volume in one pass ({edges})")
    if tiling == "auto" and knows_whole:
        tile = choose_tile(
            shape, model, max_memory_gb=max(max_memory_gb - held[False], 0), precision=precision
        )
    else:
        tile = tuple(min(a, b) for a, b in zip(patch, shape, strict=True))
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
    edge = model.card.get("patch_size", SMALLEST_TILE)
    slices = _round_up(edge // model.k, model.members[0].min_multiple[2])
    return (edge, edge, slices)


def predict_memory_gb(shape: Sequence[int], model: Model, *, precision: str = "float32") -> float:
    """Return the memory (GB) that one pass takes over a thick-slice volume of this shape, slices last."""
    return math.prod(shape) * model.k * pass_bytes(model.card, precision=precision) / 1e9


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
        At least as large as a tile along each axis. A plan that leaves out air wants a second channel: where
        it is not 0 there is no air, however dark: a large ventricle, a cyst.
    plan
        The way.
    k
        Up-scaling factor.
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
        """Half of a scan's tiles are air, which holds nothing to enhance: the spline will do for them."""
        tiles, tissue = both[:, :1], both[:, 1:]
        output = tiles @ matrix.T
        if channels > 1:  # the variance of the error: of air none
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
    # MONAI rounds the step between tiles down, so half a voxel less of overlap is asked for.
    overlap = [max((n - step - 0.5) / n, 0.0) for n, step in zip(plan.tile, plan.step, strict=True)]
    return sliding_window_inference(
        volume,
        plan.tile,
        plan.at_once,
        enhance_busy if plan.skip_air else enhance,
        overlap=overlap,
        process_fn=lambda output, _, __: (output, weights),
    )


def held_volumes(n_members: int, *, mirrored: bool, channels: int = 1) -> int:
    """Volumes held while a network runs: means, sum of squares, the output for the unmirrored scan."""
    return channels * (n_members > 1) + (n_members > 2) + channels * mirrored


def count_channels(network: torch.nn.Module) -> int:
    """Channels of a network's output: 2 with the variance of its error, else 1."""
    return 1 if getattr(network, "error_head", None) is None else 2


def _volumes_gb(shape: Sequence[int], model: Model, *, whole: bool, mirrored: bool, skips_air: bool) -> float:
    """Memory of what is held beside a pass."""
    channels = count_channels(model.members[0])
    extra = held_volumes(len(model.members), mirrored=mirrored, channels=channels)
    count = VOLUMES_OUTPUT * channels + extra + (0 if whole else VOLUMES_TILES)
    copies = COPIES_OF_SCAN + (COPIES_FOR_AIR if skips_air else 0)
    return math.prod(shape) * 4 * (model.k * count + copies) / 1e9 + OVERHEAD_GB


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


def _round_up(n: float, multiple: int) -> int:
    return math.ceil(n / multiple) * multiple
