"""A scan is read to its end and checked; otherwise a message says what is wrong and what to do."""

from __future__ import annotations

import gzip
import json
import os
import re
import socket
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import SHAPE as HEAD
from conftest import make_affine, make_head, write_scan

from iqtflow.image.nifti import read_volume
from iqtflow.image.nifti_file import open_nifti, peek_nifti, read_content
from iqtflow.image.validate import check_scan
from iqtflow.reports.draw.volumes import load_array
from iqtflow.segmentation.spm.install import tpm_blob_id
from iqtflow.utils.errors import InputError

SHAPE, VOXEL_MM = (32, 30, 10), (4.0, 4.0, 9.0)
DIM, DATATYPE, VOX_OFFSET = 40, 70, 108  # first bytes of fields in a NIfTI-1 header


def whole() -> bytes:
    """Return a small head, uncompressed."""
    return nib.Nifti1Image(make_head(SHAPE), make_affine(VOXEL_MM)).to_bytes()


def with_field(offset: int, kind: str, *values) -> bytes:
    content = bytearray(whole())
    struct.pack_into("<" + kind, content, offset, *values)
    return bytes(content)


def wrong_checksum(packed: bytes) -> bytes:
    return packed[:-8] + bytes([packed[-8] ^ 1]) + packed[-7:]


def wrong_length(packed: bytes) -> bytes:
    return packed[:-1] + bytes([packed[-1] ^ 1])


