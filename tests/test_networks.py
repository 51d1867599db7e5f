"""The networks are the published ones: shapes, parameter counts, initialisation, constants."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from iqtflow.errors import InputError
from iqtflow.geometry import cubic_upsample
from iqtflow.networks import build_network, register


@pytest.mark.parametrize(
    ("k", "shrink", "count"), [(4, 2, 9_685_017), (4, 3, 9_832_257), (8, 2, 9_692_185), (8, 3, 9_839_425)]
)
def test_aniso_unet_has_the_authors_number_of_parameters(k, shrink, count):
    network = build_network("aniso-unet", k=k, filters=16, shrink=shrink)
    assert sum(p.numel() for p in network.parameters()) == count


@pytest.mark.parametrize("k", [2, 4, 8])
def test_a_thick_patch_becomes_a_cube_and_the_encoder_ends_at_two_voxels(k):
    network = build_network("aniso-unet", k=k, filters=2).eval()
    deepest = []
    network.bridge.register_forward_hook(lambda module, args, out: deepest.append(tuple(out.shape[2:])))
    with torch.no_grad():
        out = network(torch.rand(1, 1, 32, 32, 32 // k))
    assert tuple(out.shape) == (1, 1, 32, 32, 32)
    assert deepest == [(2, 2, 2)]


def test_any_multiple_of_the_smallest_size_is_taken():
    network = build_network("aniso-unet", k=4, filters=2).eval()
    size = [3 * m for m in network.min_multiple]
    with torch.no_grad():
        assert tuple(network(torch.rand(1, 1, *size)).shape) == (1, 1, size[0], size[1], 4 * size[2])


def test_an_untrained_residual_network_is_the_cubic_spline():
    """One geometry: what the network adds to is the baseline itself, not another interpolation half a voxel
    away.
    """
    network = build_network("aniso-unet", k=4, filters=2, residual=True).eval()
    scan = np.random.default_rng(0).random((32, 32, 8), dtype=np.float32)
    with torch.no_grad():
        out = network(torch.from_numpy(scan)[None, None])[0, 0].numpy()
    np.testing.assert_allclose(out, cubic_upsample(scan, 4), atol=1e-5)


def test_weights_are_glorot_normal_and_batch_normalisation_has_keras_constants():
    torch.manual_seed(0)
    network = build_network("aniso-unet", k=4, filters=16)
    convolution = network.encoder[4].chain[1][0]
    fan = 27 * (convolution.in_channels + convolution.out_channels)
    assert float(convolution.weight.std()) == pytest.approx((2 / fan) ** 0.5, rel=0.01)
    assert float(convolution.bias.abs().max()) == 0
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm3d)]
    assert norms and {(m.eps, m.momentum) for m in norms} == {(1e-3, 0.01)}


def test_a_network_of_ones_own_is_found_by_name():
    class Repeat(nn.Module):
        min_multiple = (1, 1, 1)

        def __init__(self, k):
            super().__init__()
            self.k = k

        def forward(self, x):
            return x.repeat_interleave(self.k, dim=-1)

    register("repeat-of-a-test", Repeat)
    assert build_network("repeat-of-a-test", k=3)(torch.zeros(1, 1, 2, 2, 2)).shape[-1] == 6
    with pytest.raises(InputError, match="second network"):
        register("repeat-of-a-test", nn.Identity)


@pytest.mark.parametrize(
    ("name", "settings"), [("unet-of-nobody", {}), ("aniso-unet", {"k": 5}), ("aniso-unet", {"colour": 3})]
)
def test_what_cannot_be_built_is_named(name, settings):
    with pytest.raises(InputError):
        build_network(name, **settings)
