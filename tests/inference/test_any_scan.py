"""Any scan: slices along any direction of the body, few or many, thin or thick; intensities of any kind."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import make_affine
from phantoms import make_brain
from small_models import write_model

from iqtflow.image.intensity import intensity_scale
from iqtflow.inference.pipeline import enhance_image
from iqtflow.simulation.artifacts import bias_field, draw_bias

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {k: write_model(folder / f"k{k}.safetensors", k=k, trained=0.02) for k in (2, 4, 8)}


def spot(shape: tuple[int, int, int], axis: int, spacing: float, tilt: float = 10.0):
    """A stripped brain with one bright voxel; slices `spacing` apart along an axis of the body."""
    brain = make_brain((24, 24, 24)).intensity
    index = np.ix_(*(np.arange(n) * 24 // n for n in shape))
    data = brain[index].astype(np.float32)
    where = tuple(n // 2 for n in shape)
    data[where] = 20_000
    sizes = [1.5, 1.5, 1.5]
    sizes[axis] = spacing
    affine = make_affine(tuple(sizes), tilt_degrees=tilt)
    return nib.Nifti1Image(data, affine), nib.affines.apply_affine(affine, where)


def brightest_mm(image: nib.Nifti1Image) -> np.ndarray:
    """Centre of what is brighter than half of the brightest voxel, in world mm."""
    data = image.get_fdata()
    data = np.where(data > 0.5 * data.max(), data, 0)
    voxels = np.stack(np.meshgrid(*map(np.arange, data.shape), indexing="ij"), axis=-1)
    return nib.affines.apply_affine(image.affine, (voxels * data[..., None]).sum((0, 1, 2)) / data.sum())


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize(
    ("n_slices", "ratio", "k"),
    [(3, 4.0, 4), (60, 2.0, 2), (21, 3.3, 4), (7, 6.0, 8), (9, 8.0, 8), (5, 12.0, 8)],
)
def test_a_landmark_stays_in_the_world(models, axis, n_slices, ratio, k):
    """Sagittal, coronal and axial slices, oblique, odd sizes, 3 to 60 slices, ratios from 2 to 12."""
    shape = [33, 37, 35]
    shape[axis] = n_slices
    image, where = spot(tuple(shape), axis, 1.5 * ratio)
    result = enhance_image(image, model=models[k], skull_stripped=True)
    assert result.details["SliceAxis"] == "ijk"[axis]
    assert result.mean.shape[axis] == k * n_slices
    # To the thin slice and pixel that hold it; the plane may have been resampled.
    tolerance = max(result.details["VoxelSizeMm"]) / 2 + 0.1
    for volume in (result.spline, result.mean):
        assert np.abs(brightest_mm(volume) - where).max() < tolerance
    ends = [(-0.5,) * 3, np.array(image.shape) - 0.5]
    if result.details["Upsampling"]["ResampledToMm"] is None:
        for before, after in zip(ends, [(-0.5,) * 3, np.array(result.mean.shape) - 0.5], strict=True):
            moved = nib.affines.apply_affine(result.mean.affine, after)
            np.testing.assert_allclose(moved, nib.affines.apply_affine(image.affine, before), atol=1e-3)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_mirrored_averaging_turns_left_and_right_about(models, axis):
    """Of slices in any direction: a scan of the mirrored head gives the mirrored estimate."""
    shape = [32, 36, 40]
    shape[axis] = 10
    image, _ = spot(tuple(shape), axis, 6.0)
    turned = nib.Nifti1Image(np.flip(image.get_fdata(), 0).astype(np.float32).copy(), image.affine)
    options = {"model": models[4], "skull_stripped": True, "mirror": True, "precision": "float32"}
    one, other = (enhance_image(i, **options) for i in (image, turned))
    assert one.details["MirroredAveraging"] is True
    np.testing.assert_allclose(np.flip(other.mean.get_fdata(), 0), one.mean.get_fdata(), atol=2)
    plain = enhance_image(image, **{**options, "mirror": False})
    assert np.abs(plain.mean.get_fdata() - one.mean.get_fdata()).max() > 2
    assert one.std is not None and plain.std is None


def shaded(image: nib.Nifti1Image, largest: float) -> tuple[nib.Nifti1Image, np.ndarray]:
    shade = bias_field(draw_bias(np.random.default_rng(4), largest), image.shape)
    return nib.Nifti1Image(np.asarray(image.dataobj) * shade, image.affine), shade


def test_the_scale_of_intensities_hardly_minds_shading():
    """Up to 20 % of shading moves the brain's 80th percentile by less than 5 %."""
    brain = make_brain((48, 48, 48))
    image = nib.Nifti1Image(brain.intensity, np.eye(4))
    before = intensity_scale(brain.intensity[brain.mask])
    after = intensity_scale(np.asarray(shaded(image, 0.2)[0].dataobj)[brain.mask])
    assert after == pytest.approx(before, rel=0.05)


@pytest.mark.slow
def test_the_shipped_model_hardly_minds_shading():
    """The estimate of a shaded scan is the shaded estimate, within 3 % of white matter on average."""
    brain = make_brain((64, 72, 64))
    thick = brain.intensity.reshape(64, 72, 16, 4).mean(axis=3).astype(np.float32)
    image = nib.Nifti1Image(thick, make_affine((1.0, 1.0, 4.0)))
    dimmed, _ = shaded(image, 0.2)
    plain, shady = (
        enhance_image(i, model="iqt-k4", skull_stripped=True).mean.get_fdata() for i in (image, dimmed)
    )
    shade = np.repeat(np.asarray(dimmed.dataobj) / np.maximum(thick, 1e-6), 4, axis=2)
    inside = (brain.mask) & (thick.repeat(4, axis=2) > 0)
    ratio = np.median((shady / np.maximum(shade, 1e-6))[inside] / np.maximum(plain[inside], 1))
    difference = (shady / np.maximum(shade, 1e-6) / ratio - plain)[inside]
    assert ratio == pytest.approx(1, abs=0.05)
    assert np.abs(difference).mean() < 0.03 * 1000


def test_what_intensities_mean_is_stated(models):
    image, _ = spot((33, 37, 9), 2, 6.0)
    details = enhance_image(image, model=models[4], skull_stripped=True).details
    assert details["Units"] == "arbitrary"
    assert "own arbitrary units" in details["IntensityDescription"]
    assert details["WhiteMatter"]["Factor"] == 1
    assert details["OutOfDistribution"] is None, "nobody has noted what this model was trained on"


@pytest.mark.parametrize("contrast", ["T2w", "FLAIR"])
@pytest.mark.parametrize("given", [False, True])
def test_a_contrast_that_no_model_knows_is_refused_for_the_whole_data_set(tmp_path, models, contrast, given):
    from iqtflow.bids import Scan
    from iqtflow.config import EnhanceSettings, PathSettings, Settings
    from iqtflow.utils.errors import InputError
    from iqtflow.workflows.app.graphs import choose_model_file

    paths = PathSettings(bids_dir=tmp_path, output_dir=tmp_path / "out", work_dir=tmp_path / "work")
    choice = EnhanceSettings(contrast=contrast, model=str(models[4]) if given else None)
    scan = Scan.__new__(Scan)  # its file is not looked at: the contrast alone decides
    words = "trained on T1w" if given else f"models for {contrast}"
    with pytest.raises(InputError, match=words):
        choose_model_file(scan, Settings(paths=paths, enhance=choice))
