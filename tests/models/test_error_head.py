"""The error that is to be expected of an estimate: learned beside it, without touching it; right in size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from phantoms import make_brain
from small_models import make_model
from training_phantoms import SHAPE, simulate, train_command

from iqtflow.cli.commands.train import main as train
from iqtflow.evaluation.uncertainty_calibration import reliability
from iqtflow.image.geometry import slices_last
from iqtflow.image.intensity import intensity_scale
from iqtflow.inference.predict import enhance_volume
from iqtflow.models.model_file import load_model, read_card
from iqtflow.models.registry import build_network

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def estimating(libraries, tmp_path_factory):
    """A model that has learned a little, and nothing of its error."""
    options = ("--uncertainty", "none", "--filters", "4", "--batch-size", "4", "--learning-rate", "0.005")
    return learn(libraries, tmp_path_factory.mktemp("estimating"), *options, steps=16)


def learn(libraries, folder, *options, steps):
    assert train(train_command(libraries[:2], libraries[2:], folder, *options, steps=steps)) == 0
    return folder / "model.safetensors"


def estimate_of(model):
    weights = model.members[0].state_dict()
    return {name: value for name, value in weights.items() if not name.startswith("error_head.")}


def test_learning_the_error_leaves_the_estimate_what_it_is_without(libraries, tmp_path):
    ours = load_model(learn(libraries, tmp_path / "with", steps=4))
    theirs = load_model(learn(libraries, tmp_path / "without", "--uncertainty", "none", steps=4))
    assert ours.card["network"]["kwargs"]["uncertainty"] is True
    assert not [name for name in theirs.members[0].state_dict() if name.startswith("error_head")]
    for name, value in estimate_of(theirs).items():
        # Nothing but rounding: the weights are stored in half precision.
        torch.testing.assert_close(estimate_of(ours)[name], value, rtol=2e-3, atol=1e-5)
    losses = [m.card["training"]["best_validation_loss"] for m in (ours, theirs)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5), "the best weights are chosen by the estimate"


def test_the_error_of_a_finished_model_is_learned_alone_and_is_right_in_size(libraries, estimating, tmp_path):
    """On a brain that nobody has learned from: as large as it says, and growing with what it says."""
    options = ("--uncertainty", "only", "--start-from", str(estimating), "--filters", "4", "--mirror")
    finished = load_model(learn(libraries, tmp_path, *options, "--learning-rate", "0.03", steps=80))
    before = load_model(estimating)
    for name, value in estimate_of(before).items():
        assert torch.equal(estimate_of(finished)[name], value), name
    brain = make_brain(SHAPE, seed=7)
    thick = simulate(brain, axis=2, k=4, seed=7).volume
    scale = intensity_scale(thick[brain.mask[:, :, :64:4]])
    result = enhance_volume(thick, finished, scale=scale)
    assert finished.card.uncertainty() == "predicted"
    within = (..., slice(8, 56))  # at its ends the stack goes on with nothing
    truth, estimate, std = (v[within] / scale for v in (brain.intensity, result.mean, result.std))
    found = reliability(truth, estimate, std, brain.mask[within])
    assert 0.75 < found["error_over_std"] < 1.33
    everywhere = reliability(truth, estimate, std, np.ones(truth.shape, bool))
    assert everywhere["spearman"] > 0.5
    assert everywhere["bins"][-1]["error"] > 3 * everywhere["bins"][0]["error"]
    np.testing.assert_array_equal(result.mean, enhance_volume(thick, before, scale=scale).mean)


def test_a_model_that_knows_its_error_is_a_start_for_one_that_does_not(libraries, tmp_path):
    first = learn(libraries, tmp_path / "first", steps=2)
    options = ("--start-from", str(first), "--uncertainty", "none")
    second = learn(libraries, tmp_path / "second", *options, steps=2)
    assert load_model(second).members[0].error_head is None


def test_the_error_alone_needs_a_model_to_start_from(libraries, tmp_path, capsys):
    arguments = train_command(libraries[:2], libraries[2:], tmp_path, "--uncertainty", "only")
    assert train(arguments) == 2
    assert "--start-from" in capsys.readouterr().err


def predicting(n_members: int = 1, **settings):
    """Networks whose predicted error depends on what they see."""
    model = make_model(n_members, uncertainty=True, **settings)
    for seed, network in enumerate(model.members):
        torch.manual_seed(100 + seed)
        torch.nn.init.normal_(network.error_head.layers[-1].weight, std=0.5)
    return model


@pytest.fixture(scope="module")
def scan():
    brain = make_brain((64, 64, 64))
    return np.ascontiguousarray(slices_last(brain.intensity, np.eye(4), 2)[0][:, :, ::4]).astype(np.float32)


def test_a_single_network_has_a_map_in_the_scan_s_units(scan):
    one = enhance_volume(scan, predicting(), scale=1.0)
    thousand = enhance_volume(scan * 1000, predicting(), scale=1000.0)
    assert one.std.shape == one.mean.shape and one.std[scan.repeat(4, axis=2) > 0].min() > 0
    np.testing.assert_allclose(thousand.std, one.std * 1000, rtol=1e-4)


def test_an_ensemble_adds_what_its_networks_expect_and_how_far_they_disagree(scan):
    """Law of total variance, against the networks one by one."""
    model = predicting(3)
    alone = [
        enhance_volume(scan, type(model)(model.card, [m], model.path, model.sha256), scale=1.0)
        for m in model.members
    ]
    together = enhance_volume(scan, model, scale=1.0)
    expected = np.mean([a.std**2 for a in alone], axis=0)
    positive = np.min([a.mean for a in alone], axis=0) > 0  # else an estimate was set to 0 on its way out
    expected += np.var([a.mean for a in alone], axis=0, ddof=1)
    np.testing.assert_allclose(together.std[positive] ** 2, expected[positive], rtol=1e-3)


def test_mirroring_averages_the_expected_errors_and_adds_how_far_the_two_estimates_disagree(scan):
    model = predicting()
    result = enhance_volume(scan, model, scale=1.0, mirror_axis=0)
    straight = enhance_volume(scan, model, scale=1.0)
    turned = enhance_volume(np.ascontiguousarray(scan[::-1]), model, scale=1.0)
    a, b = straight.mean, turned.mean[::-1]
    expected = (straight.std**2 + turned.std[::-1] ** 2) / 2 + (a - b) ** 2 / 2
    positive = np.minimum(a, b) > 0
    np.testing.assert_allclose(result.std[positive] ** 2, expected[positive], rtol=1e-3)


def test_tiles_have_the_map_too_and_leave_air_without_an_error(scan):
    air = np.full((160, 64, 16), 0.001, np.float32)
    air[:64] += scan
    result = enhance_volume(air, predicting(context="patch"), scale=1.0)
    assert (result.std[:56] > 0).all()
    assert (result.std[-40:] == 0).all()


def test_a_dark_cavity_in_the_brain_is_no_air(scan):
    """A large ventricle or a cyst: no brighter than air, and nowhere is an estimate surer than it may be."""
    hollow = np.zeros((160, 64, 16), np.float32)
    hollow[:64], hollow[-64:] = scan, scan
    model = predicting(context="patch")
    assert (enhance_volume(hollow, model, scale=1.0).std[78:82] == 0).all(), "air, for all that is known"
    brain = np.ones(hollow.shape, bool)
    assert (enhance_volume(hollow, model, scale=1.0, tissue=brain).std > 0).all()


class Alien(torch.nn.Module):
    """A network that takes any settings, and does not know what an error head is."""

    min_multiple = (4, 4, 1)

    def __init__(self, **settings):
        super().__init__()
        assert "uncertainty" not in settings
        self.k, self.scale = settings["k"], torch.nn.Parameter(torch.ones(1))

    def forward(self, x):
        return x.repeat_interleave(self.k, dim=-1) * self.scale


def test_a_network_of_one_s_own_is_not_asked_for_what_it_may_not_know(libraries, tmp_path):
    options = ("--network", "test_error_head:Alien")
    model = read_card(learn(libraries, tmp_path, *options, steps=2))
    assert model["predicts_error"] is False and model.uncertainty() is None


@pytest.mark.parametrize("name", ["aniso-unet", "iso-unet", "sru-net"])
def test_every_network_has_a_second_channel_within_limits(name):
    network = build_network(name, k=4, filters=2, uncertainty=True).eval()
    output = network(torch.rand(1, 1, 32, 32, 8))
    assert output.shape == (1, 2, 32, 32, 32)
    assert output[:, 1].unique().tolist() == [network.error_head.START]
