"""Networks of Table A: ANISO U-Net with one change, given to iqtflow as ``module:function``."""

from __future__ import annotations

import torch
from torch import nn

from iqtflow.models.registry import build_network


def instance_normalised(**settings: object) -> nn.Module:
    """ANISO U-Net with instance instead of batch normalisation (doi:10.48550/arXiv.1607.08022)."""
    network = build_network("aniso-unet", **settings)
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm3d):
                setattr(module, name, nn.InstanceNorm3d(child.num_features, eps=child.eps, affine=True))
    return network


def patch_normalised(**settings: object) -> nn.Module:
    """ANISO U-Net that gets each patch with mean 0 and standard deviation 1."""
    return _PatchNormalised(build_network("aniso-unet", **settings))


class _PatchNormalised(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.k, self.min_multiple = network, network.k, network.min_multiple

    def forward(self, low: torch.Tensor) -> torch.Tensor:
        """(b, 1, w, h, d) to (b, 1, w, h, k d)."""
        mean = low.mean(dim=(1, 2, 3, 4), keepdim=True)
        scale = low.std(dim=(1, 2, 3, 4), keepdim=True) + 1e-3
        return self.network((low - mean) / scale) * scale + mean
