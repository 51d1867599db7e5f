"""The wanted voxel size: the enhanced volume stays in place, and no axis is interpolated twice."""

from __future__ import annotations

import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import make_affine, write_scan
from phantoms import make_brain
from scipy import ndimage
from small_models import write_model
from test_pipeline import ORIENTATIONS, reorient

import iqtflow
from iqtflow.cli.commands.enhance import main
from iqtflow.image.geometry import thin_affine
from iqtflow.image.resampling import to_grid
from iqtflow.inference.data_consistency import audit_files
from iqtflow.inference.pipeline import enhance_image
from iqtflow.utils.errors import InputError

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[int, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {k: write_model(folder / f"k{k}.safetensors", k=k, trained=0.02) for k in (4, 8)}


def scan_with_blob(
    axis: int = 2, *, plane: float = 2.0, spacing: float = 8.0, tilt: float = 10.0
) -> tuple[nib.Nifti1Image, np.ndarray]:
    """A small brain with a bright blob, slices along an axis; and the blob's centre in the world."""
    shape, sizes = [15, 17, 16], [plane] * 3
    shape[axis], sizes[axis] = 7, spacing
    brain = make_brain((24, 24, 24)).intensity
    data = brain[np.ix_(*(np.arange(n) * 24 // n for n in shape))]
    affine = make_affine(tuple(sizes), tilt_degrees=tilt)
    voxel = np.array(shape) / 2 - 0.3
    away = np.moveaxis(np.indices(shape), 0, -1) - voxel
    blob = 20_000 * np.exp(-0.5 * (away**2).sum(axis=-1) / 1.2**2)  # as thick as slices make it
    centre = nib.affines.apply_affine(affine, voxel)
    return nib.Nifti1Image((data + blob * (data > 0)).astype(np.float32), affine), centre


def blob_mm(image: nib.Nifti1Image) -> np.ndarray:
    """Centre of what is brighter than half of the brightest voxel, in world mm."""
    data = image.get_fdata()
    weight = np.maximum(data - 0.5 * data.max(), 0)
    return nib.affines.apply_affine(image.affine, ndimage.center_of_mass(weight))


def enhance(image: nib.Nifti1Image, model: Path, voxel_size: float | str, **options):
    return enhance_image(image, model=model, skull_stripped=True, voxel_size=voxel_size, **options)


@pytest.mark.parametrize("voxel_size", ["native", 1.0, 0.8])
@pytest.mark.parametrize(("axis", "tilt"), [(0, 0.0), (1, 10.0), (2, 37.0)])
def test_a_blob_stays_where_it_is_in_the_world(models, axis, tilt, voxel_size):
    """Sagittal, coronal and axial slices, straight and oblique."""
    image, centre = scan_with_blob(axis, tilt=tilt)
    result = enhance(image, models[4], voxel_size)
    for volume in (result.mean, result.spline):
        assert np.linalg.norm(blob_mm(volume) - centre) < 0.5  # mm
        if voxel_size != "native":
            np.testing.assert_allclose(nib.affines.voxel_sizes(volume.affine), voxel_size, atol=1e-5)
    assert result.details["OutputGrid"]["VoxelSize"] == voxel_size
    assert result.residual.shape == result.mask.shape == image.shape


@pytest.fixture(scope="module")
def in_ras(models):
    image, centre = scan_with_blob(spacing=6.0)
    return image, centre, enhance(image, models[4], 1.5)


@pytest.mark.parametrize("code", ORIENTATIONS)
def test_how_a_file_orders_its_axes_changes_only_the_order_of_cubic_voxels(in_ras, models, code):
    """In all 48 orientations, with the slices along each axis of the file."""
    image, centre, expected = in_ras
    result = enhance(reorient(image, code), models[4], 1.5)
    assert nib.aff2axcodes(result.mean.affine) == tuple(code)
    assert np.linalg.norm(blob_mm(result.mean) - centre) < 0.5  # mm
    for name in ("mean", "spline"):
        ours, theirs = reorient(getattr(result, name), "RAS"), getattr(expected, name)
        assert np.array_equal(ours.get_fdata(), theirs.get_fdata())
        np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-4)


@pytest.mark.parametrize(
    ("plane", "voxel_size", "method"),
    [
        (1.6, 0.8, "the plane before the network; the slice axis after"),
        (0.95, 0.92, "the plane and the slice axis after"),
    ],
)
def test_no_axis_is_interpolated_twice(tmp_path, plane, voxel_size, method):
    """Waves through scipy's interpolation at the world positions of the voxels.

    In plane: enhanced volume of a network that adds nothing, and spline. Across the slices: the spline, which
    comes from the slices and not from thin slices.
    """
    shape, spacing, k = (24, 10, 12), 3.4, 4
    wave, across = 900 * np.cos(2 * np.pi * np.arange(24) / 3.1), 600 * np.cos(2 * np.pi * np.arange(12) / 3)
    block = np.repeat([0.0, 1.0, 0.0], (3, 4, 3))  # erased on both sides, as a stripped scan
    data = ((3000 + wave[:, None, None] + across) * block[:, None]).astype(np.float32)
    image = nib.Nifti1Image(data, make_affine((plane, plane, spacing)))
    model = write_model(tmp_path / "idle.safetensors", trained=0.0)
    result = enhance(image, model, voxel_size, slice_intensity="keep", precision="float32")
    assert method in result.details["OutputGrid"]["Method"]
    to_scan = np.linalg.inv(image.affine) @ result.mean.affine
    middle = result.mean.shape[1] // 2
    inner = (slice(3, -3), middle)

    def sampled(values: np.ndarray, axis: int) -> np.ndarray:
        where = to_scan[axis, 3] + to_scan[axis, axis] * np.arange(result.mean.shape[axis])
        return ndimage.map_coordinates(values, [np.clip(where, 0, len(values) - 1)], order=3, mode="mirror")

    level, rows = sampled(block, 1)[middle], sampled(wave, 0)[3:-3, None]
    expected = level * (rows + sampled(across, 2) + 3000)
    np.testing.assert_allclose(result.spline.get_fdata()[inner], expected, atol=0.3)
    mean, rows = result.mean.get_fdata()[inner], np.broadcast_to(level * rows, expected.shape)
    np.testing.assert_allclose(mean - mean.mean(axis=0), rows - rows.mean(axis=0), atol=0.3)
    thin = thin_affine(image.affine, k)
    thinned = to_grid(data, image.affine, (*shape[:2], k * 12), thin)
    twice = to_grid(thinned, thin, result.mean.shape, result.mean.affine)[inner]
    assert np.abs(twice - expected).max() > 1, "this test would see a second interpolation"


def test_command_node_and_function_give_the_same_voxels(models, tmp_path):
    from iqtflow.interfaces.enhance import EnhanceVolume

    image, _ = scan_with_blob()
    path = write_scan(tmp_path / "scan.nii.gz", np.asarray(image.dataobj), image.affine)
    out, details = tmp_path / "out.nii.gz", tmp_path / "details.json"
    arguments = [path, out, "--model", models[8], "--skull-stripped", "yes", "--voxel-size", 0.9]
    assert main([*map(str, arguments), "--json", str(details)]) == 0
    given = {"in_file": os.fspath(path), "model": os.fspath(models[8]), "skull_stripped": "yes"}
    node = EnhanceVolume(**given, voxel_size=0.9).run(cwd=os.fspath(tmp_path)).outputs
    function = iqtflow.enhance(path, models[8], skull_stripped=True, device="cpu", voxel_size=0.9)
    for other in (nib.load(node.out_file), function):
        assert np.array_equal(other.get_fdata(), nib.load(out).get_fdata())
        assert np.array_equal(other.affine, nib.load(out).affine)
    assert json.loads(details.read_text())["VoxelSizeMm"] == [0.9, 0.9, 0.9]


@pytest.mark.parametrize("wrong", [0.3, 3, "thin", True, float("nan"), None])
def test_a_voxel_size_beyond_sense_is_named(models, wrong):
    image, _ = scan_with_blob()
    with pytest.raises(InputError, match="voxel_size") as refused:
        iqtflow.enhance(image, models[8], voxel_size=wrong)
    assert refused.value.found == repr(wrong)
    assert "0.7 up to 1.5" in refused.value.expected and "native" in refused.value.expected


@pytest.mark.parametrize("wrong", ["0.3", "3", "thin"])
def test_the_command_names_a_voxel_size_beyond_sense(wrong, capsys):
    with pytest.raises(SystemExit):
        main(["scan.nii.gz", "out.nii.gz", "--voxel-size", wrong])
    error = capsys.readouterr().err
    assert "--voxel-size" in error and wrong in error and "native" in error


def test_slices_too_far_apart_for_the_plane_are_refused_and_named_unless_forced(models):
    """Slices 10 mm apart: 0.8 mm in plane is 12.5, and on voxels of 0.9 mm it is 11.1."""
    image, centre = scan_with_blob(plane=0.8, spacing=10.0)
    with pytest.raises(InputError) as refused:
        enhance(image, models[8], "native")
    message = str(refused.value)
    assert all(
        word in message for word in ("10 mm", "0.8 x 0.8 mm", "12.5", "at most 12", "--voxel-size 0.9")
    )
    forced = enhance(image, models[8], "native", force=True)
    assert forced.details["Upsampling"]["ResampledToMm"] is None
    larger = enhance(image, models[8], 0.9)
    assert larger.details["Upsampling"]["Ratio"] == pytest.approx(11.1, abs=0.02)
    assert np.linalg.norm(blob_mm(larger.mean) - centre) < 0.5  # mm


def test_a_stripped_scan_stays_stripped_and_a_lost_slice_empty_in_cubic_voxels(models):
    image, _ = scan_with_blob()
    lost = np.array(image.dataobj)
    lost[:, :, 3] = 0
    mean = enhance(nib.Nifti1Image(lost, image.affine), models[8], 1.0).mean
    data = mean.get_fdata()
    gap = nib.affines.apply_affine(np.linalg.inv(image.affine) @ mean.affine, [(0, 0, i) for i in range(56)])
    empty = np.abs(gap[:, 2] - 3) < 0.5
    assert empty.sum() == 8
    assert not data[:, :, empty].any() and data[:, :, ~empty].any(axis=(0, 1))[8:-8].all()


def test_cubic_voxels_of_any_method_are_compared_with_the_slices(models, tmp_path):
    """The audit finds the blob that the enhanced volume lost, in world mm, whatever its voxels."""
    brain = make_brain((48, 48, 48), seed=3).intensity
    truth = ndimage.gaussian_filter(brain, 0.6)
    affine = make_affine((1.5, 1.5, 1.5))
    place = (16, 24, 25)
    away = np.linalg.norm((np.moveaxis(np.indices(truth.shape), 0, -1) - place) * 1.5, axis=-1)
    noise = np.random.default_rng(0).normal(0, 8, (48, 48, 12))
    thick = ((truth + 500 * (away < 5)).reshape(48, 48, 12, 4).mean(axis=3) + noise).astype(np.float32)
    scan_affine = affine @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 4, 1.5], [0, 0, 0, 1]])
    scan = write_scan(tmp_path / "scan.nii.gz", thick, scan_affine)
    mask = write_scan(tmp_path / "mask.nii.gz", (thick > 100).astype(np.uint8), scan_affine)
    from iqtflow.image.resampling import isotropic_grid

    for edge in (1.0, 1.5):
        shape, grid = isotropic_grid(truth.shape, affine, edge)
        volume = nib.Nifti1Image(to_grid(truth, affine, shape, grid), grid)
        nib.save(reorient(volume, "PIR"), tmp_path / "enhanced.nii.gz")
        found = audit_files(scan, tmp_path / "enhanced.nii.gz", mask=mask)
        first = found.fields["Places"][0]
        assert first["Kind"] == "missing"
        assert np.linalg.norm(first["PositionMM"] - nib.affines.apply_affine(affine, place)) < 4.5
        assert found.residual.shape == thick.shape
    part = nib.Nifti1Image(volume.get_fdata()[:, :, 4:], grid @ nib.affines.from_matvec(np.eye(3), (0, 0, 4)))
    nib.save(part, tmp_path / "enhanced.nii.gz")
    with pytest.raises(InputError, match="another grid"):
        audit_files(scan, tmp_path / "enhanced.nii.gz", mask=mask)
