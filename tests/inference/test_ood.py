"""Scans unlike those that a model knows are told from their own figures, in words."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import voxel_sizes
from phantoms import make_brain

from iqtflow.image.geometry import find_slice_geometry
from iqtflow.inference import ood as familiarity
from iqtflow.inference.ood import FIGURES, compare, find_reference, make_reference, measure_scan
from iqtflow.models.card import Card
from iqtflow.models.model_file import list_shipped, read_card
from iqtflow.segmentation.brainmask import find_brain_mask
from iqtflow.utils.errors import InputError

VOXEL_MM = (1.5, 1.5, 6.0)


def measure(scan: np.ndarray, mask: np.ndarray, **changes) -> dict[str, float]:
    return measure_scan(scan, mask, **{"axis": 2, "voxel_mm": VOXEL_MM, "k": 4, **changes})


def thick(volume: np.ndarray) -> np.ndarray:
    return volume.reshape(*volume.shape[:2], -1, 4).mean(axis=3)


@pytest.fixture(scope="module")
def people() -> list[tuple[np.ndarray, np.ndarray]]:
    """Scans of eight phantoms with noise of 2 % of white matter, each with its brain."""
    found = []
    for seed in range(8):
        brain = make_brain((64, 72, 64), seed=seed)
        noise = np.random.default_rng(seed).normal(0, 20, (64, 72, 16))
        found.append((thick(brain.intensity) + noise, thick(brain.mask.astype(float)) > 0.5))
    return found


@pytest.fixture(scope="module")
def reference(people):
    figures = [measure(*person) for person in people]
    return make_reference(figures[:5], figures[5:], k=4)


def test_people_like_those_of_the_training_are_familiar(people, reference):
    for person in people:
        found = compare(measure(*person), reference)
        assert not found.unfamiliar
        assert found.reasons == ()
        assert found.as_sidecar()["Flagged"] is False


def changed(person, change):
    scan, mask = person
    if change == "bright fluid":  # T2-weighting turns the order of the tissues round
        return measure(np.where(mask, 1300 - scan, scan), mask)
    if change == "pure noise":
        noise = np.abs(np.random.default_rng(9).normal(0, 300, scan.shape))
        return measure(noise, mask)
    if change == "noise":
        return measure(scan + np.random.default_rng(9).normal(0, 150, scan.shape), mask)
    if change == "flat contrast":
        return measure(np.where(scan > 500, 900 + 0.1 * (scan - 900), scan), mask)
    if change == "two slices":
        return measure(scan[..., 7:9], mask[..., 7:9])
    if change == "coarse pixels":
        return measure(scan, mask, voxel_mm=(4.0, 4.0, 16.0))
    return measure(scan, mask, k=8)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("bright fluid", FIGURES["BrightLevel"].high),
        ("pure noise", FIGURES["Noise"].high),
        ("noise", FIGURES["Noise"].high),
        ("flat contrast", FIGURES["GreyLevel"].high),
        ("two slices", FIGURES["Coverage"].low),
        ("coarse pixels", FIGURES["PixelMm"].high),
        ("wrong factor", FIGURES["SpacingRatio"].low),
    ],
)
def test_what_is_unlike_the_training_is_flagged_with_its_reason(people, reference, change, words):
    found = compare(changed(people[0], change), reference)
    assert found.unfamiliar
    (reason,) = [reason for reason in found.reasons if f"{words} (" in reason]
    (figure,) = [figure for figure in FIGURES.values() if words in (figure.high, figure.low)]
    assert figure.part in reason
    assert figure.check in reason
    assert f"score {found.score:.1f}" in found.sentence()
    sidecar = json.loads(json.dumps(found.as_sidecar()))
    assert sidecar["Flagged"] is True
    assert sidecar["Score"] > sidecar["Threshold"]
    assert set(sidecar["Features"]) == set(FIGURES)


def test_units_do_not_make_a_scan_unfamiliar(people):
    scan, mask = people[0]
    one, other = measure(scan, mask), measure(1000 * scan, mask)
    assert other == pytest.approx(one, rel=1e-5)


def test_noise_is_measured_as_drawn(people):
    """2 % of white matter, whose bright half is the scale."""
    assert measure(*people[0])["Noise"] == pytest.approx(0.02, rel=0.25)


def test_a_scan_without_a_brain_is_unfamiliar_whatever_its_figures(people, reference):
    found = compare(measure(*people[0]), reference, brain_found=False)
    assert found.unfamiliar
    assert "no brain" in found.reasons[0]


def test_the_threshold_lets_people_of_the_evaluation_pass(reference):
    assert reference["threshold"] >= 1.25
    assert reference["false_alarms"] <= 0.34
    assert (reference["n_training_scans"], reference["n_evaluation_scans"]) == (5, 3)


def test_without_scans_there_is_nothing_to_compare_with():
    with pytest.raises(InputError, match="0 of evaluation"):
        make_reference([{}], [])


def test_a_models_own_card_goes_before_what_ships(tmp_path, monkeypatch):
    monkeypatch.setattr(familiarity, "SHIPPED", tmp_path / "familiar.json")
    card = Card({"name": "mine", "k": 4})
    assert find_reference(card) is None
    (tmp_path / "familiar.json").write_text(json.dumps({"mine": {"k": 4, "threshold": 2}, "other": {"k": 8}}))
    assert find_reference(card)["threshold"] == 2
    assert find_reference(Card({"name": "other", "k": 4})) is None, "another factor, other scans"
    assert find_reference(Card({**card, "familiar": {"threshold": 3}}))["threshold"] == 3


def test_every_model_that_ships_has_ranges():
    for info in list_shipped():
        reference = find_reference(read_card(info.name))
        assert set(reference["ranges"]) == set(FIGURES)
        low, high = reference["white_matter_ratio"]
        assert 0.9 < low < high < 1.25
        assert reference["false_alarms"] <= 0.1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scan", "name", "words"),
    [
        ("sub-lfD1/anat/sub-lfD1_T1w.nii.gz", "iqt-k8", FIGURES["Coverage"].low),
        ("sub-lfD2/anat/sub-lfD2_T2w.nii.gz", "iqt-k8", FIGURES["BrightLevel"].high),
    ],
)
def test_four_slices_at_low_field_and_another_contrast_are_flagged(real_data, scan, name, words):
    image = nib.load(real_data / "mixed" / scan)
    data, card = np.asarray(image.dataobj, dtype=np.float32), read_card(name)
    brain = find_brain_mask(data, image.affine)
    axis = find_slice_geometry(image).axis
    values = measure_scan(data, brain.mask, axis=axis, voxel_mm=voxel_sizes(image.affine), k=card["k"])
    found = compare(values, find_reference(card))
    assert found.unfamiliar
    assert any(words in reason for reason in found.reasons)
