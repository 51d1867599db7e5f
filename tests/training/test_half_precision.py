"""Gradients in bfloat16 on a CPU."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from iqtflow.models.registry import build_network
from iqtflow.training.half_precision import ShortConvolutionsInFloat32


def spoil_memory():
    """Leave NaN in memory that is free: who reads what was never written reads NaN."""
    junk = [torch.full((2**i,), float("nan")) for i in range(4, 22) for _ in range(3)]
    del junk


def gradients(network, low, *, half):
    """Return the gradients of all weights, for a loss that depends on every voxel."""
    network.zero_grad(set_to_none=True)
    spoil_memory()
    with torch.autocast("cpu", torch.bfloat16, enabled=half), ShortConvolutionsInFloat32():
        output = network(low).float()
    spoil_memory()
    output.square().mean().backward()
    return {name: value.grad.clone() for name, value in network.named_parameters()}


@pytest.mark.parametrize(("name", "settings"), [("aniso-unet", {"shrink": 2}), ("iso-unet", {})])
def test_the_deepest_level_has_the_same_gradients_each_time(name, settings):
    """32 voxels, halved four times: two voxels and a kernel of three."""
    torch.manual_seed(0)
    network = build_network(name, k=4, filters=2, **settings)
    low = torch.rand(2, 1, 32, 32, 8)
    first, second = (gradients(network, low, half=True) for _ in range(2))
    for part, value in first.items():
        assert torch.isfinite(value).all() and torch.equal(value, second[part]), part


@pytest.mark.parametrize("shape", [(2, 2, 2), (2, 8, 8), (1, 4, 4), (3, 4, 4), (8, 2, 2)])
def test_half_precision_gradients_are_those_of_float32_but_for_rounding(shape):
    torch.manual_seed(0)
    network = nn.Conv3d(4, 4, 3, padding=1)
    low = torch.rand(2, 4, *shape)
    half, full = (gradients(network, low, half=half)["weight"] for half in (True, False))
    assert torch.allclose(half, full, atol=0.03 * float(full.abs().max()))


def test_long_convolutions_stay_in_half_precision():
    network, seen = nn.Conv3d(4, 4, 3, padding=1), []
    network.register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16), ShortConvolutionsInFloat32():
        network(torch.rand(1, 4, 3, 4, 4))
        network(torch.rand(1, 4, 2, 4, 4))
    network(torch.rand(1, 4, 2, 4, 4))
    assert seen == [torch.bfloat16, torch.float32, torch.float32]
