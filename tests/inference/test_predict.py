"""A volume through networks: tiles and whole agree, units do not matter, nothing is random."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from small_models import make_model

from iqtflow.image.geometry import cubic_upsample
from iqtflow.inference.predict import enhance_volume
from iqtflow.inference.sliding_window import choose_tile, predict_memory_gb
from iqtflow.models.card import Card
from iqtflow.models.model_file import Model

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def scan() -> np.ndarray:
    """A thick-slice head of 70 x 61 x 13 voxels with smooth texture; white matter near 500."""
    texture = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal((70, 61, 13)), (3, 3, 1))
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in texture.shape), indexing="ij")
    return np.where(sum(a**2 for a in axes) < 0.8, 500 * (1 + 2 * texture), 0).astype(np.float32)


@pytest.mark.parametrize("k", [2, 4, 8])
def test_an_untrained_residual_network_leaves_the_spline(scan, k):
    """Residual, padding and cropping share one geometry. (At its ends the stack sees the padding.)"""
    result = enhance_volume(scan, make_model(k=k, trained=0.0), scale=500.0)
    assert result.mean.shape == (70, 61, 13 * k)
    expected = np.clip(cubic_upsample(scan, k), 0, None)
    inner = (..., slice(4 * k, -4 * k))
    np.testing.assert_allclose(result.mean[inner], expected[inner], atol=5e-3 * 500)


def test_tiles_and_one_pass_agree(scan):
    """Random networks are rough: what they add depends on all that they see."""
    model = make_model()
    whole = enhance_volume(scan, model, scale=500.0)
    tiled = enhance_volume(scan, model, scale=500.0, max_memory_gb=0.011)
    assert "one pass" in whole.details["Tiling"]
    assert "tiles of" in tiled.details["Tiling"]
    contribution = np.abs(whole.mean - np.clip(cubic_upsample(scan, 4), 0, None)).mean()
    assert np.abs(tiled.mean - whole.mean).mean() < 0.5 * contribution
    assert np.abs(tiled.mean - whole.mean).mean() < 0.005 * np.ptp(whole.mean)


@pytest.mark.parametrize("k", [4, 8])
def test_a_network_trained_on_patches_sees_patches(scan, k):
    """Whatever the memory; a model whose card does not say was trained on patches."""
    model = make_model(k=k, context="patch")
    result = enhance_volume(scan, model, scale=500.0, max_memory_gb=1000)
    assert "tiles of 32 x 32 x 32" in result.details["Tiling"]
    assert result.mean.shape == (70, 61, 13 * k)
    del model.card["context"]
    assert np.array_equal(enhance_volume(scan, model, scale=500.0).mean, result.mean)


def test_tiles_of_the_training_patch_keep_everything_in_its_place(scan):
    """Untrained, they are splines of eight slices each, blended: close to the spline of the whole stack."""
    result = enhance_volume(scan, make_model(trained=0.0, context="patch"), scale=500.0)
    expected = np.clip(cubic_upsample(scan, 4), 0, None)
    moved = np.roll(expected, 1, axis=2)
    error = np.abs(result.mean - expected).mean()
    assert error < 0.02 * expected.mean()
    assert error < 0.3 * np.abs(moved - expected).mean()


class Tilted(torch.nn.Module):
    """Repeats each slice eight times, brighter by 1 at the end of what it is given than at the start."""

    k, min_multiple = 8, (16, 16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        thin = x.repeat_interleave(self.k, dim=-1)
        return thin + torch.linspace(-0.5, 0.5, thin.shape[-1])


def test_tiles_leave_no_seams():
    """A network is not the same at both ends of a tile; where tiles give way to others nothing jumps."""
    card = Card({"k": 8, "network": {"name": "tilted", "kwargs": {}}, "n_members": 1})
    uniform = np.ones((40, 40, 20), np.float32)
    profile = enhance_volume(uniform, Model(card, [Tilted()], Path("memory"), ""), scale=1.0).mean[20, 20]
    assert np.ptp(profile) > 0.4, "the tilt is there to be blended"
    assert np.abs(np.diff(profile)).max() < 0.12


def test_air_is_left_to_the_spline():
    """Tiles without tissue do not pass through the network, which could invent some."""
    noise = np.abs(np.random.default_rng(0).normal(0, 10, (96, 96, 24))).astype(np.float32)
    model = make_model(trained=0.5, context="patch")
    quiet = enhance_volume(noise, model, scale=500.0).mean
    assert np.abs(quiet - np.clip(cubic_upsample(noise, 4), 0, None)).mean() < 2
    noise[40:56, 40:56, 10:14] = 500
    loud = enhance_volume(noise, model, scale=500.0).mean
    assert np.array_equal(loud[:8, :8, :8], quiet[:8, :8, :8])
    assert np.abs(loud - np.clip(cubic_upsample(noise, 4), 0, None))[40:56, 40:56, 40:56].mean() > 10


def test_a_tile_stays_within_the_memory_and_is_no_smaller_than_a_training_patch():
    model = make_model(filters=16)
    shape = (272, 320, 64)
    assert choose_tile(shape, model, max_memory_gb=100) == shape
    for limit in (5.0, 1.0, 0.2):
        tile = choose_tile(shape, model, max_memory_gb=limit)
        assert predict_memory_gb(tile, model) <= limit
        assert all(n % m == 0 for n, m in zip(tile, model.members[0].min_multiple, strict=True))
    assert choose_tile(shape, model, max_memory_gb=1e-6) == (32, 32, 8)
    halved = predict_memory_gb(shape, model, precision="bfloat16")
    assert 0.4 < halved / predict_memory_gb(shape, model) < 0.6


@pytest.mark.parametrize("unit", [1000.0, 1e-3])
def test_units_of_the_scan_do_not_matter(scan, unit):
    model = make_model(2)
    one = enhance_volume(scan, model, scale=500.0)
    other = enhance_volume(scan * np.float32(unit), model, scale=500.0 * unit)
    np.testing.assert_allclose(other.mean, one.mean * unit, rtol=1e-3, atol=1e-4 * one.mean.max() * unit)
    np.testing.assert_allclose(other.std, one.std * unit, rtol=1e-2, atol=1e-4 * one.mean.max() * unit)


def test_the_same_scan_gives_the_same_bits(scan):
    model = make_model(2)
    first, second = (enhance_volume(scan, model, scale=500.0) for _ in range(2))
    assert np.array_equal(first.mean, second.mean)
    assert np.array_equal(first.std, second.std)


def test_mean_and_standard_deviation_are_those_of_the_members(scan):
    """Computed in a stream, they are what one gets by holding all members; a single network has no spread."""
    model = make_model(4)
    ensemble = enhance_volume(scan, model, scale=500.0)
    alone = [enhance_volume(scan, Model(model.card, [m], model.path, ""), scale=500.0) for m in model.members]
    assert all(member.std is None for member in alone)
    volumes = np.stack([member.mean for member in alone])
    # Members are shown without negative values, the ensemble is averaged before: look where none is near 0.
    tissue = volumes.min(axis=0) > 0
    assert tissue.mean() > 0.3
    np.testing.assert_allclose(ensemble.mean[tissue], volumes.mean(axis=0)[tissue], atol=1e-3)
    np.testing.assert_allclose(ensemble.std[tissue], volumes.std(axis=0, ddof=1)[tissue], atol=1e-3)


def test_no_intensity_is_negative(scan):
    result = enhance_volume(scan - 50, make_model(2), scale=500.0)
    assert result.mean.min() == 0
    assert result.std.min() >= 0


@pytest.mark.parametrize("context", ["whole", "patch"])
def test_half_precision_is_close_to_single_precision(scan, context):
    model = make_model(context=context)
    exact = enhance_volume(scan, model, scale=500.0, precision="float32")
    rough = enhance_volume(scan, model, scale=500.0, precision="bfloat16")
    assert (exact.details["Precision"], rough.details["Precision"]) == ("float32", "bfloat16")
    assert 0 < np.abs(rough.mean - exact.mean).mean() < 2e-3 * np.ptp(exact.mean)


@pytest.mark.parametrize("shape", [(33, 47, 3), (16, 16, 60), (90, 20, 5)])
def test_any_number_of_voxels_is_served(shape):
    result = enhance_volume(np.ones(shape, np.float32), make_model(trained=0.0), scale=1.0)
    assert result.mean.shape == (*shape[:2], 4 * shape[2])
    np.testing.assert_allclose(result.mean, 1, atol=1e-3)