#: Damage of a compressed file, mostly after its last voxel.
DAMAGES = [
    pytest.param(wrong_checksum, id="wrong checksum"),
    pytest.param(wrong_length, id="wrong length"),
    pytest.param(lambda packed: packed[: len(packed) // 2], id="half"),
    pytest.param(lambda packed: packed[:-8], id="no trailer"),
    pytest.param(lambda packed: packed[:-3], id="half a trailer"),
    pytest.param(lambda packed: packed + b"and more", id="text behind it"),
    pytest.param(lambda packed: packed + packed[:20], id="half of another member"),
    pytest.param(lambda packed: packed + wrong_checksum(gzip.compress(b"")), id="another member, damaged"),
]
READERS = [check_scan, read_volume, open_nifti, read_content, tpm_blob_id]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)
def test_all_readers_check_a_compressed_file_to_its_end(tmp_path, read, damage):
    path = tmp_path / "x.nii.gz"
    path.write_bytes(damage(gzip.compress(whole(), mtime=0)))
    with pytest.raises(InputError, match=r"x\.nii\.gz: found a file that cannot be read .*Copy or convert"):
        read(path)


def test_a_page_does_not_show_a_damaged_image(tmp_path):
    path = tmp_path / "x.nii.gz"
    path.write_bytes(wrong_checksum(gzip.compress(whole(), mtime=0)))
    with pytest.raises(InputError, match="cannot be read"):
        load_array(path)


def test_a_flipped_bit_that_still_decompresses_is_noticed(tmp_path):
    """In a stored (level 0) stream, only the checksum shows a flipped bit of the voxels."""
    packed = bytearray(gzip.compress(whole(), 0, mtime=0))
    packed[len(packed) // 2] ^= 4
    (tmp_path / "x.nii.gz").write_bytes(packed)
    with pytest.raises(InputError, match="incorrect data check"):
        check_scan(tmp_path / "x.nii.gz")


@pytest.mark.parametrize(
    "pack",
    [
        pytest.param(lambda raw: gzip.compress(raw[:1000]) + gzip.compress(raw[1000:]), id="two members"),
        pytest.param(lambda raw: gzip.compress(raw) + gzip.compress(b""), id="an empty member"),
        pytest.param(lambda raw: gzip.compress(raw) + bytes(5000), id="padded with zeros"),
        pytest.param(lambda raw: gzip.compress(raw[:200]) + bytes(9) + gzip.compress(raw[200:]), id="both"),
        pytest.param(lambda raw: gzip.compress(raw, 0), id="stored"),
    ],
)
def test_what_gzip_allows_is_read(tmp_path, pack):
    (tmp_path / "x.nii.gz").write_bytes(pack(whole()))
    np.testing.assert_array_equal(np.asarray(check_scan(tmp_path / "x.nii.gz").dataobj), make_head(SHAPE))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.nii.gz", whole(), r"an uncompressed NIfTI image; .* Rename it to x\.nii\."),
        ("x.nii", gzip.compress(whole()), r"a compressed \(gzip\) file; .* Rename it to x\.nii\.gz\."),
        ("x.nii", bytes(128) + b"DICM" + bytes(900), "a DICOM file; .*dcm2niix"),
        ("x.nii.gz", b"<!DOCTYPE html><html>Sign in</html>", "a web page"),
        ("x.nii.gz", b"PK\x03\x04" + bytes(500), "a zip archive"),
        ("x.nii", with_field(344, "4s", b"ni1"), r"in two files \(\.hdr and \.img\)"),
        ("x.nii", with_field(344, "4s", b""), "an Analyze header"),
        ("x.nii", whole()[:200], "a file of 200 bytes"),
        ("x.nii.gz", b"not an image at all", "no NIfTI image"),
        ("x.nii.gz", b"", "an empty file"),
    ],
)
def test_a_file_of_another_kind_is_called_by_its_kind(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    for look in (check_scan, peek_nifti, read_volume):
        with pytest.raises(InputError, match=words):
            look(tmp_path / name)


@pytest.mark.parametrize(
    ("kind", "name", "words"),
    [
        (nib.Nifti1Pair, "x.hdr", "in two files"),
        (nib.Nifti1Pair, "x.img", "in two files"),
        (nib.MGHImage, "x.mgz", "MGHImage"),
    ],
)
def test_another_format_is_to_be_converted(tmp_path, kind, name, words):
    kind(make_head(SHAPE), make_affine(VOXEL_MM)).to_filename(tmp_path / name)
    with pytest.raises(InputError, match=rf"{words}.*nib-convert {name}"):
        check_scan(tmp_path / name)


def test_pipes_sockets_devices_and_folders_are_no_images_and_are_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    os.mkfifo("pipe.nii.gz")
    with socket.socket(socket.AF_UNIX) as end:
        end.bind("socket.nii")
        Path("device.nii").symlink_to("/dev/zero")
        Path("folder.nii").mkdir()
        for name in ("pipe.nii.gz", "socket.nii", "device.nii", "folder.nii"):
            for look in (check_scan, peek_nifti, read_volume, read_content):
                with pytest.raises(InputError, match=rf"{name}: found .*{name.partition('.')[0]}"):
                    look(Path(name))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param(
            with_field(DIM, "8h", 4, *SHAPE, 0, 1, 1, 1),
            r"dimensions 32 x 30 x 10 x 0 \(dim\[1\] to dim\[4\]\); expected at least 1 .* dim\[0\] to 3",
            id="dim[4] is 0",
        ),
        pytest.param(with_field(DIM, "8h", 3, 32, -30, 10, 1, 1, 1, 1), "32 x -30 x 10", id="negative"),
        pytest.param(
            with_field(DIM, "8h", 3, 32, 30, 11, 1, 1, 1, 1),
            "a header of 32 x 30 x 11 voxels .* ends 3840 bytes too early",
            id="more than there is",
        ),
        pytest.param(
            with_field(DIM, "8h", 3, 32767, 32767, 32767, 1, 1, 1, 1), "field of view", id="far too large"
        ),
        pytest.param(
            with_field(DIM, "8h", 3, 31, 30, 10, 1, 1, 1, 1), "more data after the last voxel", id="fewer"
        ),
        pytest.param(with_field(DATATYPE, "h", 128), "colours", id="RGB"),
        pytest.param(with_field(DATATYPE, "h", 32), "voxels of type complex64", id="complex"),
        pytest.param(with_field(DATATYPE, "h", 77), "found datatype 77; .* such as 4", id="unknown type"),
        pytest.param(with_field(DATATYPE, "h", 0), "found datatype 0; ", id="no type"),
        pytest.param(with_field(DATATYPE, "h", 1), "found datatype 1; ", id="bits"),
        pytest.param(with_field(DATATYPE, "h", 1536), "found datatype 1536; ", id="float128"),
        pytest.param(with_field(DIM, "h", 0), r"dim\[0\] = 0, .* Set dim\[0\] to 3", id="dim[0] is 0"),
        pytest.param(with_field(DIM, "h", 8), r"dim\[0\] = 8, .* Set dim\[0\] to 3", id="dim[0] is 8"),
        pytest.param(with_field(DIM, "h", -3), r"dim\[0\] = -3, .* Set dim\[0\] to 3", id="dim[0] below 0"),
        pytest.param(with_field(344, "4s", b"n+2"), "magic 'n.2'; expected 'n.1'", id="magic of NIfTI-2"),
        pytest.param(with_field(112, "2f", 1, np.nan), "scl_inter nan; expected a number", id="inter NaN"),
        pytest.param(with_field(VOX_OFFSET, "f", -352), "vox_offset -352; expected a whole", id="before it"),
        pytest.param(with_field(VOX_OFFSET, "f", 384.0), "from byte 384 on.* 32 bytes too early", id="late"),
        pytest.param(with_field(VOX_OFFSET, "f", 352.5), "vox_offset 352.5; .*whole", id="half a byte"),
        pytest.param(with_field(VOX_OFFSET, "f", np.nan), "vox_offset nan", id="offset NaN"),
        pytest.param(with_field(348, "B", 1), "header extensions before the voxels", id="over an extension"),
    ],
)
@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz"])
def test_a_header_that_contradicts_its_file_is_refused(tmp_path, content, words, name):
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(InputError, match=words):
        check_scan(path)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((64, 64, 1, 4), "one slice, several times; .*dcm2niix"),
        ((32, 30, 10, 3), "4 dimensions, .* Choose or average the volumes"),
        ((32, 30, 10, 1, 3), "5 dimensions, .* Choose or average the volumes"),
        ((64, 64), "2 dimensions, .* Give the whole stack of slices"),
        ((64, 1, 64), "a single slice"),
    ],
)
def test_shapes_that_are_no_scan_get_the_words_for_it(tmp_path, shape, words):
    path = write_scan(tmp_path / "x.nii.gz", np.ones(shape, np.float32), make_affine(VOXEL_MM))
    for look in (check_scan, peek_nifti):
        with pytest.raises(InputError, match=words):
            look(path)


