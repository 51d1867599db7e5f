"""Files of NIfTI: what they are, whether they are whole, and what their header says.

A compressed file is read to its end, where its checksum and its length stand: a bit that flipped on the way
changes voxels, and nothing else tells.
"""

from __future__ import annotations

import io
import logging
import math
import os
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np

from iqtflow.image.orientation import settle_forms
from iqtflow.utils.datalad import how_to_fetch
from iqtflow.utils.errors import InputError

Kind = Literal["scan", "map", "priors"]
#: Headers by the number that each begins with: its own size.
_FORMATS = {348: nib.Nifti1Image, 540: nib.Nifti2Image}
#: What files that are no NIfTI begin with.
_OTHERS = (
    (b"PK\x03\x04", "a zip archive"),
    (b"BZh", "a bzip2 file"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard file"),
    (b"\xfd7zXZ\x00", "an xz file"),
    (b"<", "a page of the web, or XML"),
    (b"{", "JSON"),
    (b"\x89HDF", "an HDF5 (MINC2) file"),
    (b"NRRD", "an NRRD file"),
)

_quiet = logging.getLogger(
    "iqtflow.image.nifti_file"
)  # nibabel's remarks on headers: the checks here say more
_quiet.addHandler(logging.NullHandler())
_quiet.propagate = False

#: What gzip, zlib and nibabel raise for bytes that are not what they should be.
UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    OverflowError,
    MemoryError,
    KeyError,
    zlib.error,
    nib.filebasedimages.ImageFileError,
    nib.spatialimages.HeaderDataError,
)


def open_nifti(path: str | os.PathLike, *, kind: Kind = "map") -> nib.Nifti1Image:
    """Open a NIfTI file after reading all of it; the voxels are as they are.

    Parameters
    ----------
    path
        ``.nii`` or ``.nii.gz`` file. Of a compressed file every member is decompressed, and its checksum and
        length are compared; zeros after the last one are padding, and anything else is refused.
    kind
        ``"scan"``: one volume that is as large as a head, or a good part of it. ``"map"``: one volume of any
        size. ``"priors"``: several volumes are allowed, too.

    Returns
    -------
    nibabel.Nifti1Image
        Voxels are in memory, as stored. ``affine``, sform and qform are settled
        (`iqtflow.image.orientation.settle_forms`), in mm; ``extra["notes"]`` says what was found.

    Raises
    ------
    InputError
        The file is missing, no regular file, a git-annex or Git LFS pointer without content, cut short,
        damaged, or not one file of NIfTI; its header contradicts its content, or does not say where the
        voxels are; it is no volume of several slices, or its voxels are no real numbers.
    """
    path = Path(path)
    header, offset, notes = _read_header(path, kind)
    size = math.prod(header.get_data_shape()) * header.get_data_dtype().itemsize
    content, more = io.BytesIO(), False
    left = offset + size
    try:
        for chunk in _chunks(path):
            content.write(chunk[:left])
            more = more or bool(chunk[left:].strip(b"\0"))
            left -= min(left, len(chunk))
    except UNREADABLE as fault:
        raise unreadable(path, fault) from fault
    shape = " x ".join(map(str, header.get_data_shape()))
    described = f"a header of {shape} voxels of type {header.get_data_dtype()} from byte {offset} on"
    if left:
        raise InputError(
            path,
            found=f"{described}, and a file that ends {left} bytes too early",
            expected="all voxels that the header describes",
            next_step="Copy or convert it again: it is cut short, or its header is wrong.",
        )
    if more:
        raise InputError(
            path,
            found=f"{described}, and more data after the last voxel",
            expected="a file that ends with its last voxel",
            next_step="Convert it again: the size or vox_offset in its header is wrong.",
        )
    slope, inter = header.get_slope_inter()  # None: 0 or not finite, voxels are stored as they are
    scaling = (1.0, 0.0) if slope is None else (slope, inter)
    proxy = nib.arrayproxy.ArrayProxy(
        content, (header.get_data_shape(), header.get_data_dtype(), offset, *scaling), mmap=False
    )
    made = _FORMATS[int(header["sizeof_hdr"])]
    image = made(proxy, header.get_best_affine(), header, extra={"notes": notes})
    image.set_filename(os.fspath(path))
    return image


