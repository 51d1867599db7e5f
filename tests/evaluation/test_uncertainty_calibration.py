"""Whether an uncertainty map tells where the errors are."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
from small_models import write_model

from iqtflow.cli.commands.evaluate import main
from iqtflow.evaluation.uncertainty_calibration import (
    in_percent,
    reliability,
    reliability_phrase,
    summarise_reliability,
)
from iqtflow.utils.errors import InputError


@pytest.fixture
def volumes():
    """Truth, an estimate whose error is drawn with the standard deviation that the map states, the map."""
    rng = np.random.default_rng(0)
    truth = rng.uniform(500, 1000, (40, 40, 40))
    std = rng.uniform(1, 50, truth.shape)
    return truth, truth + std * rng.standard_normal(truth.shape), std


def test_a_calibrated_map_is_found_to_be_one(volumes):
    found = reliability(*volumes, np.ones((40, 40, 40), bool))
    assert found["error_over_std"] == pytest.approx(1, abs=0.02)
    assert found["within_1_std"] == pytest.approx(0.683, abs=0.01)
    assert found["within_2_std"] == pytest.approx(0.954, abs=0.01)
    assert found["spearman"] > 0.4
    assert found["spearman_bins"] > 0.98
    for row in found["bins"]:
        assert row["error"] == pytest.approx(row["std"], rel=0.1)


def test_an_overconfident_map_is_found_to_be_one(volumes):
    truth, estimate, std = volumes
    assert reliability(truth, estimate, std / 3, truth > 0)["error_over_std"] == pytest.approx(3, abs=0.1)


def test_a_map_that_knows_nothing_has_no_correlation(volumes):
    truth, estimate, std = volumes
    shuffled = np.random.default_rng(1).permutation(std.ravel()).reshape(std.shape)
    assert abs(reliability(truth, estimate, shuffled, truth > 0)["spearman"]) < 0.02


def test_only_the_mask_counts(volumes):
    truth, estimate, std = volumes
    mask = np.zeros(truth.shape, bool)
    mask[10:30, 10:30, 10:30] = True
    spoiled = np.where(mask, estimate, 1e6)
    assert reliability(truth, spoiled, std, mask) == reliability(truth, estimate, std, mask)


def test_a_map_without_variation_is_refused(volumes):
    truth, estimate, std = volumes
    with pytest.raises(InputError, match="varies within the brain"):
        reliability(truth, estimate, np.ones_like(std), truth > 0)


def of_person(gain, *, scale=1.0, seed=0):
    """Reliability of a map that states errors `gain` times too small, of a scan with its own grey scale."""
    rng = np.random.default_rng(seed)
    truth = rng.uniform(500, 1000, (24, 24, 24))
    truth[0, 0, 0] = 1000
    std = np.linspace(1, 41, truth.size).reshape(truth.shape)
    signs = rng.choice([-1, 1], truth.shape)
    found = reliability(scale * truth, scale * (truth + gain * std * signs), scale * std, truth > 0)
    return in_percent(found)


def test_curves_of_scans_with_different_grey_scales_are_the_same_in_percent_of_range():
    one, other = of_person(1), of_person(1, scale=1e-3)
    assert one["units"] == "% of the truth's maximum inside the brain"
    for row, same in zip(one["bins"], other["bins"], strict=True):
        assert row == pytest.approx(same)
    # From 1 to 41 of 1000, in 20 bins: their middles, and from the second on their root mean squares.
    stds = [row["std"] for row in one["bins"]]
    assert stds[1:] == pytest.approx(np.linspace(0.2, 4, 20)[1:].tolist(), rel=0.02)


def test_people_are_averaged_and_the_extremes_are_kept():
    summary = summarise_reliability([of_person(0.999), of_person(1.999, scale=7, seed=1)])
    assert summary["n"] == 2
    assert summary["error_over_std"] == pytest.approx({"mean": 1.5, "min": 1, "max": 2}, abs=0.01)
    assert summary["within_1_std"] == pytest.approx({"mean": 0.5, "min": 0, "max": 1}, abs=0.01)
    assert summary["within_2_std"]["min"] == pytest.approx(1, abs=0.01)
    assert summary["spearman_bins"]["min"] == pytest.approx(1)
    for row in summary["bins"]:
        assert row["error"] == pytest.approx(1.5 * row["std"], rel=0.02)
        assert row["error_min"] == pytest.approx(row["std"], rel=0.02)
        assert row["error_max"] == pytest.approx(2 * row["std"], rel=0.02)
    assert reliability_phrase(summary).startswith("error / standard deviation 1.50, within 1 std 50 %")


def test_the_command_shows_the_curve(volumes, tmp_path, capsys):
    paths = [tmp_path / name for name in ("truth.nii", "estimate.nii", "std.nii")]
    for path, volume in zip(paths, volumes, strict=True):
        nib.save(nib.Nifti1Image(volume.astype(np.float32), np.eye(4)), path)
    out = tmp_path / "figures.json"
    assert main([str(paths[0]), str(paths[1]), "--std", str(paths[2]), "--json", str(out)]) == 0
    said = capsys.readouterr().out
    assert "Spearman's rho" in said
    found = json.loads(out.read_text())[str(paths[1])]["reliability"]
    assert len(found["bins"]) == 20
    assert found["error_over_std"] == pytest.approx(1, abs=0.02)


def test_an_ensemble_of_joined_files_has_an_uncertainty_map_that_grows_with_its_error(tmp_path):
    """The truth is the output of a fifth network like the other four: it differs where they disagree."""
    from iqtflow.inference.predict import enhance_volume
    from iqtflow.models.model_file import join_models, load_model

    paths = [tmp_path / f"m{seed}.safetensors" for seed in range(5)]
    files = [write_model(path, trained=0.2, first_seed=seed) for seed, path in enumerate(paths)]
    ensemble = load_model(join_models(tmp_path / "all.safetensors", files[:4], name="all"))
    # Bright and dark halves: what the networks add, and so their disagreement, goes with the brightness.
    scan = np.random.default_rng(0).random((40, 48, 10)).astype(np.float32) + 5
    scan[:20] *= 4
    result, truth = (enhance_volume(scan, m, scale=1.0) for m in (ensemble, load_model(files[4])))
    found = reliability(truth.mean, result.mean, result.std, np.ones(truth.mean.shape, bool))
    assert found["spearman"] > 0.1
    assert found["bins"][-1]["error"] > 1.5 * found["bins"][0]["error"]
