"""Building blocks of the networks (Lin et al., MLMI 2019, section 2.3 and Fig. 2).

Tensors are (batch, channels, w, h, d) with the slice axis last. Batch normalisation has Keras' constants
(epsilon 1e-3, decay 0.99), as in the published networks.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import nn

from iqtflow.image.geometry import spline_matrix


def normalisation(channels: int) -> nn.BatchNorm3d:
    """Batch normalisation with Keras' constants."""
    return nn.BatchNorm3d(channels, eps=1e-3, momentum=0.01)


def conv_block(inputs: int, outputs: int, kernel: int = 3) -> nn.Sequential:
    """C(n): convolution, ReLU, batch normalisation; zero-padded, so that the size does not change."""
    return nn.Sequential(
        nn.Conv3d(inputs, outputs, kernel, padding=kernel // 2), nn.ReLU(inplace=True), normalisation(outputs)
    )


def conv_chain(inputs: int, outputs: int, length: int) -> nn.Sequential:
    """`length` times C(outputs)."""
    return nn.Sequential(*[conv_block(inputs if i == 0 else outputs, outputs) for i in range(length)])


class ResidualCore(nn.Module):
    """RC(b): b times C(n) beside a 1 x 1 x 1 convolution; their sum through ReLU and batch normalisation
    (Fig. 2c).
    """

    def __init__(self, inputs: int, outputs: int, length: int = 2) -> None:
        super().__init__()
        self.chain = conv_chain(inputs, outputs, length)
        self.shortcut = nn.Conv3d(inputs, outputs, 1)
        self.norm = normalisation(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (batch, inputs, w, h, d) to (batch, outputs, w, h, d)."""
        return self.norm(torch.relu_(self.chain(x) + self.shortcut(x)))


class BottleneckBlock(nn.Module):
    """BB(b, u): halve the channels, b times C(f/2), double them, add the input, up-sample the slice axis by u
    (Fig. 2b).
    """

    def __init__(self, channels: int, shrink: int, up: int) -> None:
        super().__init__()
        half = channels // 2
        self.body = nn.Sequential(
            conv_block(channels, half, 1), conv_chain(half, half, shrink), conv_block(half, channels, 1)
        )
        self.up = upsample_slices(channels, up)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (batch, channels, w, h, d) to (batch, channels, w, h, up d)."""
        return self.up(x + self.body(x))


class ErrorHead(nn.Module):
    """Predicts the error of a network's output from the features of its last level.

    Two convolutions of kernel 1 give the logarithm of the error's variance: the heteroscedastic regression of
    Kendall and Gal 2017 (doi:10.48550/arXiv.1703.04977), used for image quality transfer by Tanno et al. 2021
    (doi:10.1016/j.neuroimage.2020.117366). Here it does not change the output itself: no gradient passes into
    the features, which are trained by the loss of the output alone.

    Parameters
    ----------
    channels
        Number of channels of the features.
    outputs
        Number of logarithms at each place: 1, or one for each thin voxel of a cell.
    """

    #: Range of the output: standard deviations of .001 to 7 where white matter is 1.
    LIMITS = (-14.0, 4.0)
    #: First output: a standard deviation of .08, as for networks after a short training.
    START = -5.0

    def __init__(self, channels: int, outputs: int = 1) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv3d(channels, 2 * channels, 1), nn.ReLU(inplace=True), nn.Conv3d(2 * channels, outputs, 1)
        )
        initialise(self)
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.constant_(self.layers[-1].bias, self.START)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map (batch, channels, w, h, d) to the logarithm of the variance, (batch, outputs, w, h, d)."""
        return self.layers(features.detach()).clamp(*self.LIMITS)


def upsample_slices(channels: int, up: int) -> nn.ConvTranspose3d:
    """Transposed convolution with kernel = stride = (1, 1, up)."""
    return nn.ConvTranspose3d(channels, channels, (1, 1, up), (1, 1, up))


def initialise(network: nn.Module) -> None:
    """Glorot normal weights and zero biases for every convolution (section 3.1)."""
    for module in network.modules():
        if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d)):
            nn.init.xavier_normal_(module.weight)
            nn.init.zeros_(module.bias)


@lru_cache(maxsize=32)
def _spline_weights(n_slices: int, k: int, device: torch.device) -> torch.Tensor:
    with torch.inference_mode(False):  # training may use the same matrix after inference
        return torch.tensor(spline_matrix(n_slices, k).T, dtype=torch.float32, device=device)


def spline_upsample(x: torch.Tensor, k: int) -> torch.Tensor:
    """Cubic B-spline interpolation along the slice axis, at the slices' own positions, in single precision.

    The baseline uses the same matrix (`iqtflow.image.geometry.spline_matrix`). With a shift of half a voxel
    between the two, a network would first have to learn this shift.

    Parameters
    ----------
    x : tensor, shape (batch, channels, w, h, d)
        Thick slices.
    k
        Upsampling factor.

    Returns
    -------
    tensor, shape (batch, channels, w, h, k d), float32
    """
    with torch.autocast(x.device.type, enabled=False):
        return x.float() @ _spline_weights(x.shape[-1], k, x.device)