def test_harmless_wrong_fields_are_noted_or_ignored(tmp_path, caplog):
    (tmp_path / "x.nii").write_bytes(with_field(DATATYPE + 2, "h", 3))
    (note,) = check_scan(tmp_path / "x.nii").extra["notes"]
    assert "bitpix is 3" in note and "float32" in note
    content = with_field(VOX_OFFSET, "f", 353)
    (tmp_path / "y.nii").write_bytes(content[:352] + b"\0" + content[352:])
    with caplog.at_level("WARNING", logger="nibabel.global"):
        shifted = check_scan(tmp_path / "y.nii")
    np.testing.assert_array_equal(shifted.dataobj, make_head(SHAPE))
    assert not [record for record in caplog.records if record.name.startswith("nibabel")]


def test_extensions_and_both_byte_orders_and_nifti_2_are_read(tmp_path):
    image = nib.Nifti1Image(make_head(SHAPE), make_affine(VOXEL_MM))
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"made by hand"))
    image.to_filename(tmp_path / "extended.nii.gz")
    header = nib.Nifti1Header(endianness=">")
    swapped = nib.Nifti1Image(make_head(SHAPE), make_affine(VOXEL_MM), header)
    swapped.header.set_data_dtype(np.dtype(">f4"))
    (tmp_path / "swapped.nii").write_bytes(swapped.to_bytes())
    nib.Nifti2Image(make_head(SHAPE), make_affine(VOXEL_MM)).to_filename(tmp_path / "second.nii.gz")
    (tmp_path / "zero.nii").write_bytes(with_field(VOX_OFFSET, "f", 0.0))
    for name in ("extended.nii.gz", "swapped.nii", "second.nii.gz", "zero.nii"):
        scan = check_scan(tmp_path / name)
        np.testing.assert_array_equal(np.asarray(scan.dataobj), make_head(SHAPE))
        np.testing.assert_allclose(peek_nifti(tmp_path / name).affine, make_affine(VOXEL_MM), atol=1e-4)


def test_memory_depends_on_the_file_and_not_on_its_header(tmp_path):
    content = with_field(DIM, "8h", 4, *SHAPE, 30000, 1, 1, 1)
    (tmp_path / "x.nii").write_bytes(content)
    with pytest.raises(InputError, match=re.escape("32 x 30 x 10 x 30000 voxels")):
        open_nifti(tmp_path / "x.nii", kind="priors")


def test_the_header_alone_tells_shape_and_place(tmp_path):
    path = write_scan(tmp_path / "x.nii.gz")
    peeked, checked = peek_nifti(path), check_scan(path)
    assert peeked.shape == checked.shape
    np.testing.assert_array_equal(peeked.affine, checked.affine)
    np.testing.assert_array_equal(np.asanyarray(checked.dataobj), make_head())


