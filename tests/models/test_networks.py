"""The networks are the published ones: shapes, parameter counts, initialisation, constants."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from iqtflow.image.geometry import cubic_upsample
from iqtflow.models.registry import build_network, choose_settings, register
from iqtflow.utils.errors import InputError

ALL = [("aniso-unet", k) for k in (2, 3, 4, 6, 8)]
ALL += [("sru-net", k) for k in (2, 3, 4, 6, 8)] + [("iso-unet", k) for k in (2, 3, 4, 6, 8)]


@pytest.mark.parametrize(
    ("k", "shrink", "count"), [(4, 2, 9_685_017), (4, 3, 9_832_257), (8, 2, 9_692_185), (8, 3, 9_839_425)]
)
def test_aniso_unet_has_the_authors_number_of_parameters(k, shrink, count):
    network = build_network("aniso-unet", k=k, filters=16, shrink=shrink)
    assert sum(p.numel() for p in network.parameters()) == count


def count_by_hand(name, k):
    """Parameters of a network with 16 filters, from its description alone (b = 2)."""

    def conv(i, o, voxels):
        return i * o * voxels + o

    def block(i, o, voxels=27):  # convolution, batch normalisation
        return conv(i, o, voxels) + 2 * o

    def three(i, o):
        return block(i, o) + 2 * block(o, o)

    def residual_core(i, o):
        return block(i, o) + block(o, o) + conv(i, o, 1) + 2 * o

    def bottleneck(c, up):
        return block(c, c // 2, 1) + 2 * block(c // 2, c // 2) + block(c // 2, c, 1) + conv(c, c, up)

    poolings = {2: [2], 3: [3], 4: [2, 2], 6: [2, 3], 8: [2, 2, 2]}[k]
    plane = {"aniso-unet": poolings, "sru-net": poolings, "iso-unet": []}[name]
    pools = plane + [2] * (4 - len(plane)) if name != "sru-net" else plane
    lacking = [int(np.prod(plane[level:])) for level in range(len(pools))]
    channels = [16 * 2**level for level in range(len(pools) + 1)]
    core = residual_core if name == "aniso-unet" else three
    total = core(1, 16) + sum(core(c, 2 * c) for c in channels[:-1]) + conv(16, 1, 1)
    for c, pool, up in zip(channels, pools, lacking, strict=False):
        total += conv(2 * c, c, pool**3) + core(2 * c, c)
        total += {"aniso-unet": bottleneck(c, up), "sru-net": conv(c, c, up), "iso-unet": 0}[name]
    return total + (residual_core(256, 256) if name == "aniso-unet" else 0)


@pytest.mark.parametrize(("name", "k"), ALL)
def test_parameters_number_what_the_description_gives(name, k):
    assert sum(p.numel() for p in build_network(name, k=k).parameters()) == count_by_hand(name, k)


@pytest.mark.parametrize(("name", "k"), ALL)
def test_shapes_are_those_of_the_tables(name, k):
    """Every level of the decoder works on cubes; the deepest level is where the design puts it."""
    network = build_network(name, k=k, filters=2).eval()
    shapes = {}

    def note(label):
        return lambda module, args, out: shapes.update({label: tuple(out.shape[2:])})

    network.encoder[-1].register_forward_hook(note("deepest"))
    for level, core in enumerate(network.decoder):
        core.register_forward_hook(note(level))
    edge = 48 if k in (3, 6) else 32
    with torch.no_grad():
        out = network(torch.rand(1, 1, edge, edge, edge // k))
    assert tuple(out.shape) == (1, 1, edge, edge, edge)
    deepest = edge // k if name == "sru-net" else 3 if name == "iso-unet" and edge == 48 else 2
    assert shapes.pop("deepest") == (deepest,) * 3
    assert all(len(set(shape)) == 1 for shape in shapes.values())
    assert shapes[0] == (edge,) * 3


def test_iso_unet_sees_the_spline_and_aniso_unet_the_slices():
    """ISO U-Net's first convolution gets the very image that is the baseline."""
    scan = np.random.default_rng(0).random((16, 16, 8), dtype=np.float32)
    seen = {}
    for name in ("iso-unet", "aniso-unet"):
        network = build_network(name, k=4, filters=2).eval()
        network.encoder[0].register_forward_pre_hook(lambda m, args, name=name: seen.update({name: args[0]}))
        with torch.no_grad():
            network(torch.from_numpy(scan)[None, None])
    np.testing.assert_allclose(seen["iso-unet"][0, 0].numpy(), cubic_upsample(scan, 4), atol=1e-5)
    np.testing.assert_array_equal(seen["aniso-unet"][0, 0].numpy(), scan)


