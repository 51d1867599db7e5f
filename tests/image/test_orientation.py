"""sform and qform of a header are both read, corrected and kept, and the choice between them is noted."""

from __future__ import annotations

import itertools
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import make_affine, make_head

from iqtflow.image.geometry import find_slice_geometry, slices_back, slices_last, thin_affine
from iqtflow.image.nifti import write_volume
from iqtflow.image.nifti_file import open_nifti, peek_nifti
from iqtflow.image.orientation import ReorientedScan
from iqtflow.image.validate import check_scan
from iqtflow.utils.errors import InputError

SHAPE, VOXEL_MM = (64, 60, 16), (2.5, 2.5, 10.0)
#: First bytes of fields in a NIfTI-1 header.
PIXDIM, UNITS, CODES, QUATERNION, SROW = 76, 123, 252, 256, 280
MNI12 = np.array([[1.12, 0.05, 0, 3], [-0.04, 1.2, 0.06, -7], [0.02, 0, 1.05, 11], [0, 0, 0, 1]])


def write(
    path: Path,
    *,
    sform: np.ndarray | None = None,
    qform: np.ndarray | None = None,
    codes: tuple[int, int] = (1, 1),
    **fields: tuple[int, str, tuple],
) -> Path:
    """Write a head with this sform and qform, then single fields of the header (offset, type, values)."""
    image = nib.Nifti1Image(make_head(SHAPE), None)
    image.header.set_xyzt_units("mm")
    place = make_affine(VOXEL_MM)
    image.header.set_qform(place if qform is None else qform, codes[0])
    image.header.set_sform(place if sform is None else sform, codes[1])
    content = bytearray(image.to_bytes())
    for offset, kind, values in fields.values():
        struct.pack_into("<" + kind, content, offset, *values)
    path.write_bytes(content)
    return path


