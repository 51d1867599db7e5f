"""The paper's anisotropic U-Net."""

from __future__ import annotations

import torch
from torch import nn

from iqtflow.errors import InputError
from iqtflow.geometry import spline_matrix
from iqtflow.networks.blocks import BottleneckBlock, ResidualCore, initialise

LEVELS = 5


class AnisoUNet(nn.Module):
    """ANISO U-Net(b) of Lin et al., MLMI 2019, Fig. 2.

    The encoder first pools the plane alone, log2(k) times, until features are isotropic, then all three axes;
    every skip passes a bottleneck block that up-samples the slice axis, so that the decoder works on cubes.
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

    For k = 8 (input 32 x 32 x 4) the plane is pooled three times and skips are up-sampled 8, 4, 2 and 1
    times; for k = 2 once, and 2, 1, 1, 1.

    Parameters
    ----------
    k
        Up-scaling factor along the slice axis: 2, 4 or 8.
    filters
        Channels of the first level; they double at each level.
    shrink
        b, the number of shrinking layers in each bottleneck block (2 or 3 in the paper).
    residual
        Add the cubic B-spline interpolation of the input (`iqtflow.geometry.spline_matrix`) to the output,
        and start at it (the last convolution is initialised with zeros). False is the paper's network.
    """

    def __init__(self, k: int = 4, filters: int = 16, shrink: int = 2, *, residual: bool = False) -> None:
        super().__init__()
        if k not in (2, 4, 8):
            raise InputError(
                "up-scaling factor of ANISO U-Net",
                found=str(k),
                expected="2, 4 or 8",
                next_step="Choose one of these factors.",
            )
        self.k, self.residual = k, residual
        octaves = k.bit_length() - 1
        self.min_multiple = (16, 16, 2 ** (LEVELS - 1 - octaves))
        channels = [filters * 2**level for level in range(LEVELS)]
        inputs = [1, *channels[:-1]]
        self.encoder = nn.ModuleList(ResidualCore(i, o) for i, o in zip(inputs, channels, strict=True))
        self.bridge = ResidualCore(channels[-1], channels[-1])
        self.pools = nn.ModuleList(
            nn.MaxPool3d((2, 2, 1 if level < octaves else 2)) for level in range(LEVELS - 1)
        )
        self.skips = nn.ModuleList(
            BottleneckBlock(c, shrink, max(k >> level, 1)) for level, c in enumerate(channels[:-1])
        )
        self.ups = nn.ModuleList(nn.ConvTranspose3d(2 * c, c, 2, 2) for c in channels[:-1])
        self.decoder = nn.ModuleList(ResidualCore(2 * c, c) for c in channels[:-1])
        self.head = nn.Conv3d(filters, 1, 1)
        initialise(self)
        if residual:
            nn.init.zeros_(self.head.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (batch, 1, w, h, d) to (batch, 1, w, h, k d); sizes must be multiples of `min_multiple`."""
        skips, y = [], x
        for level in range(LEVELS - 1):
            y = self.encoder[level](y)
            skips.append(self.skips[level](y))
            y = self.pools[level](y)
        y = self.bridge(self.encoder[-1](y))
        for level in reversed(range(LEVELS - 1)):
            y = self.decoder[level](torch.cat([self.ups[level](y), skips.pop()], dim=1))
        y = self.head(y)
        return y + self._spline(x) if self.residual else y

    def _spline(self, x: torch.Tensor) -> torch.Tensor:
        matrix = torch.tensor(spline_matrix(x.shape[-1], self.k), dtype=torch.float32, device=x.device)
        with torch.autocast(x.device.type, enabled=False):
            return x.float() @ matrix.T
