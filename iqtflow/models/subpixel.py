"""Sub-pixel U-Net: a network on the thick-slice grid whose last layer gives the thin slices.

The networks of `iqtflow.models.unets` are slow because of their convolutions on the thin grid. Here a cell of
s x s voxels of one thick slice becomes one place with s * s channels (space-to-depth). All convolutions run
on these cells. The last one gives the s * s * k thin voxels of each cell: the sub-pixel convolution of Shi et
al. 2016 (doi:10.1109/CVPR.2016.207) in three dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from iqtflow.models.blocks import ErrorHead, spline_upsample
from iqtflow.models.unets import FACTORS
from iqtflow.utils.errors import InputError

CELL = 2  #: s, edge of a cell in the plane, in voxels


class SubpixelUNet(nn.Module):
    """U-Net of plain residual blocks on cells of s x s x 1 thick-slice voxels, added to the cubic spline.

    Only the plane is pooled until cells are about cubes, then all three axes. There is no normalisation, and
    borders are padded by their own values. A volume in one pass and tiles of any size therefore give the same
    result, except for what is outside a tile. Shapes for k = 4, widths 32, 64, 128 and an input of 48 x 48 x
    12 (and for k = 8, 48 x 48 x 6):

    =====  ========  ============  =========  ============  =========
    level  channels  k = 4         pooling    k = 8         pooling
    =====  ========  ============  =========  ============  =========
    1      32        24 x 24 x 12  (2, 2, 1)  24 x 24 x 6   (2, 2, 1)
    2      64        12 x 12 x 12  (2, 2, 2)  12 x 12 x 6   (2, 2, 1)
    3      128       6 x 6 x 6                6 x 6 x 6
    head   4 k       24 x 24 x 12             24 x 24 x 6
    =====  ========  ============  =========  ============  =========

    Parameters
    ----------
    k
        Upsampling factor along the slice axis, one of `iqtflow.models.unets.FACTORS`.
    widths
        Number of channels of each level.
    blocks
        Number of residual blocks of each level, in the encoder and again in the decoder.
    uncertainty
        As for `iqtflow.models.unets.EncoderDecoder`.

    Raises
    ------
    InputError
        The factor is not one of `FACTORS`, or `widths` and `blocks` have different lengths.
    """

    context = "whole"

    def __init__(
        self,
        k: int = 4,
        widths: Sequence[int] = (32, 64, 128),
        blocks: Sequence[int] = (2, 2, 2),
        *,
        uncertainty: bool = False,
    ) -> None:
        if k not in FACTORS or len(widths) != len(blocks) or not len(widths):
            raise InputError(
                "sub-pixel U-Net",
                found=f"k = {k}, widths {list(widths)}, blocks {list(blocks)}",
                expected=f"k one of {', '.join(map(str, FACTORS))}; as many blocks as widths",
                next_step="Correct these settings.",
            )
        super().__init__()
        self.k = k
        # Memory of one pass for each thin-slice voxel: 56 and 36 bytes with 32 channels and k = 4 (measured).
        share = widths[0] / 32 * 4 / k
        self.pass_bytes = {"float32": 16 + 40 * share, "bfloat16": 16 + 20 * share}
        pools = _pools(k, len(widths) - 1)
        self.min_multiple = tuple(math.prod(edges) for edges in zip((CELL, CELL, 1), *pools, strict=True))
        pairs = list(zip(widths[:-1], widths[1:], pools, strict=True))
        self.stem = Convolution(CELL * CELL, widths[0])
        self.encoder = nn.ModuleList(_stage(c, n) for c, n in zip(widths, blocks, strict=True))
        self.downs = nn.ModuleList(nn.Conv3d(fine, coarse, pool, pool) for fine, coarse, pool in pairs)
        self.ups = nn.ModuleList(Enlargement(coarse, fine, pool) for fine, coarse, pool in pairs)
        self.decoder = nn.ModuleList(_stage(c, n) for c, n in zip(widths[:-1], blocks[:-1], strict=True))
        self.head = nn.Conv3d(widths[0], CELL * CELL * k, 1)
        nn.init.zeros_(self.head.weight)  # training begins at the spline
        nn.init.zeros_(self.head.bias)
        # Last, so that the other weights of a seed are the same with and without it.
        self.error_head = ErrorHead(widths[0], CELL * CELL * k) if uncertainty else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (batch, 1, w, h, d) to (batch, 1, w, h, k d), or with `uncertainty` to two channels; sizes must
        be multiples of `min_multiple`.
        """
        features = self.encode_decode(to_cells(x))
        estimate = from_cells(self.head(features), self.k).float() + spline_upsample(x, self.k)
        if self.error_head is None:
            return estimate
        return torch.cat([estimate, from_cells(self.error_head(features), self.k).float()], dim=1)

    def encode_decode(self, cells: torch.Tensor) -> torch.Tensor:
        """Features of the first level, from cells (batch, s * s, w / s, h / s, d)."""
        y, skips = self.stem(cells), []
        for level, stage in enumerate(self.encoder):
            y = stage(y)
            if level < len(self.downs):
                skips.append(y)
                y = self.downs[level](y)
        for level in reversed(range(len(self.decoder))):
            y = self.decoder[level](self.ups[level](y) + skips.pop())
        return y


