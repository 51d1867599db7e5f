"""The paper's three networks (Lin et al., MLMI 2019, section 2.3 and Fig. 2).

All take thick slices and give thin ones. ANISO U-Net and 3D-SRU-Net pool only the plane until features are
isotropic, and up-sample the slice axis in their skip connections. ISO U-Net interpolates first and works on
isotropic voxels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn

from iqtflow.config import SETTINGS
from iqtflow.models.blocks import (
    BottleneckBlock,
    ErrorHead,
    ResidualCore,
    conv_chain,
    initialise,
    spline_upsample,
    upsample_slices,
)
from iqtflow.utils.errors import InputError

LEVELS = 5  #: of ANISO U-Net and ISO U-Net
FACTORS = SETTINGS["train"]["upsampling_factor"].choices  #: k; the paper has 4 and 8


class EncoderDecoder(nn.Module):
    """Encoder, bridge and decoder with a skip connection at each level except the deepest.

    Parameters
    ----------
    k
        Upsampling factor along the slice axis.
    filters
        Channels of the first level; they double at each level.
    pools
        Pooling between two levels, for each axis. The decoder reverses it by transposed convolutions of the
        first number along all three axes, since every skip connection gives cubic voxels.
    core
        Makes the layers of a level, in encoder and decoder, from the numbers of channels in and out.
    skip
        Makes the skip connection of a level from its channels and its up-sampling along the slice axis.
    bridge
        Makes the layers after the deepest level of the encoder from its channels.
    residual
        Add the cubic B-spline interpolation of the input to the output. The last convolution is initialised
        with zeros, so that training starts at the interpolation.
    uncertainty
        Also predict the error (`iqtflow.models.blocks.ErrorHead`): a second output channel, the natural
        logarithm of the variance of the error.
    """

    def __init__(
        self,
        *,
        k: int,
        filters: int,
        pools: Sequence[tuple[int, int, int]],
        core: Callable[[int, int], nn.Module],
        skip: Callable[[int, int], nn.Module],
        bridge: Callable[[int], nn.Module] = nn.Identity,
        residual: bool,
        uncertainty: bool,
    ) -> None:
        super().__init__()
        self.k, self.residual = k, residual
        self.min_multiple = tuple(math.prod(edges) for edges in zip(*pools, strict=True))
        channels = [filters * 2**level for level in range(len(pools) + 1)]
        lacking = [math.prod(p[0] // p[2] for p in pools[level:]) for level in range(len(pools))]
        pairs = list(itertools.pairwise(channels))
        self.encoder = nn.ModuleList(core(i, o) for i, o in [(1, channels[0]), *pairs])
        self.bridge = bridge(channels[-1])
        self.pools = nn.ModuleList(nn.MaxPool3d(pool) for pool in pools)
        self.skips = nn.ModuleList(skip(c, up) for c, up in zip(channels[:-1], lacking, strict=True))
        self.ups = nn.ModuleList(
            nn.ConvTranspose3d(deep, c, pool[0], pool[0])
            for (c, deep), pool in zip(pairs, pools, strict=True)
        )
        self.decoder = nn.ModuleList(core(2 * c, c) for c in channels[:-1])
        self.head = nn.Conv3d(channels[0], 1, 1)
        initialise(self)
        if residual:
            nn.init.zeros_(self.head.weight)
        # Last, so that the other weights of a seed are the same with and without it.
        self.error_head = ErrorHead(channels[0]) if uncertainty else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (batch, 1, w, h, d) to (batch, 1, w, h, k d), or with `uncertainty` to two channels; sizes must
        be multiples of `min_multiple`.
        """
        return self.complete(self.encode_decode(x), spline_upsample(x, self.k) if self.residual else None)

    def complete(self, features: torch.Tensor, base: torch.Tensor | None) -> torch.Tensor:
        """Compute the output from the features of the first level, and add `base` if there is one."""
        estimate = self.head(features)
        if base is not None:
            estimate = estimate + base
        if self.error_head is None:
            return estimate
        return torch.cat([estimate, self.error_head(features)], dim=1)

    def encode_decode(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the features of the first level."""
        skips, y = [], x
        for level, pool in enumerate(self.pools):
            y = self.encoder[level](y)
            skips.append(self.skips[level](y))
            y = pool(y)
        y = self.bridge(self.encoder[-1](y))
        for level in reversed(range(len(self.pools))):
            y = self.decoder[level](torch.cat([self.ups[level](y), skips.pop()], dim=1))
        return y


class AnisoUNet(EncoderDecoder):
    """ANISO U-Net(b) of Lin et al., MLMI 2019, Fig. 2.

    The encoder first pools only the plane, by k in total, until features are isotropic, then all three axes.
    Every skip connection has a bottleneck block that up-samples the slice axis, so that the decoder works on
    isotropic voxels.
    Shapes for k = 4, f = 16 and an input of 32 x 32 x 8:

    =====  ========  ============  ===========  =================
    level  channels  encoder       pooling      skip and decoder
    =====  ========  ============  ===========  =================
    1      16        32 x 32 x 8   (2, 2, 1)    32 x 32 x 32
    2      32        16 x 16 x 8   (2, 2, 1)    16 x 16 x 16
    3      64        8 x 8 x 8     (2, 2, 2)    8 x 8 x 8
    4      128       4 x 4 x 4     (2, 2, 2)    4 x 4 x 4
    5      256       2 x 2 x 2
    =====  ========  ============  ===========  =================

    For k = 8 (input 32 x 32 x 4) the plane is pooled three times, and skip connections up-sample by 8, 4, 2
    and 1; for k = 2 once, and by 2, 1, 1, 1. The paper pools the plane once for each factor 2 in k. Other
    prime factors are treated alike: for k = 3 (input 48 x 48 x 16) the first pooling is (3, 3, 1) and skip
    connections up-sample by 3, 1, 1, 1; for k = 6 (48 x 48 x 8) the first two are (2, 2, 1) and (3, 3, 1),
    and 6, 3, 1, 1.

    Parameters
    ----------
    k
        Upsampling factor along the slice axis, one of `FACTORS`.
    filters
        Channels of the first level; they double at each level.
    shrink
        b, number of layers in each bottleneck block (2 or 3 in the paper).
    residual, uncertainty
        As for `EncoderDecoder`; both are False in the paper.

    Raises
    ------
    InputError
        The factor is not one of `FACTORS`.
    """

    def __init__(
        self,
        k: int = 4,
        filters: int = 16,
        shrink: int = 2,
        *,
        residual: bool = False,
        uncertainty: bool = False,
    ) -> None:
        plane = [(factor, factor, 1) for factor in _prime_factors(k)]
        super().__init__(
            k=k,
            filters=filters,
            pools=[*plane, *[(2, 2, 2)] * (LEVELS - 1 - len(plane))],
            core=ResidualCore,
            skip=lambda c, up: BottleneckBlock(c, shrink, up),
            bridge=lambda c: ResidualCore(c, c),
            residual=residual,
            uncertainty=uncertainty,
        )


class SRUNet(EncoderDecoder):
    """3D-SRU-Net (Heinrich et al. 2017, doi:10.1007/978-3-319-66185-8_16) as in the comparison of Lin et al.:
    the plane is pooled until features are isotropic, and the encoder ends there.

    Three convolutions at each level. Each skip connection up-samples by one transposed convolution. Shapes
    for k = 4, f = 16 and an input of 32 x 32 x 8, and for k = 8 and 32 x 32 x 4:

    =====  ========  ============  =========  ================  ============  =========  ================
    level  channels  encoder       pooling    skip and decoder  k = 8         pooling    skip and decoder
    =====  ========  ============  =========  ================  ============  =========  ================
    1      16        32 x 32 x 8   (2, 2, 1)  32 x 32 x 32      32 x 32 x 4   (2, 2, 1)  32 x 32 x 32
    2      32        16 x 16 x 8   (2, 2, 1)  16 x 16 x 16      16 x 16 x 4   (2, 2, 1)  16 x 16 x 16
    3      64        8 x 8 x 8                                  8 x 8 x 4     (2, 2, 1)  8 x 8 x 8
    4      128                                                  4 x 4 x 4
    =====  ========  ============  =========  ================  ============  =========  ================

    The number of levels is that of the prime factors of k plus one: two for k = 2 and 3, three for k = 6.

    Parameters
    ----------
    k, filters, residual, uncertainty
        As for `AnisoUNet`.

    Raises
    ------
    InputError
        The factor is not one of `FACTORS`.
    """

    def __init__(
        self, k: int = 4, filters: int = 16, *, residual: bool = False, uncertainty: bool = False
    ) -> None:
        super().__init__(
            k=k,
            filters=filters,
            pools=[(factor, factor, 1) for factor in _prime_factors(k)],
            core=partial(conv_chain, length=3),
            skip=upsample_slices,
            residual=residual,
            uncertainty=uncertainty,
        )


class IsoUNet(EncoderDecoder):
    """ISO U-Net: the 3-D U-Net on the interpolated scan.

    The network itself interpolates (cubic B-splines at the slices' own positions), so that it takes thick
    slices like the other networks. Three convolutions at each level; skip connections do not change their
    input. Shapes for f = 16 and 32 x 32 x 32 / k, any k:

    =====  ========  ============  ===========  =================
    level  channels  encoder       pooling      skip and decoder
    =====  ========  ============  ===========  =================
    1      16        32 x 32 x 32  (2, 2, 2)    32 x 32 x 32
    2      32        16 x 16 x 16  (2, 2, 2)    16 x 16 x 16
    3      64        8 x 8 x 8     (2, 2, 2)    8 x 8 x 8
    4      128       4 x 4 x 4     (2, 2, 2)    4 x 4 x 4
    5      256       2 x 2 x 2
    =====  ========  ============  ===========  =================

    Parameters
    ----------
    k, filters, residual, uncertainty
        As for `AnisoUNet`.

    Raises
    ------
    InputError
        The factor is not one of `FACTORS`.
    """

    def __init__(
        self, k: int = 4, filters: int = 16, *, residual: bool = False, uncertainty: bool = False
    ) -> None:
        _prime_factors(k)
        super().__init__(
            k=k,
            filters=filters,
            pools=[(2, 2, 2)] * (LEVELS - 1),
            core=partial(conv_chain, length=3),
            skip=nn.Identity,
            residual=residual,
            uncertainty=uncertainty,
        )
        w, h, depth = self.min_multiple  # of the interpolated grid
        self.min_multiple = (w, h, depth // math.gcd(depth, k))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (batch, 1, w, h, d) to (batch, 1, w, h, k d); sizes must be multiples of `min_multiple`."""
        interpolated = spline_upsample(x, self.k).contiguous(memory_format=torch.channels_last_3d)
        return self.complete(self.encode_decode(interpolated), interpolated if self.residual else None)


def _prime_factors(k: int) -> list[int]:
    """Prime factors of an upsampling factor, the smallest first: fine features are pooled in small steps."""
    if k not in FACTORS:
        raise InputError(
            "upsampling factor of the network",
            found=str(k),
            expected="one of " + ", ".join(map(str, FACTORS)),
            next_step="Choose one of these factors.",
        )
    return {2: [2], 3: [3], 4: [2, 2], 6: [2, 3], 8: [2, 2, 2]}[k]
