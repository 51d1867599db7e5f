"""What a correct low-field simulator satisfies, checked on phantoms (Lin et al. 2019, Algorithm 1)."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from conftest import write_scan

from iqtflow.cli.commands.simulate import main as simulate
from iqtflow.simulation.forward_model import add_noise, contrast_ratios
from iqtflow.simulation.slice_profile import decimation_matrix
from iqtflow.simulation.snr_prior import PUBLISHED, SNRPrior, read_prior, tissue_mean
from iqtflow.utils.errors import InputError


def test_white_matter_keeps_its_intensity_and_grey_matter_comes_closer():
    ratios = contrast_ratios((61.0, 53.0), 1000.0, 700.0)
    assert ratios.wm == 1
    assert ratios.gm * 700 / 1000 == pytest.approx(53 / 61)
    assert ratios.sigma == pytest.approx(1000 / 61)
    swapped = contrast_ratios((61.0, 53.0), 1000.0, 700.0, fixed="GM")
    assert swapped.gm == 1 and swapped.wm * 1000 / swapped.sigma == pytest.approx(61)


def test_rician_noise_has_the_rayleigh_mean_where_there_is_no_signal():
    noise = add_noise(torch.zeros(64, 64, 64), 10.0, torch.Generator().manual_seed(0), distribution="rician")
    assert float(noise.mean()) == pytest.approx(10 * np.sqrt(np.pi / 2), rel=0.01)
    assert float(noise.min()) >= 0


def test_draws_follow_the_published_distribution():
    prior = PUBLISHED["ibadan-0.36T"]
    rng = np.random.default_rng(0)
    alpha = np.array([prior.sample(rng) for _ in range(20_000)])
    np.testing.assert_allclose(alpha.mean(axis=0), prior.mean, rtol=0.005)
    assert np.corrcoef(alpha.T)[0, 1] == pytest.approx(71.5 / np.sqrt(78.47 * 73.91), abs=0.01)


def test_no_drawn_snr_is_negative_even_from_a_wide_prior():
    wide = SNRPrior("wide", (5.0, 4.0), ((100.0, 10.0), (10.0, 100.0)))
    rng = np.random.default_rng(0)
    assert min(min(wide.sample(rng)) for _ in range(500)) > 0


def test_a_prior_survives_json(tmp_path):
    file = tmp_path / "site.json"
    file.write_text(json.dumps(PUBLISHED["ibadan-0.36T"].as_dict()))
    assert read_prior(file) == PUBLISHED["ibadan-0.36T"]


@pytest.mark.parametrize(("n", "k", "thickness"), [(3, 4, 3.0), (40, 4, 0.0), (40, 4, 4.5)])
def test_an_impossible_slab_is_refused(n, k, thickness):
    with pytest.raises(InputError):
        decimation_matrix(n, k, thickness)


def test_an_empty_tissue_map_is_refused():
    with pytest.raises(InputError, match="WM"):
        tissue_mean(np.ones((4, 4, 4)), np.zeros((4, 4, 4)), tissue="WM")


def test_the_same_seed_gives_the_same_bytes_on_one_and_two_threads(brain_files, tmp_path):
    threads = torch.get_num_threads()
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            assert run(brain_files, tmp_path / f"{n}.nii.gz", "--seed", "7") == 0
    finally:
        torch.set_num_threads(threads)
    assert (tmp_path / "1.nii.gz").read_bytes() == (tmp_path / "2.nii.gz").read_bytes()
    run(brain_files, tmp_path / "other.nii.gz", "--seed", "8")
    assert (tmp_path / "other.nii.gz").read_bytes() != (tmp_path / "1.nii.gz").read_bytes()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", "cannot be read"),
        ("[]", "a list at the top"),
        ("[" * 100_000, "cannot be read"),
        ('{"mean": [60, 50]}', "found no covariance"),
        ('{"mean": [1, 2], "covariance": [[1, 0], [0, 1]], "tissues": 5}', "cannot be read"),
        (f'{{"mean": [1, {"9" * 400}], "covariance": [[1, 0], [0, 1]]}}', "prior"),
        ('{"mean": [60, 50], "covariance": [[1, 2], [2, 1]]}', "positive definite"),
        ('{"mean": [-1, 50], "covariance": [[1, 0], [0, 1]]}', "from 0.1 to 1e"),
        ('{"mean": [60, 50], "covariance": [[1, 0], [0, 1]], "tissues": ["GM", "WM"]}', "tissues"),
        ('{"mean": [1e308, 2], "covariance": [[0, 0], [0, 0]]}', "from 0.1 to 1e"),
        ('{"mean": [true, 2], "covariance": [[0, 0], [0, 0]]}', "true"),
        ('{"mean": [60, 50], "covariance": [[1e300, 0], [0, 1]]}', "symmetric"),
    ],
)
def test_a_prior_that_is_no_distribution_is_refused(tmp_path, text, named):
    (tmp_path / "prior.json").write_text(text)
    with pytest.raises(InputError, match=named):
        read_prior(tmp_path / "prior.json")


def run(folder, out, *extra):
    maps = ("--wm", str(folder / "wm.nii.gz"), "--gm", str(folder / "gm.nii.gz"))
    return simulate([str(folder / "t1.nii.gz"), str(out), *maps, "--slice-axis", "z", *extra])


def test_the_sidecar_says_what_was_drawn(brain_files, tmp_path):
    extra = ("--json", str(tmp_path / "low.json"), "--seed", "3", "--prior", "fixed-61-53")
    assert run(brain_files, tmp_path / "low.nii.gz", *extra) == 0
    fields = json.loads((tmp_path / "low.json").read_text())
    assert fields["SNR"] == {"WM": 61.0, "GM": 53.0} and fields["Seed"] == 3
    layout = [fields[f"Slice{name}"] for name in ("Thickness", "Gap", "Axis")]
    assert layout == [3.0, 1.0, "k"] and fields["SpacingBetweenSlices"] == 4.0


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--k", "4", "--thickness-mm", "3", "--gap-mm", "2"), "thickness 3 mm"),
        (("--k", "64"), "thin slices"),
        (("--prior", "nowhere"), "nowhere"),
        (("--wm", "small.nii"), "grid"),
    ],
)
def test_settings_that_make_no_scan_end_in_a_sentence_and_leave_no_file(
    brain_files, tmp_path, monkeypatch, capsys, extra, message
):
    monkeypatch.chdir(brain_files)
    write_scan(brain_files / "small.nii", np.ones((20, 20, 20), np.float32), np.eye(4))
    assert run(brain_files, tmp_path / "low.nii.gz", *extra) == 1
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