class Block(nn.Module):
    """Two convolutions, added to their input. The second is initialised near zero, which replaces
    normalisation (Zhang et al. 2019, arXiv:1901.09321).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = Convolution(channels, channels), Convolution(channels, channels)
        nn.init.kaiming_normal_(self.first.weight)
        nn.init.zeros_(self.first.bias)
        nn.init.normal_(self.second.weight, std=0.1 * math.sqrt(2 / (27 * channels)))
        nn.init.zeros_(self.second.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (batch, channels, w, h, d) to the same shape."""
        return x + self.second(torch.relu(self.first(x)))


class Enlargement(nn.Module):
    """Fewer channels, then each place repeated. A transposed convolution would have other weights for each
    neighbour, and give a pattern that does not match at borders and between tiles (Odena et al. 2016,
    doi:10.23915/distill.00003).
    """

    def __init__(self, inputs: int, outputs: int, factors: tuple[int, int, int]) -> None:
        super().__init__()
        self.mix = nn.Conv3d(inputs, outputs, 1)
        self.factors = factors

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (batch, inputs, w, h, d) to (batch, outputs, w, h, d) times the factors."""
        x = self.mix(x)
        with torch.autocast(x.device.type, enabled=False):
            return nn.functional.interpolate(x, scale_factor=tuple(map(float, self.factors)))


def to_cells(x: torch.Tensor) -> torch.Tensor:
    """Space-to-depth in the plane: (batch, 1, w, h, d) to (batch, s * s, w / s, h / s, d)."""
    b, _, w, h, d = x.shape
    cells = x.reshape(b, w // CELL, CELL, h // CELL, CELL, d).permute(0, 2, 4, 1, 3, 5)
    return cells.reshape(b, CELL * CELL, w // CELL, h // CELL, d).contiguous(
        memory_format=torch.channels_last_3d
    )


def from_cells(y: torch.Tensor, k: int) -> torch.Tensor:
    """Depth-to-space: (batch, s * s * k, w / s, h / s, d) to (batch, 1, w, h, k d)."""
    b, _, w, h, d = y.shape
    thin = y.reshape(b, CELL, CELL, k, w, h, d).permute(0, 4, 1, 5, 2, 6, 3)
    return thin.reshape(b, 1, CELL * w, CELL * h, k * d)


class Convolution(nn.Conv3d):
    """3 x 3 x 3 convolution with the border's own values as padding.

    The padding is done in autocast's precision: in single precision it takes as long as the convolution, and
    gives the same values.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (batch, inputs, w, h, d) to (batch, outputs, w, h, d)."""
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))
        with torch.autocast(kind, enabled=False):
            x = repeat_border(x)
        return super().forward(x)


def repeat_border(x: torch.Tensor) -> torch.Tensor:
    """Pad the last three axes by one voxel, with the border's own values."""
    return nn.functional.pad(x, (1,) * 6, mode="replicate")


def _stage(channels: int, length: int) -> nn.Sequential:
    return nn.Sequential(*[Block(channels) for _ in range(length)])


def _pools(k: int, count: int) -> list[tuple[int, int, int]]:
    """Pooling after each level: only in the plane while a cell is longer along the slice axis."""
    pools, edge = [], CELL
    for _ in range(count):
        pools.append((2, 2, 1) if edge < k else (2, 2, 2))
        edge *= 2
    return pools
