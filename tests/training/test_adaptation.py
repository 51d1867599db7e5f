"""What is simulated for a scanner, who trains, and for how long."""

from __future__ import annotations

import numpy as np
import pytest

from iqtflow.config import AdaptSettings, TrainSettings, check_training
from iqtflow.evaluation.comparison import compare_models, residual_notes, verdict_sentence
from iqtflow.image.geometry import RATIO_OVER_K
from iqtflow.models.model_file import list_shipped, read_card
from iqtflow.simulation.scanner import missing_blur
from iqtflow.training.adaptation import (
    LEAST_PEOPLE,
    LEAST_STEPS,
    MOST_STEPS,
    adapted_name,
    adapted_settings,
    choose_people,
    people_in_time,
    plan_steps,
)
from iqtflow.training.samplers import plane_matrices
from iqtflow.utils.errors import UsageError

SCANNER = {
    "thickness_fraction": {"median": 0.55, "range": [0.5, 0.6]},
    "bias_amplitude": {"median": 0.1, "largest": 0.2},
    "stripes": {"median": 0.1},
    "noise_distribution": "rician",
}


def test_a_scanner_is_simulated_with_what_was_measured():
    card = read_card("iqt-k8")
    train = TrainSettings(**adapted_settings(SCANNER, card, ratio=9.2, blur=1.5), start_from="iqt-k8")
    check_training(train)
    assert (train.upsampling_factor, train.network) == (8, card["network"]["name"])
    assert (train.thickness_fraction, train.noise) == ((0.5, 0.6), "rician")
    assert train.plane_blur[0] < 1.5 < train.plane_blur[1]
    assert 8 * (1 + train.spacing_jitter) == pytest.approx(9.2)
    assert train.bias_amplitude == 0.2 and train.stripes > 0.1


@pytest.mark.parametrize("over", RATIO_OVER_K)
def test_a_scanner_that_could_not_be_measured_is_simulated_as_for_the_shipped_models(over):
    nothing = dict.fromkeys(SCANNER)
    for scanner in (None, nothing):
        train = TrainSettings(
            **adapted_settings(scanner, read_card("iqt-k4"), ratio=4 * over), start_from="iqt-k4"
        )
        check_training(train)
        assert train.thickness_fraction == (0.5, 1.0) and train.plane_blur == (0, 0)


def test_nobody_who_trained_a_model_evaluates_it():
    seen, new = [f"A{i}" for i in range(12)], [f"B{i}" for i in range(5)]
    for seed in range(20):
        split = choose_people([*seen, *new], seen, seed=seed)
        labels = [label for part in split.values() for label in part]
        assert len(labels) == len(set(labels)) == 17 and all(split.values())
        assert set(split["evaluation"]) <= set(new)
    assert len(choose_people([*seen[:5], *new, "B5"], seen, seed=0)["evaluation"]) == 6, "enough for a test"
    few = choose_people([*seen, *new], seen, seed=0, most=5)
    assert sum(map(len, few.values())) == 5 and len(few["evaluation"]) == 2
    assert few == choose_people([*new, *seen], seen, seed=0, most=5)


@pytest.mark.parametrize(("labels", "seen"), [("abc", ""), ("abcde", "abcd")])
def test_too_few_people_are_refused(labels, seen):
    with pytest.raises(UsageError, match="--highfield"):
        choose_people(list(labels), list(seen), seed=0)


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("20m", 1200), ("1.5h", 5400)])
def test_a_budget_is_a_time(text, seconds):
    assert AdaptSettings(budget=text).budget_s == seconds


def test_the_training_fits_into_the_time_left():
    assert LEAST_STEPS < plan_steps(600, 1.5) * 1.5 < 600
    assert plan_steps(-100, 1.0) == LEAST_STEPS and plan_steps(1e9, 1.0) == MOST_STEPS
    assert LEAST_PEOPLE == people_in_time(60, 75, 1) < people_in_time(3600, 75, 2)


def test_no_adapted_model_has_the_name_of_a_shipped_one():
    shipped = {info.name for info in list_shipped()}
    for name in shipped:
        assert adapted_name(name.partition("-")[0], read_card(name).k, shipped) not in shipped
    assert adapted_name("Our Hospital: 0.3 T", 4, shipped) == "OurHospital03T-k4"
    assert adapted_name("病院", 8, shipped) == "site-k8"


def scores(psnr):
    return {str(i): {"psnr": value, "mssim": value / 50} for i, value in enumerate(psnr)}


@pytest.mark.parametrize(
    ("gains", "verdict", "words"),
    [
        ([0.3, 0.4, 0.2, 0.5, 0.3, 0.1], "better", "Use new"),
        ([-0.3, -0.4, -0.2, -0.5, -0.3, -0.1], "not better", "Go on with old"),
        ([0.3, -0.4, 0.2, -0.5, 0.4, 0.2], "not better", "Go on with old"),
        ([0.01, 0.02, 0.01, 0.02, 0.01, 0.03], "not better", "Go on with old"),
        ([0.3, 0.4, 0.2], "uncertain", "too few people"),
        ([0.3, 0.4, -0.2], "not better", "not shown to help"),
    ],
)
def test_a_model_is_recommended_only_if_it_is_better_on_unseen_people(gains, verdict, words):
    old = np.linspace(25, 30, len(gains))
    found = compare_models(scores(old - 3), scores(old), scores(old + gains))
    assert found["verdict"] == verdict
    assert found["psnr"]["gain"] == pytest.approx(np.mean(gains))
    assert found["psnr"]["n_better"] == sum(gain > 0 for gain in gains)
    sentence = verdict_sentence(found, before="old", after="new")
    assert words in sentence and f"{np.mean(gains):.2f}" in sentence


def test_a_worse_fit_to_the_slices_of_real_scans_is_told():
    def scans(*pairs):
        return [{"before": {"residual": a}, "after": {"residual": b}} for a, b in pairs]

    (note,) = residual_notes(scans((0.9, 1.1), (1.1, 1.3), (1.2, 1.15), (1.0, None)), after="new")
    assert "new fits the acquired slices less well" in note and "1.07 to 1.18" in note and "2 of 3" in note
    assert not residual_notes(scans((0.5, 0.8), (0.6, 0.9)), after="new"), "below the noise"
    assert not residual_notes(scans((1.1, 1.12)), after="new") and not residual_notes([], after="new")
    assert not residual_notes(scans((None, None)), after="new")


def test_a_blur_adds_up_with_that_of_the_image():
    assert missing_blur(2.5, [1.5, 1.4, 1.6]) == pytest.approx(2.0)
    assert missing_blur(1.6, [1.5]) == missing_blur(None, [1.5]) == missing_blur(2.0, []) == 0
    line, (blur, keep) = np.zeros(48, np.float32), plane_matrices(48, 1.0, 3.0)
    line[24] = 1
    profile = blur @ line
    assert profile.sum() == pytest.approx(1, abs=1e-5) and (keep == np.eye(48)).all()
    above = np.flatnonzero(profile >= profile.max() / 2)
    assert len(above) == 3