def corners_mm(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    corners = list(itertools.product(*((-0.5, n - 0.5) for n in shape[:3])))
    return nib.affines.apply_affine(affine, corners)


def thinned(scan: nib.Nifti1Image, k: int = 5) -> nib.Nifti1Image:
    """Return the grid of a scan after enhancement, in the axis order of the file."""
    axis = find_slice_geometry(scan).axis
    laid = ReorientedScan(scan, axis)
    data, affine = slices_last(laid.data, laid.affine, laid.axis)
    thin = np.repeat(data, k, axis=2)
    return laid.put_back(*slices_back(thin, thin_affine(affine, k), laid.axis))


def assert_in_place(image: nib.Nifti1Image, sform: np.ndarray, qform: np.ndarray, shape=SHAPE) -> None:
    """Check that both forms put the corners of the field of view in the given places, within 0.5 mm."""
    for ours, expected in ((image.get_sform(), sform), (image.get_qform(), qform)):
        apart = np.linalg.norm(corners_mm(ours, image.shape) - corners_mm(expected, shape), axis=1)
        assert apart.max() < 0.5


@pytest.mark.parametrize("order", ["RAS", "LPS", "SAR", "AIL"])
def test_an_sform_that_leads_to_a_template_and_the_scanners_qform_both_stay(tmp_path, order):
    """With scales and shear of a linear registration, and slices along any axis of the file."""
    place = make_affine(VOXEL_MM)
    turn = nib.orientations.ornt_transform(nib.io_orientation(place), nib.orientations.axcodes2ornt(order))
    turned = nib.Nifti1Image(make_head(SHAPE), place).as_reoriented(turn)
    turned.set_sform(MNI12 @ turned.affine, 4)
    turned.set_qform(turned.get_qform(), 1)
    qform = turned.get_qform()
    turned.to_filename(tmp_path / "x.nii.gz")
    scan = check_scan(tmp_path / "x.nii.gz")
    assert [n for n in scan.extra["notes"] if "sform (MNI 152) and qform (scanner)" in n]
    result = thinned(scan)
    assert (int(result.header["sform_code"]), int(result.header["qform_code"])) == (4, 1)
    assert_in_place(result, MNI12 @ make_affine_of(place, turn), qform, turned.shape)
    np.testing.assert_allclose(sorted(result.header.get_zooms()), [2, 2.5, 2.5], atol=1e-3)


def make_affine_of(affine: np.ndarray, turn: np.ndarray) -> np.ndarray:
    return affine @ nib.orientations.inv_ornt_aff(turn, SHAPE)


def test_volumes_beside_a_scan_take_over_both_of_its_forms(tmp_path):
    scan = check_scan(write(tmp_path / "x.nii", sform=MNI12 @ make_affine(VOXEL_MM), codes=(1, 4)))
    write_volume(tmp_path / "mask.nii.gz", np.zeros(SHAPE, np.uint8), scan.affine, like=scan)
    mask = nib.load(tmp_path / "mask.nii.gz")
    assert_in_place(mask, MNI12 @ make_affine(VOXEL_MM), make_affine(VOXEL_MM))


def test_a_sheared_sform_gets_no_qform(tmp_path):
    sheared = make_affine(VOXEL_MM) @ (np.eye(4) + 0.3 * np.eye(4, k=1))
    scan = check_scan(write(tmp_path / "x.nii", sform=sheared, codes=(0, 2)))
    write_volume(tmp_path / "map.nii.gz", np.asarray(scan.dataobj), scan.affine)
    image = nib.load(tmp_path / "map.nii.gz")
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (1, 0)
    np.testing.assert_allclose(image.affine, scan.affine, atol=1e-4)


ROUNDED = (QUATERNION, "3f", (0, 1, 0.00062))  # its square is 1 + 4e-7
TURNED = np.diag([-2.5, 2.5, -10.0, 1])  # what it stands for


def test_a_quaternion_longer_than_1_by_rounding_is_a_rotation_by_180_degrees(tmp_path):
    for codes in ((1, 1), (1, 0)):
        path = write(tmp_path / "x.nii", codes=codes, quaternion=ROUNDED, sform=TURNED, qform=TURNED)
        scan = check_scan(path)
        assert_in_place(thinned(scan), TURNED, TURNED)
        np.testing.assert_array_equal(peek_nifti(path).affine, scan.affine)


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param((QUATERNION, "f", (np.nan,)), id="quaternion NaN"),
        pytest.param((QUATERNION, "3f", (1, 1, 1)), id="quaternion of length 1.7"),
        pytest.param((QUATERNION + 12, "f", (np.inf,)), id="offset infinite"),
        pytest.param((PIXDIM + 4, "3f", (0.001, 0.001, 0.01)), id="voxels too small"),
        pytest.param((PIXDIM + 4, "f", (np.nan,)), id="voxel size NaN"),
    ],
)
def test_a_wrong_qform_is_replaced_by_a_good_sform(tmp_path, fault):
    scan = check_scan(write(tmp_path / "x.nii", codes=(1, 2), fault=fault))
    assert "The qform is not usable" in scan.extra["notes"][0]
    result = thinned(scan)
    assert_in_place(result, make_affine(VOXEL_MM), make_affine(VOXEL_MM))
    assert (int(result.header["qform_code"]), int(result.header["sform_code"])) == (2, 2)


@pytest.mark.parametrize(
    "sform",
    [
        pytest.param(np.full((4, 4), np.nan), id="NaN"),
        pytest.param(np.zeros((4, 4)), id="zeros"),
        pytest.param(make_affine((2.5, 2.5, 90.0)), id="voxels too large"),
        pytest.param(make_affine(VOXEL_MM)[:, [0, 0, 2, 3]], id="first axis twice"),
        pytest.param(make_affine(VOXEL_MM) + np.eye(4, k=3) * 1e12, id="far away"),
    ],
)
def test_a_wrong_sform_is_replaced_by_a_good_qform_or_refused(tmp_path, sform):
    with pytest.raises(InputError):
        check_scan(write(tmp_path / "x.nii", codes=(0, 2), sform=sform))
    path = write(tmp_path / "x.nii", codes=(1, 2), sform=sform)
    scan = check_scan(path)
    assert "The sform is not usable" in scan.extra["notes"][0]
    assert_in_place(thinned(scan), make_affine(VOXEL_MM), make_affine(VOXEL_MM))
    np.testing.assert_array_equal(peek_nifti(path).affine, scan.affine)


