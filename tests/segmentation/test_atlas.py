"""Tissues of thick slices are found from intensities and prior probabilities."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from nilearn import datasets

from iqtflow.cli.commands.segment import main as segment
from iqtflow.segmentation.atlas import LEAST_OVERLAP, classify_with_priors, register_atlas
from iqtflow.segmentation.atropos import segment_tissues
from iqtflow.segmentation.mixture import fit_tissue_mixture
from iqtflow.simulation.slice_profile import apply_profile, profile_matrix

MEAN = np.array([20.0, 84.0, 105.0])  # CSF, GM, WM


def test_priors_find_the_means_of_tissues_when_intensities_alone_do_not():
    """Little contrast and many mixed voxels, as in thick slices at low field: GM is taken for WM, and fluid
    with GM for GM.
    """
    rng = np.random.default_rng(0)
    place = rng.dirichlet((0.3, 0.5, 0.6), 40_000)
    share = np.stack([rng.multinomial(2, p) for p in place]).T / 2  # two thin voxels in each
    values = MEAN @ share + rng.normal(0, 4, share.shape[1])
    told = classify_with_priors(values, place.T)
    np.testing.assert_allclose(told.sum(axis=0), 1, atol=1e-5)

    def error(posterior):
        majority = np.where(posterior >= 0.5, posterior, 0)
        return np.abs((majority @ values) / majority.sum(axis=1) / MEAN - 1)[1:]

    assert error(told).max() < 0.04
    assert error(fit_tissue_mixture(values).posteriors(values))[0] > 0.15


def test_voxels_of_one_intensity_and_of_no_prior_make_no_nan():
    priors = np.full((3, 500), 1 / 3)
    values = np.repeat([10.0, 60.0, 100.0, 100.0, 100.0], 100)
    assert np.isfinite(classify_with_priors(values, priors)).all()


def test_an_atlas_for_an_engine_that_has_none_is_refused(tmp_path, capsys):
    command = [str(tmp_path / "T1w.nii.gz"), "--out-prefix", str(tmp_path / "a"), "--priors", "atlas"]
    assert segment([*command, "--engine", "spm"]) == 2
    assert "--engine spm" in capsys.readouterr().err


@pytest.fixture(scope="module")
def template():
    """Return the template brain and its tissues in slices of 6 mm, in an unusual axis order."""
    names = ("template", "wm_template", "gm_template", "brain_mask")
    images = [getattr(datasets, f"load_mni152_{name}")(resolution=2) for name in names]
    turn = ornt_transform(io_orientation(images[0].affine), axcodes2ornt("PIR"))
    matrix = profile_matrix(images[0].shape[2], 3, 2.5)
    thick = [apply_profile(image.get_fdata(dtype=np.float32), 2, matrix) for image in images]
    affine = images[0].affine @ np.diag([1, 1, 3, 1])
    affine[:3, 3] += images[0].affine[:3, 2]  # the middle of three
    volumes = [np.ascontiguousarray(apply_orientation(volume, turn)) for volume in thick]
    return volumes, affine @ inv_ornt_aff(turn, thick[0].shape)


@pytest.mark.slow
def test_the_atlas_finds_its_place_in_thick_slices_of_any_orientation_and_twice_the_same(
    template, monkeypatch
):
    monkeypatch.setenv("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "1")
    import ants

    (intensity, wm, gm, mask), affine = template
    moved = affine.copy()
    moved[:3, 3] += (12, -20, 15)  # another scanner's centre
    runs = [register_atlas(ants, intensity, mask > 0.5, moved) for _ in range(2)]
    found = runs[0]
    assert found.overlap > 0.95 > LEAST_OVERLAP
    np.testing.assert_allclose(found.maps.sum(axis=0), 1, atol=1e-5)
    brain = mask > 0.5
    for prior, truth in ((found.maps[1], gm), (found.maps[2], wm)):
        assert np.corrcoef(prior[brain], truth[brain])[0, 1] > 0.95
    np.testing.assert_array_equal(found.maps, runs[1].maps)


@pytest.mark.slow
def test_a_slab_is_told_by_intensity_alone_and_the_record_says_so():
    """Four thick slices show too little of a brain for the registration of an atlas."""
    rng = np.random.default_rng(0)
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in (64, 72, 4)), indexing="ij")
    radius = np.hypot(axes[0], axes[1]) / 0.9
    data = np.select([radius < 0.2, radius < 0.6, radius < 0.9, radius < 1], [30.0, 105.0, 75.0, 30.0], 0)
    data = np.where(radius < 1, data + rng.normal(0, 2, data.shape), 0).astype(np.float32)
    image = nib.Nifti1Image(data, np.diag([2.5, 2.5, 10.0, 1.0]))
    mask = radius < 1
    with_atlas = segment_tissues(image, mask=mask, priors="atlas")
    assert with_atlas.details["atlas"] is None
    assert "field of view of 40 mm" in with_atlas.details["remarks"][0]
    np.testing.assert_array_equal(with_atlas.gm, segment_tissues(image, mask=mask).gm)