@pytest.mark.parametrize(("name", "k"), ALL)
def test_any_multiple_of_the_smallest_size_is_taken(name, k):
    network = build_network(name, k=k, filters=2).eval()
    size = [m * n for m, n in zip(network.min_multiple, (1, 2, 1), strict=True)]
    with torch.no_grad():
        assert tuple(network(torch.rand(1, 1, *size)).shape) == (1, 1, size[0], size[1], k * size[2])


@pytest.mark.parametrize("name", ["aniso-unet", "iso-unet", "sru-net"])
def test_an_untrained_residual_network_is_the_cubic_spline(name):
    """One geometry: what the network adds to is the baseline itself, not another interpolation half a voxel
    away.
    """
    network = build_network(name, k=4, filters=2, residual=True).eval()
    scan = np.random.default_rng(0).random((32, 32, 8), dtype=np.float32)
    with torch.no_grad():
        out = network(torch.from_numpy(scan)[None, None])[0, 0].numpy()
    np.testing.assert_allclose(out, cubic_upsample(scan, 4), atol=1e-5)


@pytest.mark.parametrize("name", ["aniso-unet", "iso-unet", "sru-net"])
def test_weights_are_glorot_normal_and_batch_normalisation_has_keras_constants(name):
    torch.manual_seed(0)
    network = build_network(name, k=4, filters=16)
    large = 0
    for layer in network.modules():
        if isinstance(layer, (nn.Conv3d, nn.ConvTranspose3d)):
            fans = (layer.in_channels + layer.out_channels) * np.prod(layer.kernel_size)
            assert float(layer.bias.detach().abs().max()) == 0
            if layer.weight.numel() > 20_000:
                large += 1
                spread = float(layer.weight.detach().std())
                assert spread == pytest.approx(np.sqrt(2 / fans), rel=0.03)
    assert large > 5
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


OWN_NETWORK = """
from torch import nn

class Repeat(nn.Module):
    min_multiple = (1, 1, 1)

    def __init__(self, k, depth=1):
        super().__init__()
        self.k, self.depth = k, depth
        self.gain = nn.Conv3d(1, 1, 1)

    def forward(self, x):
        return self.gain(x).repeat_interleave(self.k, dim=-1)
"""


def test_a_network_of_another_package_is_found_by_its_entry_point(tmp_path, monkeypatch):
    """As in a package that somebody installs: no file of ours changes."""
    (tmp_path / "laboratory.py").write_text(OWN_NETWORK)
    metadata = tmp_path / "laboratory-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: laboratory\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[iqtflow.networks]\nlab-net = laboratory:Repeat\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert build_network("lab-net", k=2)(torch.zeros(1, 1, 2, 2, 3)).shape[-1] == 6
    with pytest.raises(InputError, match="lab-net"):
        build_network("unet-of-nobody")


def test_code_named_by_a_model_file_is_imported_only_when_the_user_allows_it(tmp_path, monkeypatch):
    (tmp_path / "workbench.py").write_text(OWN_NETWORK)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("IQTFLOW_NETWORKS", raising=False)
    with pytest.raises(InputError, match="IQTFLOW_NETWORKS=workbench:Repeat"):
        build_network("workbench:Repeat", k=2)
    monkeypatch.setenv("IQTFLOW_NETWORKS", "workbench:Repeat")
    assert build_network("workbench:Repeat", k=2).k == 2
    monkeypatch.setenv("IQTFLOW_NETWORKS", "workbench:Missing")
    with pytest.raises(InputError, match="PYTHONPATH"):
        build_network("workbench:Missing", k=2)


def test_each_network_gets_the_settings_that_it_takes():
    defaults = {"filters": 16, "shrink": 2, "residual": True}
    wanted = {"k": 4, **defaults}
    assert choose_settings("aniso-unet", wanted, defaults) == wanted
    assert choose_settings("iso-unet", wanted, defaults) == {"k": 4, "filters": 16, "residual": True}
    with pytest.raises(InputError, match="shrink = 3"):
        choose_settings("iso-unet", {**wanted, "shrink": 3}, defaults)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("unet-of-nobody", {}),
        *((name, {"k": 5}) for name in ("aniso-unet", "iso-unet", "sru-net")),
        ("aniso-unet", {"colour": 3}),
    ],
)
def test_what_cannot_be_built_is_named(name, settings):
    with pytest.raises(InputError):
        build_network(name, **settings)


def test_what_is_no_network_is_refused():
    register("not-a-network", lambda k: nn.Identity())
    with pytest.raises(InputError, match="min_multiple"):
        build_network("not-a-network", k=4)