def test_two_forms_that_cannot_be_are_refused(tmp_path):
    path = write(tmp_path / "x.nii", sform=np.zeros((4, 4)), fault=(QUATERNION, "f", (np.nan,)))
    for look in (check_scan, peek_nifti):
        with pytest.raises(InputError, match="singular or not finite"):
            look(path)


def test_an_sform_of_1_mm_voxels_beside_a_qform_in_mm_was_a_placeholder(tmp_path):
    """With it, the scan would be near-isotropic."""
    scan = check_scan(write(tmp_path / "x.nii", sform=np.diag([-1.0, 1, 1, 1]) * [2, 2, 2, 1]))
    assert find_slice_geometry(scan).spacing_mm == pytest.approx(10)
    assert "pixdim says 2.5 x 2.5 x 10 mm): the qform is used" in scan.extra["notes"][0]
    assert_in_place(thinned(scan), make_affine(VOXEL_MM), make_affine(VOXEL_MM))


def test_two_voxel_sizes_without_a_qform_that_decides_are_refused(tmp_path):
    path = write(tmp_path / "x.nii", sform=np.diag([2.0, 2, 2, 1]), codes=(0, 1))
    with pytest.raises(InputError, match=r"sform has voxels of 2 x 2 x 2 mm, pixdim says 2.5 x 2.5 x 10"):
        check_scan(path)


def test_a_pixdim_of_ones_says_nothing(tmp_path):
    path = write(tmp_path / "x.nii", codes=(0, 1), pixdim=(PIXDIM + 4, "3f", (1, 1, 1)))
    assert find_slice_geometry(check_scan(path)).spacing_mm == pytest.approx(10)
    assert find_slice_geometry(peek_nifti(path)).spacing_mm == pytest.approx(10)


def test_forms_that_are_mirror_images_are_said_to_be(tmp_path):
    mirrored = np.diag([-1.0, 1, 1, 1]) @ make_affine(VOXEL_MM)
    notes = check_scan(write(tmp_path / "x.nii", sform=mirrored)).extra["notes"]
    assert "the sform is used; outputs keep both" in notes[0]
    assert "check left and right" in notes[1]


def test_forms_that_agree_need_no_word(tmp_path):
    assert check_scan(write(tmp_path / "x.nii")).extra["notes"] == []


@pytest.mark.parametrize(("unit", "factor"), [(1, 0.001), (3, 1000.0)], ids=["metres", "microns"])
@pytest.mark.parametrize("codes", [(1, 1), (1, 0), (0, 1)])
def test_metres_and_microns_become_millimetres(tmp_path, unit, factor, codes):
    place = np.diag([factor, factor, factor, 1]) @ make_affine(VOXEL_MM)
    path = write(tmp_path / "x.nii", sform=place, qform=place, codes=codes, units=(UNITS, "B", (unit,)))
    scan = check_scan(path)
    np.testing.assert_allclose(scan.affine, make_affine(VOXEL_MM), atol=1e-3)
    assert scan.header.get_xyzt_units()[0] == "mm"
    assert_in_place(thinned(scan), make_affine(VOXEL_MM), make_affine(VOXEL_MM))


def test_a_unit_that_contradicts_the_numbers_is_ignored(tmp_path):
    scan = check_scan(write(tmp_path / "x.nii", units=(UNITS, "B", (1,))))
    assert "its numbers are in mm" in scan.extra["notes"][0]
    np.testing.assert_allclose(scan.affine, make_affine(VOXEL_MM), atol=1e-3)


def test_tissue_priors_and_maps_are_placed_by_the_same_rules(tmp_path):
    path = write(tmp_path / "x.nii", fault=(QUATERNION, "f", (np.nan,)))
    np.testing.assert_allclose(open_nifti(path, kind="priors").affine, make_affine(VOXEL_MM), atol=1e-3)