def test_a_thick_slice_scan_comes_back_as_it_is(tmp_path):
    path = write_scan(tmp_path / "x_T1w.nii.gz")
    image = check_scan(path)
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), make_head())
    np.testing.assert_allclose(image.affine, make_affine(), rtol=1e-6, atol=1e-5)


def test_scaled_integers_are_read_as_intensities(tmp_path):
    path = tmp_path / "x.nii.gz"
    image = nib.Nifti1Image(make_head(), make_affine())
    image.set_data_dtype("int16")  # nibabel stores a slope and an intercept
    image.to_filename(path)
    back = check_scan(path)
    np.testing.assert_allclose(np.asanyarray(back.dataobj), make_head(), atol=0.02)
    assert back.get_data_dtype() == np.float32


def test_a_fourth_axis_of_length_one_is_ignored(tmp_path):
    path = write_scan(tmp_path / "x.nii", make_head()[..., np.newaxis])
    assert check_scan(path).shape == HEAD


def test_an_image_with_a_qform_only_is_placed(tmp_path):
    path = write_scan(tmp_path / "x.nii", sform_code=0, qform_code=1)
    np.testing.assert_allclose(check_scan(path).affine, make_affine(), atol=1e-3)


def test_four_thick_slices_are_enough(tmp_path):
    path = write_scan(tmp_path / "x.nii", make_head()[..., 8:12], make_affine((1.2, 1.2, 10)))
    assert check_scan(path).shape == (160, 160, 4)


@pytest.mark.parametrize(
    ("spoilt", "found"),
    [
        (np.nan, "1 of 512000 voxels that are NaN or infinite"),
        (np.inf, "1 of 512000 voxels that are NaN or infinite"),
        (None, "the value 7 in every voxel"),
    ],
)
def test_voxels_without_a_value_or_of_one_value_are_refused(tmp_path, spoilt, found):
    head = make_head() if spoilt else np.full(HEAD, 7, np.float32)
    head[3, 4, 5] = spoilt or 7
    path = write_scan(tmp_path / "x_T1w.nii.gz", head)
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


def test_a_header_that_does_not_place_the_image_is_refused(tmp_path):
    path = write_scan(tmp_path / "x.nii")
    with path.open("r+b") as stream:  # nibabel itself would not write such a file
        stream.seek(252)
        stream.write(bytes(4))  # qform_code and sform_code, int16 each
    with pytest.raises(InputError, match="neither sform nor qform"):
        check_scan(path)


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
def test_a_pointer_without_content_says_how_to_fetch_it(tmp_path, pointer, command):
    path = tmp_path / "x.nii.gz"
    path.write_bytes(pointer)
    with pytest.raises(InputError, match=re.escape(f"`{command.format(path=path)}`")):
        check_scan(path)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("../../.git/annex/objects/absent", r"`datalad get .*x\.nii\.gz`"),
        ("/elsewhere/scan.nii.gz", r"/elsewhere/scan\.nii\.gz.*mount"),
        (None, "found nothing"),
    ],
)
def test_a_missing_file_or_the_target_of_a_broken_link_is_named(tmp_path, target, words):
    if target:
        (tmp_path / "x.nii.gz").symlink_to(target)
    with pytest.raises(InputError, match=words):
        check_scan(tmp_path / "x.nii.gz")


@pytest.mark.real_data
def test_real_scans_of_every_kind_are_accepted(real_data):
    for name in ("lfC01", "lfD1", "hfA58", "hfB01"):
        check_scan(real_data / "mixed" / f"sub-{name}" / "anat" / f"sub-{name}_T1w.nii.gz")


def test_the_node_removes_invalid_values_with_a_note(tmp_path, capsys):
    from iqtflow.interfaces.conform import ConformScan

    scan = write_scan(tmp_path / "scan.nii.gz")
    node = ConformScan(in_file=str(scan), sidecar={"SkullStripped": "false", "SliceThickness": 5, "X": "x"})
    done = node.run(cwd=tmp_path).outputs
    assert json.loads(Path(done.sidecar_file).read_text()) == {"SliceThickness": 5.0, "X": "x"}
    assert f'{scan}: note: sidecar: SkullStripped is "false"' in capsys.readouterr().out
