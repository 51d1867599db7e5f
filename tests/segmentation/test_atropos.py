"""Tissue maps recover known volumes despite a bias field, and impossible maps are refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nilearn import datasets
from scipy import ndimage

from iqtflow.cli.commands.segment import main
from iqtflow.segmentation.atropos import TissueMaps, check_plausible, segment_tissues
from iqtflow.segmentation.mixture import fit_tissue_mixture
from iqtflow.utils.errors import InputError

MEAN = {"csf": 30.0, "gm": 75.0, "wm": 110.0}
FINE = 2  # the phantom is made on a grid finer by this factor, so that border voxels are mixed


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


@pytest.fixture(scope="module")
def phantom() -> tuple[nib.Nifti1Image, dict[str, np.ndarray]]:
    """Return a brain of 1.2 l, 2 mm voxels, bias field of +-25 %, WM SNR 40; and its tissue fractions."""
    shape = np.array([70, 86, 66])
    axes = [(np.arange(n * FINE) + 0.5) / FINE - n / 2 for n in shape]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    radius = np.sqrt((x / 32) ** 2 + (y / 39) ** 2 + (z / 30) ** 2)
    # A folded border between GM and WM: thin plates of both, as in a cortex.
    folds = 0.74 + 0.05 * np.sin(x / 2.5) * np.sin(y / 2.5) * np.sin(z / 2.5)
    ventricle = radius < 0.2
    labels = {
        "csf": ventricle | ((radius >= 0.93) & (radius < 1)),
        "gm": (radius >= folds) & (radius < 0.93),
        "wm": (radius < folds) & ~ventricle,
    }
    blocks = [side for n in shape for side in (n, FINE)]
    truth = {name: label.reshape(blocks).mean(axis=(1, 3, 5)) for name, label in labels.items()}
    data = sum(MEAN[name] * fraction for name, fraction in truth.items())
    i, j, k = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    data = data * (1 + 0.25 * np.sin(1.5 * i) * np.cos(1.2 * j) + 0.1 * k)
    noise = np.random.default_rng(0).normal(0, MEAN["wm"] / 40, data.shape)
    data = np.where(sum(truth.values()) > 0.5, data + noise, 0)
    return nib.Nifti1Image(data.astype(np.float32), np.diag([2.0, 2.0, 2.0, 1.0])), truth


@pytest.fixture(scope="module")
def maps(phantom) -> TissueMaps:
    return segment_tissues(phantom[0], skull_stripped=True)


def test_probabilities_sum_to_one_in_the_brain_and_vanish_outside(maps):
    total = maps.wm + maps.gm + maps.csf
    assert np.abs(total[maps.mask] - 1).max() < 1e-6
    assert not total[~maps.mask].any()
    for tissue in (maps.wm, maps.gm, maps.csf):
        assert tissue.dtype == np.float32
        assert tissue.min() >= 0
        assert tissue.max() <= 1


@pytest.mark.parametrize(
    ("tissue", "tolerance", "overlap"), [("wm", 0.05, 0.95), ("gm", 0.1, 0.9), ("csf", 0.15, 0.85)]
)
def test_tissue_volumes_of_a_phantom_are_recovered(phantom, maps, tissue, tolerance, overlap):
    truth, found = phantom[1][tissue], getattr(maps, tissue)
    assert found.sum() == pytest.approx(truth.sum(), rel=tolerance)
    assert dice(found > 0.5, truth > 0.5) > overlap


def test_the_bias_field_is_removed_and_the_mean_kept(phantom, maps):
    data, pure = phantom[0].get_fdata(), phantom[1]["wm"] > 0.999
    spread = [np.std(volume[pure]) / np.mean(volume[pure]) for volume in (data, maps.bias_corrected)]
    assert spread[0] > 0.1
    assert spread[1] < 0.04  # noise alone is 0.025
    assert maps.bias_corrected[maps.mask].mean() == pytest.approx(data[maps.mask].mean(), rel=1e-3)


def test_the_unit_of_intensity_does_not_matter(phantom, maps):
    scaled = nib.Nifti1Image(phantom[0].get_fdata(dtype=np.float32) * 30, phantom[0].affine)
    assert dice(segment_tissues(scaled, skull_stripped=True).gm > 0.5, maps.gm > 0.5) > 0.99


def test_the_record_holds_volumes_in_ml_and_the_settings(maps):
    assert sum(maps.details["volumes_ml"].values()) == pytest.approx(maps.details["brain_ml"], rel=1e-3)
    assert 1000 < maps.details["brain_ml"] < 1500
    assert maps.details["mask_method"] == "nonzero"
    assert maps.version.startswith("antspyx ")


def test_the_mni_brain_agrees_with_its_own_tissue_maps():
    image = datasets.load_mni152_template(resolution=3)
    found = segment_tissues(image, skull_stripped=True)
    gm, wm = datasets.load_mni152_gm_template(resolution=3), datasets.load_mni152_wm_template(resolution=3)
    assert dice(found.gm > 0.5, gm.get_fdata() > 0.5) > 0.75
    assert dice(found.wm > 0.5, wm.get_fdata() > 0.5) > 0.82
    assert check_plausible(found, image) == []


def test_a_given_mask_is_used_as_it_is_and_a_foreign_one_is_refused(phantom):
    image = phantom[0].slicer[:, :, 24:42]
    mask = ndimage.binary_erosion(image.get_fdata() > 0)
    assert np.array_equal(segment_tissues(image, mask=mask).mask, mask)
    with pytest.raises(InputError, match="on the voxel grid"):
        segment_tissues(image, mask=mask[:, :, 1:])
    with pytest.raises(InputError, match="distinct intensities"):
        segment_tissues(image, mask=np.zeros(image.shape, dtype=bool))


def test_plausible_maps_pass_without_a_word(phantom, maps):
    assert check_plausible(maps, phantom[0]) == []


def test_white_matter_darker_than_grey_is_refused(phantom, maps):
    swapped = dataclasses.replace(maps, wm=maps.gm, gm=maps.wm)
    with pytest.raises(InputError, match=r"CSF [\d.]+, GM [\d.]+, WM [\d.]+; expected CSF darker than GM"):
        check_plausible(swapped, phantom[0])


def test_a_missing_tissue_is_refused(phantom, maps):
    empty = dataclasses.replace(maps, wm=np.zeros_like(maps.wm))
    with pytest.raises(InputError, match=r"WM 0 ml.*at least 12%"):
        check_plausible(empty, phantom[0])


@pytest.mark.parametrize(
    ("voxel_mm", "brain"), [(1.2, "a brain of 2[0-9]{2} ml"), (3.0, "a brain of 4[0-9]{3} ml")]
)
def test_brains_of_a_cat_and_of_a_giant_are_refused(phantom, maps, voxel_mm, brain):
    other = nib.Nifti1Image(phantom[0].get_fdata(), np.diag([voxel_mm] * 3 + [1.0]))
    other.header.set_zooms([voxel_mm] * 3)
    cropped = dataclasses.replace(maps)
    if min(np.array(other.shape) * voxel_mm) < 80:  # a small field of view alone would be a slab
        pad = ((6, 6), (6, 6), (6, 6))
        names = ("wm", "gm", "csf", "mask", "bias_corrected")
        cropped = dataclasses.replace(maps, **{n: np.pad(getattr(maps, n), pad) for n in names})
        other = nib.Nifti1Image(np.pad(phantom[0].get_fdata(), pad), other.affine)
    with pytest.raises(InputError, match=brain):
        check_plausible(cropped, other)


def test_a_slab_is_not_judged_by_its_volumes(phantom, maps):
    slab = {n: getattr(maps, n)[:, :, 30:40] for n in ("wm", "gm", "csf", "mask", "bias_corrected")}
    image = phantom[0].slicer[:, :, 30:40]
    notes = check_plausible(dataclasses.replace(maps, **slab), image)
    assert any("part of a brain" in note for note in notes)


def test_the_mixture_finds_the_three_means():
    rng = np.random.default_rng(0)
    values = np.concatenate(
        [rng.normal(MEAN[t], 5, n) for t, n in (("csf", 8000), ("gm", 45000), ("wm", 35000))]
    )
    fit = fit_tissue_mixture(values)
    assert fit.mean == pytest.approx(list(MEAN.values()), abs=1)
    assert fit.share == pytest.approx([0.091, 0.511, 0.398], abs=0.01)
    assert fit.posteriors(np.array([30.0, 75.0, 110.0, 1e6])).argmax(axis=0).tolist() == [0, 1, 2, 2]


def test_the_command_repeats_the_maps_to_the_bit_on_the_grid_of_the_scan(phantom, maps, tmp_path: Path):
    image = phantom[0]
    affine = np.array([[0, 0, 2.0, -60], [-2.0, 0, 0, 70], [0, 2.0, 0, -80], [0, 0, 0, 1]])
    nib.Nifti1Image(image.get_fdata(dtype=np.float32), affine).to_filename(tmp_path / "in.nii.gz")
    prefix = tmp_path / "new folder" / "sub-1"
    assert main([str(tmp_path / "in.nii.gz"), "--out-prefix", str(prefix), "--skull-stripped", "yes"]) == 0
    tissues = [nib.load(f"{prefix}_label-{tissue}_probseg.nii.gz") for tissue in ("WM", "GM", "CSF")]
    mask = nib.load(f"{prefix}_desc-brain_mask.nii.gz")
    for tissue in tissues:
        assert np.allclose(tissue.affine, affine)
        assert tissue.get_data_dtype() == np.float32
    for again, tissue in zip(tissues, (maps.wm, maps.gm, maps.csf), strict=True):
        assert np.array_equal(again.get_fdata(dtype=np.float32), tissue)
    assert np.array_equal(mask.get_fdata() > 0, maps.mask)
    assert nib.load(f"{prefix}_desc-preproc_T1w.nii.gz").shape == image.shape
    record = json.loads(Path(f"{prefix}_segmentation.json").read_text())
    assert record["volumes_ml"]["GM"] > record["volumes_ml"]["CSF"]
    assert not [name for name in (tmp_path / "new folder").iterdir() if name.name.startswith(".")]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (np.zeros((20, 20, 20)), "the value 0 in every voxel"),
        (np.full((20, 20, 20), np.nan), "NaN or infinite"),
    ],
)
def test_the_command_names_the_file_and_the_fault(tmp_path: Path, capsys, data, reason):
    path = tmp_path / "bad.nii.gz"
    nib.Nifti1Image(data, np.diag([4.0, 4, 4, 1])).to_filename(path)
    assert main([str(path), "--out-prefix", str(tmp_path / "out")]) == 1
    message = capsys.readouterr().err
    assert str(path) in message
    assert reason in message
    assert [name.name for name in tmp_path.iterdir()] == ["bad.nii.gz"]


def test_a_real_head_gives_volumes_that_an_adult_can_have(real_data: Path):
    whole = nib.load(real_data / "mixed/sub-hfB01/anat/sub-hfB01_T1w.nii.gz")
    data = ndimage.gaussian_filter(whole.get_fdata(), 0.7)[::2, ::2, ::2]
    image = nib.Nifti1Image(data, whole.affine @ np.diag([2, 2, 2, 1]))
    maps = segment_tissues(image)
    volumes = maps.details["volumes_ml"]
    assert check_plausible(maps, image) == []
    assert 1000 < maps.details["brain_ml"] < 1700
    assert 0.9 < volumes["GM"] / volumes["WM"] < 2.2
