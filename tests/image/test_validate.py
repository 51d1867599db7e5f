"""Scans that cannot be worked with are refused in words that say what to do; odd but sound ones are not."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import SHAPE, make_affine, make_head, write_scan

from iqtflow.image.validate import check_scan
from iqtflow.utils.errors import InputError


def test_a_thick_slice_scan_comes_back_as_it_is(tmp_path):
    path = write_scan(tmp_path / "x_T1w.nii.gz")
    image = check_scan(path)
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), make_head())
    np.testing.assert_allclose(image.affine, make_affine(), rtol=1e-6, atol=1e-5)


def test_scaled_integers_come_back_as_the_intensities_they_stand_for(tmp_path):
    path = tmp_path / "x.nii.gz"
    image = nib.Nifti1Image(make_head(), make_affine())
    image.set_data_dtype("int16")  # nibabel stores a slope and an intercept
    image.to_filename(path)
    back = check_scan(path)
    np.testing.assert_allclose(np.asanyarray(back.dataobj), make_head(), atol=0.02)
    assert back.get_data_dtype() == np.float32


def test_a_trailing_axis_of_length_one_is_no_fourth_dimension(tmp_path):
    path = write_scan(tmp_path / "x.nii", make_head()[..., np.newaxis])
    assert check_scan(path).shape == SHAPE


def test_an_image_with_a_qform_only_is_placed(tmp_path):
    path = write_scan(tmp_path / "x.nii", sform_code=0, qform_code=1)
    np.testing.assert_allclose(check_scan(path).affine, make_affine(), atol=1e-3)


def test_four_thick_slices_are_enough(tmp_path):
    path = write_scan(tmp_path / "x.nii", make_head()[..., 8:12], make_affine((1.2, 1.2, 10)))
    assert check_scan(path).shape == (160, 160, 4)


def nan(head):
    head[3, 4, 5] = np.nan
    return head


def infinite(head):
    head[3, 4, 5] = np.inf
    return head


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        pytest.param(lambda head: np.stack([head, head], axis=-1), "4 dimensions", id="4-D"),
        pytest.param(lambda head: head[:, :, 0], "2 dimensions", id="2-D"),
        pytest.param(lambda head: head[:, :, :1], "a single slice", id="single slice"),
        pytest.param(nan, "1 of 512000 voxels that are NaN or infinite", id="NaN"),
        pytest.param(infinite, "1 of 512000 voxels that are NaN or infinite", id="infinite"),
        pytest.param(lambda head: head * 0, "the value 0 in every voxel", id="all zero"),
        pytest.param(lambda head: head * 0 + 7, "the value 7 in every voxel", id="constant"),
        pytest.param(lambda head: head.astype("complex64"), "voxels of type complex64", id="complex"),
    ],
)
def test_a_volume_that_is_no_scan_is_refused(tmp_path, spoil, found):
    path = write_scan(tmp_path / "x_T1w.nii.gz", spoil(make_head()))
    with pytest.raises(InputError) as caught:
        check_scan(path)
    assert str(caught.value).startswith(f"{path}: found {found}")


@pytest.mark.parametrize(
    ("voxel_mm", "found"),
    [
        pytest.param((1.2, 1.2, 45), "voxels of 1.2 x 1.2 x 45 mm", id="slices of 45 mm"),
        pytest.param((0.0012, 0.0012, 0.0072), "voxels of 0.0012 x 0.0012 x 0.0072 mm", id="metres"),
        pytest.param((0.1, 0.1, 7.2), "a field of view of 16 x 16 x 144 mm", id="too small"),
        pytest.param((1.2, 1.2, 1.4), "a field of view of 192 x 192 x 28 mm", id="thin slab"),
        pytest.param((7.2, 1.2, 7.2), "a field of view of 1152 x 192 x 144 mm", id="more than a head"),
    ],
)
def test_absurd_sizes_are_refused(tmp_path, voxel_mm, found):
    path = write_scan(tmp_path / "x.nii.gz", affine=make_affine(voxel_mm))
    with pytest.raises(InputError) as caught:
        check_scan(path)
    assert found in str(caught.value)


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda affine: affine * np.array([1, 1, 0, 1]), id="no third axis"),
        pytest.param(lambda affine: affine[:, [0, 0, 2, 3]], id="first axis twice"),
        pytest.param(lambda affine: affine * np.array([1, np.nan, 1, 1]), id="not finite"),
    ],
)
def test_an_affine_without_three_axes_is_refused(tmp_path, spoil):
    path = write_scan(tmp_path / "x.nii.gz")
    image = nib.load(path)
    image.header["sform_code"] = 1
    for row, name in zip(spoil(make_affine()), ("srow_x", "srow_y", "srow_z"), strict=False):
        image.header[name] = row
    raw = bytearray(image.header.binaryblock + b"\0\0\0\0" + make_head().tobytes(order="F"))
    (tmp_path / "y.nii").write_bytes(raw)
    with pytest.raises(InputError, match="singular or not finite"):
        check_scan(tmp_path / "y.nii")


def test_a_header_that_does_not_place_the_image_is_refused(tmp_path):
    path = write_scan(tmp_path / "x.nii")
    with path.open("r+b") as stream:  # nibabel itself would not write such a file
        stream.seek(252)
        stream.write(bytes(4))  # qform_code and sform_code, int16 each
    with pytest.raises(InputError, match="neither sform nor qform"):
        check_scan(path)


def test_a_gzip_file_that_is_cut_short_is_refused(tmp_path):
    path = write_scan(tmp_path / "x.nii.gz")
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(InputError, match="cannot be read"):
        check_scan(path)


def test_an_uncompressed_file_that_is_cut_short_is_refused(tmp_path):
    path = write_scan(tmp_path / "x.nii")
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(InputError, match=r"a header of 160 x 160 x 20 voxels .* bytes too early"):
        check_scan(path)


@pytest.mark.parametrize("content", [b"not an image at all", b""], ids=["text", "empty"])
def test_a_file_that_is_no_image_is_refused(tmp_path, content):
    (tmp_path / "x.nii.gz").write_bytes(content)
    with pytest.raises(
        InputError, match=r"x\.nii\.gz: found (something that is no NIfTI image|an empty file)"
    ):
        check_scan(tmp_path / "x.nii.gz")


def test_another_format_under_a_name_of_nifti_is_refused(tmp_path):
    nib.MGHImage(make_head(), make_affine()).to_filename(tmp_path / "x.mgz")
    with pytest.raises(InputError, match="MGHImage"):
        check_scan(tmp_path / "x.mgz")


@pytest.mark.parametrize(
    ("pointer", "command"),
    [
        (b"/annex/objects/MD5E-s7--0123.nii.gz\n", "datalad get {path}"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:01\nsize 7\n",
            "git -C {path.parent} lfs pull --include={path.name}",
        ),
    ],
    ids=["git-annex", "Git LFS"],
)
def test_a_pointer_without_content_is_told_from_a_broken_file(tmp_path, pointer, command):
    path = tmp_path / "x.nii.gz"
    path.write_bytes(pointer)
    with pytest.raises(InputError, match=re.escape(f"`{command.format(path=path)}`")):
        check_scan(path)


def test_a_dangling_link_into_the_annex_says_how_to_fetch_its_content(tmp_path):
    path = tmp_path / "x.nii.gz"
    path.symlink_to("../../.git/annex/objects/absent")
    with pytest.raises(InputError, match=re.escape(f"`datalad get {path}`")):
        check_scan(path)


def test_a_dangling_link_elsewhere_says_where_it_leads(tmp_path):
    (tmp_path / "x.nii.gz").symlink_to("/elsewhere/scan.nii.gz")
    with pytest.raises(InputError, match=r"/elsewhere/scan\.nii\.gz.*mount"):
        check_scan(tmp_path / "x.nii.gz")


def test_a_missing_file_is_called_missing(tmp_path):
    with pytest.raises(InputError, match="found nothing"):
        check_scan(tmp_path / "x.nii.gz")


@pytest.mark.real_data
def test_real_scans_of_every_kind_are_accepted(real_data):
    for name in ("lfC01", "lfD1", "hfA58", "hfB01"):
        check_scan(real_data / "mixed" / f"sub-{name}" / "anat" / f"sub-{name}_T1w.nii.gz")


def test_the_node_hands_on_no_value_that_cannot_be_meant(tmp_path, capsys):
    from iqtflow.interfaces.conform import ConformScan

    scan = write_scan(tmp_path / "scan.nii.gz")
    node = ConformScan(in_file=str(scan), sidecar={"SkullStripped": "false", "SliceThickness": 5, "X": "x"})
    done = node.run(cwd=tmp_path).outputs
    assert json.loads(Path(done.sidecar_file).read_text()) == {"SliceThickness": 5.0, "X": "x"}
    assert f'{scan}: note: sidecar: SkullStripped is "false"' in capsys.readouterr().out
