"""A site's own SNR prior: measured on scans whose SNR is known, and fitted to them."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
from clinics import dataset, iqtflow
from conftest import make_affine, make_head, write_scan
from phantoms import make_brain
from validate_bids import find_faults

from iqtflow.cli import main as cli
from iqtflow.cli.commands.calibrate import main as calibrate
from iqtflow.simulation.artifacts import Extras
from iqtflow.simulation.noise_estimation import estimate_noise
from iqtflow.simulation.simulate import SliceStack, draw_scan, prepare_subject, realise
from iqtflow.simulation.slice_profile import apply_profile, profile_matrix
from iqtflow.simulation.snr_estimation import (
    ENOUGH_SCANS,
    SCANS_FOR_SCATTER,
    fit_prior,
    measure_snr,
    scaled_covariance,
)
from iqtflow.simulation.snr_prior import PUBLISHED, SNRPrior, read_prior
from iqtflow.utils.errors import InputError

REFERENCE = PUBLISHED["ibadan-0.36T"]
#: Not the published one: another level, another spread, another contrast, a looser correlation (0.85).
SITE = SNRPrior("known", (35.0, 25.0), ((25.0, 17.0), (17.0, 16.0)))
#: A usual contrast of grey to white matter (0.8).
BRIGHT = SNRPrior("bright", (35.0, 28.0), ((25.0, 17.0), (17.0, 16.0)))
VOXEL_MM = (1.0, 1.0, 4.0)


def phantom():
    """A brain's draw-independent part, and its true maps on the thick-slice grid."""
    brain = make_brain((72, 80, 72))
    subject = prepare_subject(
        brain.intensity, (brain.wm, brain.gm), np.diag([-1.0, 1, 1, 1]), SliceStack(2, 4.0, 3.0)
    )
    matrix = profile_matrix(72, 4, 3.0)
    maps = [apply_profile(m.astype(np.float32), 2, matrix) for m in (brain.wm, brain.gm, brain.mask)]
    return subject, maps[0], maps[1], maps[2] > 0.5


@pytest.fixture(scope="module")
def site():
    """Thirty scans simulated from a known prior, with Rician noise; what was drawn and what was measured."""
    subject, wm, gm, mask = phantom()
    drawn, measured = {}, {}
    for seed in range(30):
        draw = draw_scan(SITE, Extras(), SliceStack(2, 4.0, 3.0), seed=seed)
        scan = realise(subject, draw, distribution="rician")
        snr = measure_snr(scan, wm, gm, mask, axis=2, voxel_mm=VOXEL_MM)
        drawn[f"{seed:02d}"], measured[f"{seed:02d}"] = draw.snr, (snr.wm, snr.gm)
    return drawn, measured


def correlation(covariance):
    covariance = np.asarray(covariance)
    return covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])


def test_the_known_prior_of_thirty_scans_is_recovered(site):
    """Mean within 5 % and correlation within 0.1 of what the scans were simulated from."""
    drawn, measured = site
    calibration = fit_prior(measured)
    values = np.array(list(drawn.values()))
    np.testing.assert_allclose(calibration.prior.mean, values.mean(axis=0), rtol=0.05)
    np.testing.assert_allclose(calibration.prior.mean, SITE.mean, rtol=0.05)
    assert correlation(calibration.prior.covariance) == pytest.approx(correlation(SITE.covariance), abs=0.1)
    assert calibration.weight == 1 and calibration.n_scans == 30 and not calibration.outliers


def test_a_scan_that_is_unlike_the_others_is_named_and_left_out(site):
    """Grey matter brighter than white: a T2w scan among T1w ones, or a segmentation gone wrong."""
    _, measured = site
    plain = fit_prior(measured)
    spoilt = fit_prior({**measured, "sub-odd_T1w": (25.0, 36.0)})
    assert list(spoilt.outliers) == ["sub-odd_T1w"]
    assert any("sub-odd_T1w" in note for note in spoilt.notes)
    np.testing.assert_allclose(spoilt.prior.mean, plain.prior.mean)


@pytest.mark.parametrize("n", [1, 2, 5, 10])
def test_few_scans_shrink_the_covariance_towards_the_published_one_and_say_so(site, n):
    _, measured = site
    few = fit_prior(dict(list(measured.items())[:n]))
    mean = np.array(list(measured.values())[:n]).mean(axis=0)
    np.testing.assert_allclose(few.prior.mean, mean)
    assert few.weight == (n - 1) / (ENOUGH_SCANS - 1)
    assert ("too few scans" in few.notes[0]) == (n < SCANS_FOR_SCATTER)
    assert "fewer than the 20" in few.notes[-1] and "ibadan-0.36T" in few.notes[-1]
    if n == 1:
        np.testing.assert_allclose(few.prior.covariance, scaled_covariance(REFERENCE, mean))


