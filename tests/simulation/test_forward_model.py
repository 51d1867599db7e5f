"""What a correct low-field simulator satisfies, checked on phantoms (Lin et al. 2019, Algorithm 1)."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import make_affine
from phantoms import make_brain
from scipy import ndimage

from iqtflow.cli.commands.simulate import main as simulate
from iqtflow.image.geometry import thick_affine
from iqtflow.simulation.forward_model import add_noise, contrast_ratios, decimate, recontrast
from iqtflow.simulation.slice_profile import decimation_matrix
from iqtflow.simulation.snr_prior import PUBLISHED, SNRPrior, read_prior, tissue_mean
from iqtflow.utils.errors import InputError


def thick_maps(brain, k=4, thickness=3.0):
    matrix = decimation_matrix(brain.intensity.shape[2], k, thickness)
    return [decimate(torch.from_numpy(v), matrix) for v in (brain.intensity, brain.wm, brain.gm)]


def test_drawn_snr_is_measured_back():
    """On a phantom of pure tissues: mean in the eroded tissue over the noise in the background."""
    slab = np.zeros((96, 96, 96), np.float32)
    wm, gm = slab.copy(), slab.copy()
    wm[8:44, 8:88, 8:88] = 1
    gm[52:88, 8:88, 8:88] = 1
    intensity = 900 * wm + 650 * gm
    alpha = (64.5, 54.1)
    ratios = contrast_ratios(
        alpha, tissue_mean(intensity, wm, tissue="WM"), tissue_mean(intensity, gm, tissue="GM")
    )
    matrix = decimation_matrix(96, 4, 3.0)
    thick = [decimate(torch.from_numpy(v), matrix) for v in (intensity, wm, gm)]
    low = add_noise(
        recontrast(*thick, ratios.wm, ratios.gm), ratios.sigma, torch.Generator().manual_seed(3)
    ).numpy()
    noise = low[:4].std()
    for tissue, snr in ((thick[1], alpha[0]), (thick[2], alpha[1])):
        inside = ndimage.binary_erosion(tissue.numpy() > 0.999, iterations=2)
        assert low[inside].mean() / noise == pytest.approx(snr, rel=0.02)


def test_the_slice_profile_is_as_wide_as_the_slice_is_thick():
    """A thin plane moved through the slab traces the profile: full width at half maximum = thickness."""
    k, thickness = 8, 6.0
    matrix = decimation_matrix(80, k, thickness)
    profile = matrix[5]
    fine = np.linspace(0, 79, 7901)
    above = fine[np.interp(fine, np.arange(80), profile) >= profile.max() / 2]
    # the maximum lies between two samples (k even), so the sampled maximum is a little low
    assert above[-1] - above[0] == pytest.approx(thickness, abs=0.15)
    assert fine[np.argmax(np.interp(fine, np.arange(80), profile))] == pytest.approx(
        5 * k + (k - 1) / 2, abs=0.51
    )


@pytest.mark.parametrize("k", [2, 3, 4, 8])
def test_a_phantoms_centroid_does_not_move(k):
    brain = make_brain()
    depth = brain.intensity.shape[2] // k * k
    affine = make_affine((0.7, 0.7, 0.7))
    ball = ndimage.gaussian_filter(make_brain().mask.astype(np.float32), 4)[:, :, :depth]
    thick = decimate(torch.from_numpy(ball), decimation_matrix(depth, k, 0.75 * k)).numpy()
    before = nib.affines.apply_affine(affine, ndimage.center_of_mass(ball))
    after = nib.affines.apply_affine(thick_affine(affine, k), ndimage.center_of_mass(thick))
    np.testing.assert_allclose(after, before, atol=0.05)


def test_tissue_probabilities_still_sum_to_one():
    brain = make_brain()
    other = 1 - brain.wm - brain.gm
    matrix = decimation_matrix(80, 4, 3.0)
    total = sum(decimate(torch.from_numpy(m.astype(np.float32)), matrix) for m in (brain.wm, brain.gm, other))
    np.testing.assert_allclose(total.numpy(), 1, atol=1e-5)


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


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "[" * 100_000,
        '{"mean": [1, 2]}',
        '{"mean": [1, 2], "covariance": [[1, 0], [0, 1]], "tissues": 5}',
        f'{{"mean": [1, {"9" * 400}], "covariance": [[1, 0], [0, 1]]}}',
        '{"mean": [60, 50], "covariance": [[1, 2], [2, 1]]}',
        '{"mean": [-1, 50], "covariance": [[1, 0], [0, 1]]}',
        '{"mean": [60, 50], "covariance": [[1, 0], [0, 1]], "tissues": ["GM", "WM"]}',
    ],
)
def test_a_prior_that_is_no_distribution_is_refused(tmp_path, content):
    file = tmp_path / "bad.json"
    file.write_text(content)
    with pytest.raises(InputError, match="bad"):
        read_prior(file)


@pytest.mark.parametrize(("n", "k", "thickness"), [(3, 4, 3.0), (40, 4, 0.0), (40, 4, 4.5)])
def test_an_impossible_slab_is_refused(n, k, thickness):
    with pytest.raises(InputError):
        decimation_matrix(n, k, thickness)


def test_an_empty_tissue_map_is_refused():
    with pytest.raises(InputError, match="WM"):
        tissue_mean(np.ones((4, 4, 4)), np.zeros((4, 4, 4)), tissue="WM")


@pytest.fixture(scope="module")
def phantom_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantom")
    brain = make_brain((48, 52, 40))
    for name, data in (("t1", brain.intensity), ("wm", brain.wm), ("gm", brain.gm)):
        nib.save(nib.Nifti1Image(data, make_affine((1, 1, 1))), folder / f"{name}.nii.gz")
    return folder


def run(folder, out, *extra, axis="z"):
    return simulate(
        [
            str(folder / "t1.nii.gz"),
            str(out),
            "--wm",
            str(folder / "wm.nii.gz"),
            "--gm",
            str(folder / "gm.nii.gz"),
            "--slice-axis",
            axis,
            *extra,
        ]
    )


def test_the_same_seed_gives_the_same_bytes_on_one_and_two_threads(phantom_files, tmp_path):
    threads = torch.get_num_threads()
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            assert run(phantom_files, tmp_path / f"{n}.nii.gz", "--seed", "7") == 0
    finally:
        torch.set_num_threads(threads)
    assert (tmp_path / "1.nii.gz").read_bytes() == (tmp_path / "2.nii.gz").read_bytes()
    run(phantom_files, tmp_path / "other.nii.gz", "--seed", "8")
    assert (tmp_path / "other.nii.gz").read_bytes() != (tmp_path / "1.nii.gz").read_bytes()


def test_any_slice_axis_gives_the_same_scan_up_to_reordering(phantom_files, tmp_path):
    """Slices along z of a volume are slices along x of the same volume with its axes turned."""
    source = nib.load(phantom_files / "t1.nii.gz")
    turned = tmp_path / "turned"
    turned.mkdir()
    for name in ("t1", "wm", "gm"):
        image = nib.load(phantom_files / f"{name}.nii.gz")
        affine = image.affine.copy()
        affine[:, :3] = affine[:, [2, 0, 1]]
        nib.save(
            nib.Nifti1Image(np.transpose(image.get_fdata(dtype=np.float32), (2, 0, 1)), affine),
            turned / f"{name}.nii.gz",
        )
    assert run(phantom_files, tmp_path / "z.nii.gz") == 0
    assert run(turned, tmp_path / "x.nii.gz", axis="x") == 0
    z, x = nib.load(tmp_path / "z.nii.gz"), nib.load(tmp_path / "x.nii.gz")
    # the noise is the same to the bit; the profile's sums run over memory in another order
    np.testing.assert_allclose(np.transpose(x.get_fdata(), (1, 2, 0)), z.get_fdata(), rtol=0, atol=1e-3)
    np.testing.assert_allclose(x.affine[:, [1, 2, 0, 3]], z.affine, atol=1e-5)
    assert z.shape == (48, 52, 10) and source.shape == (48, 52, 40)


def test_the_sidecar_says_what_was_drawn(phantom_files, tmp_path):
    assert (
        run(
            phantom_files,
            tmp_path / "low.nii.gz",
            "--json",
            str(tmp_path / "low.json"),
            "--seed",
            "3",
            "--prior",
            "fixed-61-53",
        )
        == 0
    )
    fields = json.loads((tmp_path / "low.json").read_text())
    assert fields["SNR"] == {"WM": 61.0, "GM": 53.0}
    assert (
        fields["SliceThickness"],
        fields["SliceGap"],
        fields["SpacingBetweenSlices"],
        fields["SliceAxis"],
    ) == (3.0, 1.0, 4.0, "k")
    assert fields["Seed"] == 3


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--k", "4", "--thickness-mm", "3", "--gap-mm", "2"), "thickness 3 mm"),
        (("--k", "64"), "thin slices"),
        (("--prior", "nowhere"), "nowhere"),
    ],
)
def test_settings_that_make_no_scan_end_in_a_sentence_and_leave_no_file(
    phantom_files, tmp_path, capsys, extra, message
):
    assert run(phantom_files, tmp_path / "low.nii.gz", *extra) == 1
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_maps_on_another_grid_are_refused(phantom_files, tmp_path, capsys):
    nib.save(nib.Nifti1Image(np.ones((20, 20, 20), np.float32), np.eye(4)), tmp_path / "wm.nii.gz")
    code = simulate(
        [
            str(phantom_files / "t1.nii.gz"),
            str(tmp_path / "low.nii.gz"),
            "--wm",
            str(tmp_path / "wm.nii.gz"),
            "--gm",
            str(phantom_files / "gm.nii.gz"),
        ]
    )
    assert code == 1 and "grid" in capsys.readouterr().err
