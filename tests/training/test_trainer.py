"""Patch libraries, fresh draws, and a training that can be killed."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from phantoms import make_brain
from training_phantoms import SHAPE, TINY, own_place, train_command

from iqtflow.cli.commands.train import main as train
from iqtflow.models.model_file import load_model
from iqtflow.models.registry import build_network
from iqtflow.simulation.snr_prior import PUBLISHED
from iqtflow.training.library import PATCH, GridSettings, foreground_corners, read_library, write_library
from iqtflow.training.plan import TrainingPlan
from iqtflow.training.samplers import Degradation, DrawSampler, simulate_batch
from iqtflow.training.trainer import make_sampler, train_member
from iqtflow.utils.errors import InputError


def test_patches_with_more_than_80_percent_background_are_dropped():
    mask = np.zeros((64, 64, 64), bool)
    mask[:, :, :32] = True
    grid = GridSettings(step=(16, 16, 4))
    corners = foreground_corners(mask, grid)
    depth_inside = np.clip(32 - corners[:, 2], 0, PATCH)
    assert depth_inside.min() / PATCH >= 0.2
    everything = foreground_corners(np.ones_like(mask), grid)
    assert len(everything) == 3 * 3 * 9
    counts = [mask[x : x + 32, y : y + 32, z : z + 32].mean() >= 0.2 for x, y, z in everything]
    assert len(corners) == sum(counts)


def test_a_library_gives_back_what_was_stored_without_reading_it_all(libraries):
    library = read_library(libraries[0])
    brain = make_brain(SHAPE, seed=0)
    assert isinstance(library.intensity, np.memmap)
    assert library.mean_wm == pytest.approx(1) and 0.6 < library.mean_gm < 0.8
    assert np.max(library.intensity) * library.unit == pytest.approx(brain.intensity.max(), rel=2e-3)
    assert library.corners[:, 0].max() + PATCH <= library.intensity.shape[0]
    assert set(library.references) == {0, 2}


def write(path, **changes):
    brain = make_brain(SHAPE, seed=0)
    given = {"intensity": brain.intensity, "wm": brain.wm, "gm": brain.gm, "mask": brain.mask, **changes}
    write_library(path, subject="0", slice_axes=(0, 2), k=4, **given)


def test_the_same_subject_gives_the_same_bytes(libraries, tmp_path):
    write(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == libraries[0].read_bytes()


def test_a_brain_smaller_than_a_patch_is_refused(tmp_path):
    tiny = np.zeros(SHAPE, bool)
    tiny[30:34, 30:34, 30:34] = True
    with pytest.raises(InputError, match="no patch"):
        write(tmp_path / "x.safetensors", mask=tiny)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"not a library", lambda b: b""])
def test_a_damaged_library_is_refused(libraries, tmp_path, damage):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(damage(libraries[0].read_bytes()))
    with pytest.raises(InputError, match=r"broken\.safetensors"):
        read_library(broken)


def sampler(paths, **changes):
    return DrawSampler(
        [read_library(p) for p in paths], k=4, batch_size=6, degradation=Degradation(**changes), seed=5
    )


def test_a_batch_depends_on_its_number_alone(libraries):
    one, two = (sampler(libraries, mirror=True, bias_amplitude=0.2) for _ in range(2))
    two.batch(0)
    again = two.batch(7)
    for name, value in one.batch(7).items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(again[name])), name
    assert not torch.equal(one.batch(7)["intensity"], one.batch(8)["intensity"])


def test_low_and_high_patches_show_the_same_place(libraries):
    """The spline of the low-field patch is far closer to its own high-field patch than to any other."""
    low, high = simulate_batch(sampler(libraries, prior=PUBLISHED["fixed-61-53"]).batch(0))
    assert low.shape == (6, 1, 32, 32, 8) and high.shape == (6, 1, 32, 32, 32)
    place, error = own_place(low, high)
    assert place == list(range(6)) and error.max() < 0.02


def test_mixed_precision_leaves_the_simulator_alone(libraries):
    """bfloat16 would round the slices to three digits, before there is any noise."""
    batch = sampler(libraries).batch(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = simulate_batch(batch)
    assert all(torch.equal(a, b) for a, b in zip(mixed, simulate_batch(batch), strict=True))


def test_white_matter_is_close_to_one_for_the_network(libraries):
    """The intensity scale computed from the scan alone puts white matter near 1, whatever the scan's
    units.
    """
    batch = sampler(libraries).batch(3)
    white = batch["tissue"][:, 0] > 250
    values = (batch["intensity"][:, 0].float() / batch["scale"].reshape(-1, 1, 1, 1))[white]
    assert float(values.median()) == pytest.approx(1, abs=0.06)


def test_training_learns_more_than_the_spline_knows(libraries, tmp_path):
    settings = {"batch_size": 4, "learning_rate": 5e-3, "schedule": "cosine", "patience": 0}
    settings |= {"network_settings": {**TINY, "filters": 4}, "steps": 60, "steps_per_epoch": 20}
    plan = TrainingPlan(**settings)
    lines = []
    train_on, validate_on = ([read_library(p) for p in paths] for paths in (libraries[:2], libraries[2:]))
    member = train_member(train_on, validate_on, plan, checkpoint_dir=tmp_path, report=lines.append)
    assert member.facts["best_validation_loss"] < 0.8 * _spline_loss(libraries[2], plan)
    assert [row["step"] for row in member.curves] == [20, 40, 60]
    assert len(lines) == 5 and member.curves[-1]["learning_rate"] < 1e-4
    # 60 steps leave more than half of their first values in the running statistics.
    statistics = member.facts["statistics"]
    losses = statistics["validation_loss"]
    assert losses["running"] == pytest.approx(min(row["val_loss"] for row in member.curves), rel=1e-5)
    assert (
        statistics["kept"] == "exact"
        and losses["exact"] < 0.9 * losses["running"]
        and "batch normalisation" in lines[-1]
    )
    first = next(name for name in member.state_dict if name.endswith("running_mean"))
    inputs = _input_of(first.removesuffix(".running_mean"), member, plan, train_on, statistics["batches"])
    assert torch.allclose(member.state_dict[first], inputs.mean(dim=(0, 2, 3, 4)), rtol=1e-3, atol=1e-5)
    for fact in ("cpu", "float32", "aniso-unet", "2 training", "1 validation", "patches", "ibadan-0.36T"):
        assert fact in lines[0]
    assert "an epoch of 20 steps takes about" in lines[0]
    assert (tmp_path / "curves.csv").read_text().startswith("step,train_loss,val_loss")


def _input_of(name, member, plan, sources, batches):
    """What the first batch normalisation is given in the training batches."""
    network = build_network(plan.network, **plan.network_settings)
    network.load_state_dict(member.state_dict)
    given = []
    network.get_submodule(name).register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    draws = make_sampler(sources, plan, seed=plan.seed)
    with torch.no_grad():
        for number in range(batches):
            network(simulate_batch(draws.batch(number))[0])
    return torch.cat(given)


def _spline_loss(path, plan):
    settings = {"batch_size": plan.batch_size, "degradation": plan.degradation, "seed": 0xE7A1}
    batches = DrawSampler([read_library(path)], k=4, **settings)
    return np.mean([own_place(*simulate_batch(batches.batch(number)))[1] for number in range(12)])


def test_a_training_may_begin_with_the_weights_of_a_model(libraries, tmp_path):
    first, further = tmp_path / "first", tmp_path / "further"
    assert train(train_command(libraries[:2], libraries[2:], first, steps=4)) == 0
    options = ["--learning-rate", "1e-9", "--start-from", os.fspath(first / "model.safetensors")]
    assert train(train_command(libraries[:2], libraries[2:], further, *options, steps=1)) == 0
    before, after = (load_model(folder / "model.safetensors") for folder in (first, further))
    assert before.sha256 in after.card["training"]["plan"]["start_from"]
    assert after.card["training"]["before"] == before.card["training"]
    weights = [dict(model.members[0].named_parameters()) for model in (before, after)]
    assert all(torch.allclose(weights[0][name], weights[1][name], atol=1e-3) for name in weights[0])


def test_the_average_with_the_start_is_the_best_on_the_validation_batches(libraries, tmp_path, capsys):
    folders = [tmp_path / name for name in ("first", "alone", "averaged")]
    models = [folder / "model.safetensors" for folder in folders]
    wide = ("--thickness-fraction", "0.5", "1")
    assert train(train_command(libraries[:2], libraries[2:], folders[0], *wide, steps=4)) == 0
    tune = ["--learning-rate", "0.01", "--start-from", os.fspath(models[0])]
    assert train(train_command(libraries[:2], libraries[2:], folders[1], *tune, steps=6)) == 0
    command = train_command(libraries[:2], libraries[2:], folders[2], *tune, "--average-with-start", steps=6)
    assert train(command) == 0
    before, alone, averaged = (load_model(model) for model in models)
    facts = averaged.card["training"]
    losses = {float(share): loss for share, loss in facts["averaged"]["validation_loss"].items()}
    share = facts["averaged"]["share"]
    assert losses[share] == min(losses.values()) and len(losses) == 4
    profiles = [model.card["slice_profile"]["fwhm_over_spacing"] for model in (before, alone, averaged)]
    assert profiles[0] == profiles[2] == [0.5, 1] != profiles[1], "the average knows what both have seen"
    exact, alone_exact = (
        model.card["training"]["statistics"]["validation_loss"] for model in (averaged, alone)
    )
    assert exact["running"] == pytest.approx(losses[share], rel=1e-5)
    assert alone_exact["running"] == pytest.approx(losses[1], rel=1e-5)
    assert facts["best_validation_loss"] == min(exact.values())
    assert set(exact) == {"running", "exact"}, "the last weights are no average"
    assert facts["averaged"]["with"].endswith(f"(SHA-256 {before.sha256})")
    weights = [dict(model.members[0].named_parameters()) for model in (before, alone, averaged)]
    assert not torch.equal(weights[0]["head.weight"], weights[1]["head.weight"])
    for old, new, mean in zip(*(one.values() for one in weights), strict=True):
        # All three are stored in half precision: half a unit in the last place of each.
        rounding = 2**-11 * (old.abs().lerp(new.abs(), share) + mean.abs()) + 1e-6
        assert ((mean - old.lerp(new, share)).abs() <= rounding).all()
    capsys.readouterr()
    assert train([*command, "--overwrite"]) == 0, "a finished training gives the same model"
    assert load_model(models[2]).sha256 == averaged.sha256


def test_a_model_of_another_network_is_no_start(libraries, tmp_path, capsys):
    assert train(train_command(libraries[:2], libraries[2:], tmp_path, "--start-from", "iqt-k8"))
    assert "found a model of {'kwargs': {'blocks': [2, 2, 3], 'k': 8" in capsys.readouterr().err
