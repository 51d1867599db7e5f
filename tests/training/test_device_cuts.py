"""Patches that are cut on the training device."""

from __future__ import annotations

import pytest
import torch

from iqtflow.training import trainer
from iqtflow.training.device_cuts import PlaceSampler, Volumes, volume_bytes
from iqtflow.training.library import read_library
from iqtflow.training.plan import TrainingPlan
from iqtflow.training.samplers import Degradation, DrawSampler

WIDE = {"zoom": (0.8, 1.3), "spacing_jitter": 0.1, "contrast_jitter": 0.1, "stripes": 0.1}
COARSE = {"coarse_plane": (1.0, 2.0)}


@pytest.mark.parametrize("settings", [{}, {**WIDE, **COARSE, "mirror": True, "bias_amplitude": 0.1}])
def test_the_device_cuts_the_patches_that_the_processor_cuts(libraries, settings):
    """Along both slice axes, at borders, mirrored, resampled; and all else that is drawn is the same."""
    sources = [read_library(path) for path in libraries]
    volumes = Volumes([*sources, sources[0]])
    same = {"k": 4, "batch_size": 12, "degradation": Degradation(**settings), "seed": 3}
    expected = DrawSampler(sources, **same).batch(5)
    batch = PlaceSampler(sources, volumes=volumes, **same).batch(5)
    assert "intensity" not in batch
    with torch.autocast("cpu", dtype=torch.bfloat16):  # as in training; cutting must not be part of it
        found = volumes.cut(batch)
    for name, value in expected.items():
        value, other = torch.as_tensor(value).float(), torch.as_tensor(found[name]).float()
        unit = 1.0 if name in ("tissue", "brain") else 2e-3
        assert value.shape == other.shape and (value - other).abs().max() <= unit, name
        # A value on the border of two may be rounded to either of them.
        assert (value != other).double().mean() < 1e-3, name


def test_a_volume_is_stored_once_for_a_library_that_is_listed_twice(libraries):
    sources = [read_library(path) for path in libraries]
    assert volume_bytes([*sources, *sources]) == volume_bytes(sources)
    assert volume_bytes(sources) == 5 * sum(source.intensity.size for source in sources)


def test_a_training_with_patches_cut_on_the_device_gives_the_same_weights(libraries, tmp_path, monkeypatch):
    """Without resampling the patches are the same bits, and so are the weights."""
    plan = TrainingPlan(
        network="subpixel-unet",
        network_settings={"k": 4, "widths": [4, 8, 8], "blocks": [1, 1, 1]},
        **{"batch_size": 2, "steps": 2, "steps_per_epoch": 2, "validation_batches": 1, "patience": 0},
    )
    sources = [read_library(path) for path in libraries]

    def train(name: str):
        return trainer.train_member(
            sources[:2], sources[2:3], plan, checkpoint_dir=tmp_path / name, report=lambda line: None
        )

    cut_by_sampler = train("sampler")
    monkeypatch.setattr(trainer, "make_volumes", lambda sources, plan, device: Volumes(sources))
    cut_on_device = train("device")
    assert cut_on_device.curves[-1]["val_loss"] == cut_by_sampler.curves[-1]["val_loss"]
    for name, value in cut_by_sampler.state_dict.items():
        assert torch.equal(value, cut_on_device.state_dict[name]), name


def test_on_the_cpu_and_for_stored_draws_the_samplers_cut(libraries):
    sources = [read_library(path) for path in libraries]
    assert trainer.make_volumes(sources, TrainingPlan(), "cpu") is None
    assert trainer.make_volumes(sources, TrainingPlan(draws=2), "cuda") is None