def test_scans_that_are_all_alike_still_make_a_prior_that_can_be_drawn_from():
    alike = fit_prior({str(i): (40.0, 30.0) for i in range(12)})
    assert np.linalg.eigvalsh(np.array(alike.prior.covariance)).min() > 0
    assert min(alike.prior.sample(np.random.default_rng(0))) > 0


def test_the_published_prior_stays_what_it_is_when_its_own_scans_are_fitted():
    rng = np.random.default_rng(4)
    fitted = fit_prior({str(i): REFERENCE.sample(rng) for i in range(2000)})
    np.testing.assert_allclose(fitted.prior.mean, REFERENCE.mean, rtol=0.02)
    np.testing.assert_allclose(fitted.prior.covariance, REFERENCE.covariance, rtol=0.12)
    assert len(fitted.outliers) < 10


@pytest.mark.parametrize("snr", [{}, {"a": (0.0, 5.0)}, {"a": (np.nan, 5.0)}])
def test_no_scan_and_no_number_make_no_prior(snr):
    with pytest.raises(InputError, match="tissue SNR"):
        fit_prior(snr)


def head(noise, *, magnitude=True, sigma=10.0, seed=0):
    rng = np.random.default_rng(seed)
    subject, wm, _, mask = phantom()
    clean = subject.intensity.numpy()
    real = clean + sigma * rng.standard_normal(clean.shape)
    if not magnitude:
        return real.astype(np.float32), wm, mask
    parts = [real**2 + (sigma * rng.standard_normal(clean.shape)) ** 2]
    parts += [2 * (sigma * rng.standard_normal(clean.shape)) ** 2 for _ in range(noise - 1)]
    return np.sqrt(np.sum(parts, axis=0)).astype(np.float32), wm, mask


@pytest.mark.parametrize(
    ("make", "method"),
    [
        (lambda: head(1), "air-rayleigh"),
        (lambda: head(1, magnitude=False), "air-gaussian"),
        (lambda: (lambda d, w, m: (d * m, w, m))(*head(1)), "tissue-mad"),
        (lambda: (lambda d, w, m: (np.where(d > 25, d, 0), w, m))(*head(1)), "tissue-mad"),
        (lambda: head(8), "tissue-mad"),
    ],
    ids=["magnitude", "real-valued", "erased air", "thresholded air", "eight coils"],
)
def test_the_noise_is_found_and_the_way_it_was_found_is_said(make, method):
    data, wm, mask = make()
    noise = estimate_noise(data, mask, wm, axis=2, voxel_mm=VOXEL_MM)
    assert noise.method == method
    # inside tissue a few per cent of anatomical texture come on top
    assert noise.sigma == pytest.approx(10.0, rel=0.02 if method.startswith("air") else 0.1)
    assert noise.note and noise.n_voxels > 400


def test_the_noise_of_interpolated_voxels_is_not_taken_for_less():
    """Interpolation correlates the noise of neighbours, so that their difference understates it."""
    rng = np.random.default_rng(0)
    frequencies = np.fft.fftshift(np.fft.fft2(10 * rng.standard_normal((60, 60, 12)), axes=(0, 1)), (0, 1))
    filled = np.fft.ifftshift(np.pad(frequencies, ((30, 30), (30, 30), (0, 0))), (0, 1))
    scan = 500 + 4 * np.fft.ifft2(filled, axes=(0, 1)).real  # zero-filled to 120 x 120, as scanners do
    mask = np.ones(scan.shape, bool)
    noise = estimate_noise(scan, mask, mask.astype(np.float32), axis=2, voxel_mm=VOXEL_MM)
    assert "interpolated" in noise.note
    assert noise.sigma == pytest.approx(scan.std(), rel=0.1)


def test_a_scan_without_noise_has_no_snr():
    _, wm, gm, mask = phantom()
    with pytest.raises(InputError, match="noise"):
        measure_snr(np.where(mask, 500.0, 0), wm, gm, mask, axis=2, voxel_mm=VOXEL_MM)


def test_the_prior_that_is_written_is_one_that_training_takes(site, tmp_path, capsys):
    _, measured = site
    paths = []
    for label, (wm, gm) in measured.items():
        fields = {"Scan": label, "SNR": {"WM": wm, "GM": gm}, "Noise": {"method": "air-rayleigh"}}
        paths.append(tmp_path / f"{label}.json")
        paths[-1].write_text(json.dumps(fields))
    out, picture = tmp_path / "prior.json", tmp_path / "prior.png"
    command = ["fit", *map(str, paths), "--output", str(out), "--figure", str(picture)]
    assert calibrate(command) == 0
    assert read_prior(out).mean == fit_prior(measured).prior.mean
    assert json.loads(out.read_text())["n_scans"] == 30
    told = capsys.readouterr().out
    assert all(f"{label} " in told and f"{wm:.1f}" in told for label, (wm, _) in measured.items())
    before = picture.read_bytes()
    assert calibrate(command) == 0 and picture.read_bytes() == before
    paths[0].write_text("{}")
    assert calibrate(command) == 1 and str(paths[0]) in capsys.readouterr().err