def peek_nifti(path: str | os.PathLike) -> nib.Nifti1Image:
    """Read the header alone of a NIfTI file: shape and place are those that `open_nifti` finds, the voxels
    are all 0.

    Raises
    ------
    InputError
        As far as the header tells, as `open_nifti` of a scan.
    """
    path = Path(path)
    header, _, notes = _read_header(path, "scan")
    made = _FORMATS[int(header["sizeof_hdr"])]
    nothing = np.broadcast_to(np.zeros((), header.get_data_dtype()), header.get_data_shape())
    image = made(nothing, header.get_best_affine(), header, extra={"notes": notes})
    image.set_filename(os.fspath(path))
    return image


def check_content(path: str | os.PathLike) -> None:
    """Make sure that there is a regular file with content.

    Raises
    ------
    InputError
        It is missing, a folder, a pipe or a device, empty, closed to this user, or a pointer to content that
        a data-management tool has not fetched yet.
    """
    path = Path(path)
    try:
        status = path.stat() if path.exists() else None
    except OSError as fault:
        raise unreadable(path, fault) from fault
    if status is not None and not stat.S_ISREG(status.st_mode):
        raise InputError(
            path,
            found="a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, a socket or a device",
            expected="an image in a regular file",
            next_step="Give the path of a .nii or .nii.gz file.",
        )
    way_out = how_to_fetch(path)
    if way_out:
        link = f"a link to {os.readlink(path)}, which is not there" if path.is_symlink() else None
        raise InputError(
            path,
            found=link or "a pointer to content that has not been fetched",
            expected="an image",
            next_step=way_out,
        )
    if status is None:
        dangling = path.is_symlink()
        raise InputError(
            path,
            found=f"a link to {os.readlink(path)}, which is not there" if dangling else "nothing",
            expected="an image",
            next_step="Check what it links to; in a container, mount that too."
            if dangling
            else "Check the path.",
        )
    if status.st_size == 0:
        raise InputError(
            path, found="an empty file", expected="an image", next_step="Copy or download it again."
        )


def read_content(path: str | os.PathLike) -> bytes:
    """Return all bytes of a file, decompressed where its name ends in ``.gz``.

    Raises
    ------
    InputError
        It cannot be read, or is damaged.
    """
    path = Path(path)
    check_content(path)
    try:
        return b"".join(_chunks(path))
    except UNREADABLE as fault:
        raise unreadable(path, fault) from fault


def unreadable(path: str | os.PathLike, fault: Exception) -> InputError:
    """Say of a fault of gzip, zlib or nibabel that the file cannot be read."""
    words = "there is not enough memory for it" if isinstance(fault, MemoryError) else str(fault)
    return InputError(
        path,
        found=f"a file that cannot be read ({' '.join(words.split()) or type(fault).__name__})",
        expected="a complete NIfTI image",
        next_step="Copy or convert it again"
        + ("; `gzip -t` tells whether it is whole." if os.fspath(path).lower().endswith(".gz") else "."),
    )


def _chunks(path: Path, size: int = 1 << 20) -> Iterator[bytes]:
    """Yield all bytes of a file, at most `size` at a time; of a compressed one decompressed, to its end."""
    with open(path, "rb") as stream:
        if not path.name.lower().endswith(".gz"):
            while chunk := stream.read(size):
                yield chunk
            return
        member, given, begun, done = zlib.decompressobj(wbits=31), b"", False, False
        while given or (given := stream.read(size)):
            if done:  # zeros after a member pad it to full blocks
                given = given.lstrip(b"\0")
                if given:
                    member, done = zlib.decompressobj(wbits=31), False
                    if given[:1] != b"\x1f":
                        raise zlib.error("something that is no gzip data follows the compressed image")
                continue
            begun = True
            chunk = member.decompress(given, size)  # which compares checksum and length at the end
            given = member.unconsumed_tail or member.unused_data
            done = member.eof
            if chunk:
                yield chunk
        if begun and not done:
            raise EOFError("the compressed data are cut short")


