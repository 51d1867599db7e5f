"""Data packs, and training on one GPU from them (benchmarks/pack.py, benchmarks/gpu_parts.py)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from iqtflow.models.registry import build_network
from iqtflow.training.library import read_library

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)


@pytest.mark.parametrize("shape", [(1, 1, 1), (17, 33, 5), (40, 16, 31)])
def test_packed_intensities_come_back_bit_by_bit(shape):
    from pack import residuals, restored

    levels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    content = residuals(levels)
    assert content.size == levels.size
    np.testing.assert_array_equal(restored(content, shape), levels)


def test_a_pack_gives_the_library_back_for_any_factor(libraries, tmp_path):
    from pack import decode, pack

    pack([libraries[0]], tmp_path, 1.0, 64, 1)
    before = read_library(libraries[0])
    four, two = map(read_library, decode(tmp_path / "pack-1.zip", "0", tmp_path, [4, 2]))
    assert (four.k, two.k, four.subject) == (4, 2, "0")
    assert (tmp_path / "pack-1.zip").stat().st_size < before.size / 5
    np.testing.assert_array_equal(four.corners, before.corners)
    np.testing.assert_array_equal(four.brain, before.brain)
    # Both are divided by the mean of white matter; that of the pack is that of the rounded image.
    error = np.abs(four.intensity.astype(float) * four.unit - before.intensity.astype(float))
    assert error.max() < 0.5 / 64 + 2e-3
    assert np.abs(four.wm.astype(int) - before.wm).max() <= 9
    for axis, values in before.references.items():
        np.testing.assert_allclose(four.references[axis][:, 0] * four.unit, values[:, 0], atol=0.02)


def test_people_that_do_not_fit_begin_another_pack(libraries, tmp_path):
    from pack import encode, pack

    size = sum(map(len, encode(libraries[0], 64)[0].values()))
    pack(libraries[:2], tmp_path, 1.5 * size / 2**20, 64, 1)
    packs = sorted(path.name for path in tmp_path.iterdir())
    assert packs == ["pack-1.zip", "pack-2.zip"]
    assert max(path.stat().st_size for path in tmp_path.iterdir()) < 1.5 * size


def test_a_network_for_thicker_slices_takes_the_trunk():
    """All but the heads; pooling along the slice axis becomes a sum."""
    from gpu_parts import take_trunk

    four, eight = (build_network("subpixel-unet", k=k, widths=(4, 8, 8), blocks=(1, 1, 1)) for k in (4, 8))
    assert take_trunk(four.state_dict(), eight) == ["head.weight", "head.bias"]
    assert torch.equal(eight.stem.weight, four.stem.weight)
    assert torch.equal(eight.downs[1].weight, four.downs[1].weight.sum(-1, keepdim=True))
    assert take_trunk(four.state_dict(), four) == []


def test_a_step_without_a_finite_gradient_changes_nothing(libraries):
    from gpu_parts import Step, make_module

    from iqtflow.training.plan import TrainingPlan

    settings = {"k": 4, "widths": [16, 16], "blocks": [1, 1]}
    plan = TrainingPlan(
        network="subpixel-unet", network_settings=settings, optimiser="muon", averaging=0.9, batch_size=2
    )
    module = make_module(libraries[:1], libraries[1:2], plan, "cpu")
    step, batch = Step(module, "cpu"), module.samplers[0].batch(0)
    weight = module.network.head.weight
    step({**batch, "scale": batch["scale"] * torch.nan}, 1e-3)
    assert (int(step.refused), float(weight.detach().abs().max())) == (1, 0.0)  # the head begins at zero
    step(batch, 1e-3)
    assert int(step.refused) == 1
    assert float(weight.detach().abs().max()) > 0
    assert torch.isfinite(weight).all()