def write_low_field(path, *, seed, prior=SITE):
    """An average brain (MNI, which nilearn brings along) in 6 mm slices with noisy air; returns its SNR."""
    from nilearn import datasets

    loaders = (getattr(datasets, f"load_mni152_{name}template") for name in ("", "wm_", "gm_"))
    images = [load(resolution=2) for load in loaders]
    intensity, wm, gm = (np.asarray(image.get_fdata(), np.float32) for image in images)
    total = np.maximum(wm + gm, 1)
    stack = SliceStack(2, spacing_mm=6.0, thickness_mm=5.0)
    draw = draw_scan(prior, Extras(), stack, seed=seed)
    subject = prepare_subject(
        1000 * intensity / intensity.max(), (wm / total, gm / total), images[0].affine, stack
    )
    write_scan(path, np.ascontiguousarray(realise(subject, draw, distribution="rician")), subject.affine)
    return draw.snr


@pytest.mark.slow
def test_a_sites_scans_become_a_prior_by_one_command(tmp_path):
    """Two scans of known SNR through the real segmentation, and a high-field one, which is skipped.

    At an SNR of 30 in 6 mm slices intensities alone give bright grey matter to white, and grey matter comes
    out up to 20 % low; the atlas tells them apart.
    """
    bids, out = dataset(tmp_path / "bids"), tmp_path / "out"
    drawn = [
        write_low_field(bids / f"sub-{i}" / "anat" / f"sub-{i}_T1w.nii.gz", seed=i, prior=BRIGHT)
        for i in (1, 2)
    ]
    write_scan(bids / "sub-9" / "anat" / "sub-9_T1w.nii.gz", make_brain().intensity, make_affine((1, 1, 1)))
    options = ["--mode", "calibrate", "-w", tmp_path / "work", "--segmentation", "ants", "--nprocs", "1"]
    run = iqtflow(bids, out, "participant", "group", *options)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "sub-9_T1w.nii.gz: skipped: near-isotropic" in run.stdout
    names = sorted(p.name for p in (out / "calibration").iterdir())
    each = (f"sub-{i}_T1w_snr.{kind}" for i in (1, 2) for kind in ("json", "png"))
    assert names == ["prior.json", "prior.png", *each]
    assert "sub-2_T1w_snr.png" in (out / "calibration.html").read_text()
    measured = json.loads((out / "calibration" / "sub-1_T1w_snr.json").read_text())
    assert measured["Sources"] == ["bids:raw:sub-1/anat/sub-1_T1w.nii.gz"]
    # Not the thickness: an average brain has less detail than a person's.
    fitted = json.loads((out / "calibration" / "prior.json").read_text())["scanner"]
    assert measured["Scanner"]["noise_distribution"] == fitted["noise_distribution"] == "rician"
    assert fitted["stripes"]["median"] == 0 and fitted["n_scans"] == 2
    assert f"{measured['SNR']['WM']:.1f}  " in run.stdout and "Slice thickness / spacing" in run.stdout
    prior = read_prior(out / "calibration" / "prior.json")
    print("drawn", np.mean(drawn, axis=0), "measured", prior.mean)
    np.testing.assert_allclose(prior.mean, np.mean(drawn, axis=0), rtol=0.05)
    assert "calibration" in (out / ".bidsignore").read_text().splitlines()
    # No image is written, and the site's data set names no authors, whom nobody may invent.
    unavoidable = [
        f"warning: {code} /dataset_description.json" for code in ("SUBJECT_FOLDERS", "TOO_FEW_AUTHORS")
    ]
    assert sorted(find_faults(out)) == unavoidable
    citation = (out / "logs" / "CITATION.md").read_text()
    assert "ICBM 152 template (Fonov et al., 2011)" in citation
    assert "equation 4" in citation and "fitted" in citation


def test_group_level_without_participant_level_says_what_to_run_first(tmp_path, capsys):
    bids, out = dataset(tmp_path / "bids"), tmp_path / "out"
    write_scan(bids / "sub-1" / "anat" / "sub-1_T1w.nii.gz", np.ones((4, 4, 4), np.float32), np.eye(4))
    assert cli.main([str(bids), str(out), "group", "--mode", "calibrate", "--device", "cpu"]) == 2
    told = capsys.readouterr().err
    assert "participant level" in told and "Traceback" not in told


def test_maps_of_another_scan_are_refused(tmp_path, capsys):
    for name, shape in (("scan", (40, 40, 10)), ("map", (40, 40, 12))):
        nib.save(nib.Nifti1Image(make_head(shape), np.diag([4, 4, 5, 1])), tmp_path / f"{name}.nii")
    maps = [f"--{name}={tmp_path / 'map.nii'}" for name in ("wm", "gm", "mask")]
    assert calibrate(["scan", str(tmp_path / "scan.nii"), str(tmp_path / "snr.json"), *maps]) == 1
    assert "grid" in capsys.readouterr().err
    assert not (tmp_path / "snr.json").exists()