def _read_header(path: Path, kind: Kind) -> tuple[nib.Nifti1Header, int, list[str]]:
    """Read, mend and check the header of a file: also where voxels begin, and what there is to note."""
    check_content(path)
    _check_name(path)
    try:
        start = b""
        for chunk in _chunks(path, 1024):
            start += chunk
            if len(start) >= 600:
                break
        size, order = _header_size(path, start)
        made = _FORMATS[size].header_class
        header = made(start[:size], order, check=False)
        least = int(header.single_vox_offset)
        notes = _check_fields(path, header, size, extended=any(start[size : size + 4][:1]), least=least)
        header.check_fix(logger=_quiet, error_level=40)
        stated = float(header["vox_offset"])
        offset = int(stated) if np.isfinite(stated) and stated else least  # 0: right after the header
        header.get_slope_inter(), header.get_data_dtype()
        shape = header.get_data_shape()
    except UNREADABLE as fault:
        raise unreadable(path, fault) from fault
    _check_shape(path, shape, header.get_data_dtype(), several=kind == "priors")
    header["vox_offset"] = least  # nibabel prints remarks on others, without the file's name
    notes += settle_forms(path, header, head=kind == "scan")
    slope = float(header["scl_slope"])
    if not np.isfinite(slope):
        notes.append(f"scl_slope is {slope:g} in the header: voxels are taken as they are stored.")
    return header, offset, notes


def _check_fields(
    path: Path, header: nib.Nifti1Header, size: int, *, extended: bool, least: int
) -> list[str]:
    """Make sure that fields have values with a meaning, each by its name; return what there is to note."""

    def refuse(found: str, expected: str, next_step: str = "Convert the image again.") -> InputError:
        return InputError(path, found=found, expected=expected, next_step=next_step)

    magic = bytes(np.asarray(header["magic"]).tobytes())[:3]
    right = b"n+1" if size == 348 else b"n+2"
    if magic != right:
        raise refuse(f"magic {magic.decode('latin1')!r}", f"{right.decode()!r}, in a header of {size} bytes")
    dim = [int(n) for n in header["dim"]]
    if not 1 <= dim[0] <= 7:
        filled = next((i for i, n in enumerate(dim[1:]) if n < 1), 7)
        while filled > 3 and dim[filled] == 1:
            filled -= 1
        raise refuse(
            f"dim[0] = {dim[0]}, and dim[1] to dim[7] = {', '.join(map(str, dim[1:]))}",
            "the number of dimensions, 3 for a volume, in dim[0]",
            f"Set dim[0] to {max(filled, 1)} in the header, or convert the image again.",
        )
    code, bits = int(header["datatype"]), int(header["bitpix"])
    known: Any = nib.nifti1.data_type_codes.dtype
    kind = np.dtype(known[code]) if code in known else np.dtype("V")
    if kind.itemsize == 0 or code == 1536:
        raise refuse(f"datatype {code}", "the code of a type of numbers, such as 4 (int16) or 16 (float32)")
    stated = float(header["vox_offset"])
    first = least + 16 * extended
    if stated and (not np.isfinite(stated) or stated != int(stated) or stated < first):
        behind = ", and header extensions before the voxels" if extended else ""
        raise refuse(
            f"vox_offset {stated:g}{behind}",
            f"a whole number of at least {first}, where the voxels begin",
            "Convert the image again: its header does not say where the voxels are stored.",
        )
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if np.isfinite(slope) and slope and not np.isfinite(inter):
        raise refuse(f"scl_inter {inter:g}", "a number, which is added to all voxels (0 if none)")
    if bits != 8 * kind.itemsize:
        return [f"bitpix is {bits} in the header, and the type of voxels {kind}: bitpix is not used."]
    return []


def _check_shape(path: Path, shape: tuple[int, ...], kind: np.dtype, *, several: bool) -> None:
    """Make sure that there is one volume of several slices, or there are several, of real numbers."""
    if not shape or min(shape) < 1:
        raise InputError(
            path,
            found=f"the dimensions {' x '.join(map(str, shape)) or 'none'} (dim[1] to dim[{len(shape)}])",
            expected="at least 1 voxel along each",
            next_step=f"Set dim[0] to {max(sum(n > 0 for n in shape), 1)} in the header, or convert the "
            "image again.",
        )
    if len(shape) < 3 or (not several and any(length > 1 for length in shape[3:])):
        single = len(shape) > 3 and min(shape[:3]) < 2
        raise InputError(
            path,
            found=f"{len(shape)} dimensions, shape {shape}"
            + (": one slice, several times over" if single else ""),
            expected="one three-dimensional volume",
            next_step="If the last dimension counts slices, convert the DICOM files again (dcm2niix), which "
            "stacks them; else give a whole stack of slices."
            if single
            else "Choose or average the volumes first, and store one volume per file."
            if len(shape) > 3
            else "Give the whole stack of slices as one image.",
        )
    if min(shape[:3]) < 2:
        raise InputError(
            path,
            found=f"a single slice, shape {shape[:3]}",
            expected="at least two slices along every axis",
            next_step="Give the whole stack of slices as one image.",
        )
    if kind.kind not in "biuf":
        what = {"V": "colours (RGB)", "c": "complex numbers"}.get(kind.kind, str(kind))
        raise InputError(
            path,
            found=f"voxels of type {kind if kind.kind == 'c' else what}",
            expected="one real number per voxel",
            next_step="Store the magnitude image."
            if kind.kind == "c"
            else "Give the scan itself, not a coloured map or a screenshot of it.",
        )


def _check_name(path: Path) -> None:
    """Make sure that a name and the first bytes agree on what kind of file this is."""
    name = path.name.lower()
    try:
        with open(path, "rb") as stream:
            start = stream.read(132)
    except OSError as fault:
        raise unreadable(path, fault) from fault
    if not name.endswith((".nii", ".nii.gz")):
        try:
            kind = f"an image of type {type(nib.load(path)).__name__}"
        except Exception:  # whatever it is
            kind = "a name that does not end in .nii or .nii.gz"
        pair = name.removesuffix(".gz").endswith((".hdr", ".img"))
        raise InputError(
            path,
            found=f"{kind}, in two files (.hdr and .img)" if pair else kind,
            expected="NIfTI in one file (.nii or .nii.gz)",
            next_step=f"Convert it, for instance with `nib-convert {path.name} scan.nii.gz`.",
        )
    compressed = start[:2] == b"\x1f\x8b"
    if compressed == name.endswith(".gz"):
        return
    nifti = start[:4] in {n.to_bytes(4, order) for n in _FORMATS for order in ("little", "big")}
    what = "an uncompressed NIfTI image" if nifti else _other(start)
    right = path.name + ".gz" if compressed else path.name[:-3]
    raise InputError(
        path,
        found="a compressed (gzip) file" if compressed else what,
        expected="an uncompressed file, as its name says" if compressed else "a gzip file, as its name says",
        next_step=f"Rename it to {right}."
        if compressed or nifti
        else "Copy or convert it again; `gzip -t` tells whether a .gz file is whole.",
    )


def _header_size(path: Path, start: bytes) -> tuple[int, str]:
    """Size and byte order of the header that a file starts with; one of Analyze and of a pair is refused."""
    for size, order in ((size, order) for size in _FORMATS for order in ("<", ">")):
        if start[:4] != size.to_bytes(4, "little" if order == "<" else "big"):
            continue
        magic = start[344:347] if size == 348 else start[4:7]
        if magic in (b"n+1", b"n+2") and len(start) >= size:
            return size, order
        if magic in (b"ni1", b"ni2"):
            what = "the header of an image in two files (.hdr and .img)"
        else:
            seen = magic.decode("latin1").strip("\0")
            what = (
                f"an Analyze header (magic {seen!r})"
                if len(start) >= size
                else f"a file of {len(start)} bytes"
            )
        break
    else:
        what = _other(start)
    raise InputError(
        path,
        found=f"a file that cannot be read: {what}",
        expected="NIfTI in one file (.nii or .nii.gz)",
        next_step="Convert DICOM files with `dcm2niix -b y -z y FOLDER`."
        if what.startswith("a DICOM")
        else "Copy or convert it again.",
    )


def _other(start: bytes) -> str:
    """What kind of file starts so, as far as it is known."""
    if start[128:132] == b"DICM":
        return "a DICOM file"
    for mark, what in _OTHERS:
        if start.lstrip()[: len(mark)] == mark:
            return what
    return "something that is no NIfTI image"
