"""Read NIfTI files: kind of file, completeness, and header.

A compressed file is read to its end, where its checksum and length are. Only they show a flipped bit in the
voxels.
"""

from __future__ import annotations

import io
import logging
import math
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np

from iqtflow.image.orientation import correct_forms
from iqtflow.utils.datalad import how_to_fetch
from iqtflow.utils.errors import InputError

Kind = Literal["scan", "map", "priors"]
#: Images by the size of their header, which is its first number.
_FORMATS = {348: nib.Nifti1Image, 540: nib.Nifti2Image}
#: First bytes of other kinds of files.
_OTHERS = (
    (b"PK\x03\x04", "a zip archive"),
    (b"BZh", "a bzip2 file"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard file"),
    (b"\xfd7zXZ\x00", "an xz file"),
    (b"<", "a web page, or XML"),
    (b"{", "JSON"),
    (b"\x89HDF", "an HDF5 (MINC2) file"),
    (b"NRRD", "an NRRD file"),
)

_quiet = logging.getLogger(__name__)  # for nibabel's remarks on headers: the checks here say more
_quiet.addHandler(logging.NullHandler())
_quiet.propagate = False

#: Exceptions of gzip, zlib and nibabel for damaged files.
_UNREADABLE = (
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
    """Open a NIfTI file after reading all of it. The voxels are not changed.

    Parameters
    ----------
    path
        ``.nii`` or ``.nii.gz`` file. Every member of a compressed file is decompressed, and its checksum and
        length are compared. Zeros after the last member are padding; anything else there is refused.
    kind
        ``"scan"``: one volume, as large as a head or a good part of it. ``"map"``: one volume of any size.
        ``"priors"``: one or several volumes.

    Returns
    -------
    nibabel.Nifti1Image
        Voxels in memory, as stored. ``affine``, sform and qform are corrected
        (`iqtflow.image.orientation.correct_forms`), in mm. ``extra["notes"]`` holds sentences for the user.

    Raises
    ------
    InputError
        The file is missing, not a regular file, a git-annex or Git LFS pointer without content, truncated,
        damaged, or not a single-file NIfTI; its header contradicts its content, or has no valid sform or
        qform (singular, not finite, absurd voxel sizes or field of view); it has a single slice or too many
        dimensions; or its voxels are not real numbers.
    """
    path = Path(path)
    header, offset, notes = _read_header(path, kind)
    size = math.prod(header.get_data_shape()) * header.get_data_dtype().itemsize
    content, more = io.BytesIO(), False
    left = offset + size
    with reading(path):
        for chunk in _chunks(path):
            content.write(chunk[:left])
            more = more or bool(chunk[left:].strip(b"\0"))
            left -= min(left, len(chunk))
    shape = " x ".join(map(str, header.get_data_shape()))
    described = f"a header of {shape} voxels of type {header.get_data_dtype()} from byte {offset} on"
    if left:
        raise InputError(
            path,
            found=f"{described}, but the file ends {left} bytes too early",
            expected="all voxels that the header describes",
            next_step="Copy or convert it again: it is truncated, or its header is wrong.",
        )
    if more:
        raise InputError(
            path,
            found=f"{described}, but more data after the last voxel",
            expected="a file that ends with its last voxel",
            next_step="Convert it again: the size or vox_offset in its header is wrong.",
        )
    slope, inter = header.get_slope_inter()  # None: 0 or not finite, voxels are not scaled
    scaling = (1.0, 0.0) if slope is None else (slope, inter)
    proxy = nib.arrayproxy.ArrayProxy(
        content, (header.get_data_shape(), header.get_data_dtype(), offset, *scaling), mmap=False
    )
    return _as_image(path, proxy, header, notes)


def peek_nifti(path: str | os.PathLike) -> nib.Nifti1Image:
    """Read only the header of a scan. Shape and affine are those of `open_nifti`; all voxels are 0.

    Raises
    ------
    InputError
        As `open_nifti`, as far as the header shows it.
    """
    path = Path(path)
    header, _, notes = _read_header(path, "scan")
    nothing = np.broadcast_to(np.zeros((), header.get_data_dtype()), header.get_data_shape())
    return _as_image(path, nothing, header, notes)


def _as_image(path: Path, voxels: Any, header: nib.Nifti1Header, notes: list[str]) -> nib.Nifti1Image:
    made = _FORMATS[int(header["sizeof_hdr"])]
    image = made(voxels, header.get_best_affine(), header, extra={"notes": notes})
    image.set_filename(os.fspath(path))
    return image


def check_content(path: str | os.PathLike) -> None:
    """Check that a path is a regular file with content.

    Raises
    ------
    InputError
        It is missing, a folder, a pipe or a device, empty, not readable, or a git-annex or Git LFS pointer
        whose content has not been fetched.
    """
    path = Path(path)
    with reading(path):
        status = path.stat() if path.exists() else None
    if status is not None and not stat.S_ISREG(status.st_mode):
        raise InputError(
            path,
            found="a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, a socket or a device",
            expected="an image in a regular file",
            next_step="Give the path of a .nii or .nii.gz file.",
        )
    broken = f"a link to {os.readlink(path)}, which does not exist" if path.is_symlink() else None
    if fetch := how_to_fetch(path):
        found = broken or "a pointer to content that has not been fetched"
        raise InputError(path, found=found, expected="an image", next_step=fetch)
    if status is None:
        check = "Check the target of the link; in a container, mount it too." if broken else "Check the path."
        raise InputError(path, found=broken or "nothing", expected="an image", next_step=check)
    if status.st_size == 0:
        raise InputError(
            path, found="an empty file", expected="an image", next_step="Copy or download it again."
        )


def read_content(path: str | os.PathLike) -> bytes:
    """Return all bytes of a file, decompressed if its name ends in ``.gz``.

    Raises
    ------
    InputError
        It cannot be read, or is damaged.
    """
    path = Path(path)
    check_content(path)
    with reading(path):
        return b"".join(_chunks(path))


@contextmanager
def reading(path: str | os.PathLike) -> Iterator[None]:
    """Turn errors of the file system, gzip, zlib and nibabel into one `InputError`."""
    try:
        yield
    except _UNREADABLE as fault:
        words = "not enough memory" if isinstance(fault, MemoryError) else str(fault)
        compressed = os.fspath(path).lower().endswith(".gz")
        raise InputError(
            path,
            found=f"a file that cannot be read ({' '.join(words.split()) or type(fault).__name__})",
            expected="a complete NIfTI image",
            next_step=f"Copy or convert it again{'; `gzip -t` checks the file' if compressed else ''}.",
        ) from fault


def _chunks(path: Path, size: int = 1 << 20) -> Iterator[bytes]:
    """Yield all bytes of a file, decompressed if it is compressed, at most `size` at a time."""
    with open(path, "rb") as stream:
        if not path.name.lower().endswith(".gz"):
            while chunk := stream.read(size):
                yield chunk
            return
        member, given, begun, done = zlib.decompressobj(wbits=31), b"", False, False
        while given or (given := stream.read(size)):
            if done:  # zeros after a member are padding
                given = given.lstrip(b"\0")
                if given:
                    member, done = zlib.decompressobj(wbits=31), False
                    if given[:1] != b"\x1f":
                        raise zlib.error("other data follow the compressed image")
                continue
            begun = True
            chunk = member.decompress(given, size)  # compares checksum and length at the end
            given = member.unconsumed_tail or member.unused_data
            done = member.eof
            if chunk:
                yield chunk
        if begun and not done:
            raise EOFError("the compressed data are truncated")


def _read_header(path: Path, kind: Kind) -> tuple[nib.Nifti1Header, int, list[str]]:
    """Read, check and correct the header of a file. Also return the first byte of the voxels, and notes."""
    check_content(path)
    _check_name(path)
    with reading(path):
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
    _check_shape(path, shape, header.get_data_dtype(), several=kind == "priors")
    header["vox_offset"] = least  # nibabel prints remarks on other values, without the file name
    notes += correct_forms(path, header, head=kind == "scan")
    slope = float(header["scl_slope"])
    if not np.isfinite(slope):
        notes.append(f"scl_slope is {slope:g} in the header: voxels are not scaled.")
    return header, offset, notes


def _check_fields(
    path: Path, header: nib.Nifti1Header, size: int, *, extended: bool, least: int
) -> list[str]:
    """Check the values of fields; return notes."""

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
            "the number of dimensions in dim[0], 3 for a volume",
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
        )
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if np.isfinite(slope) and slope and not np.isfinite(inter):
        raise refuse(f"scl_inter {inter:g}", "a number to add to all voxels, such as 0")
    if bits != 8 * kind.itemsize:
        return [f"bitpix is {bits} in the header, but the type of voxels is {kind}: bitpix is ignored."]
    return []


def _check_shape(path: Path, shape: tuple[int, ...], kind: np.dtype, *, several: bool) -> None:
    """Check that there is one volume (or several, if allowed) of several slices, with real numbers."""
    stack = "Give the whole stack of slices as one image."
    if not shape or min(shape) < 1:
        raise InputError(
            path,
            found=f"the dimensions {' x '.join(map(str, shape)) or 'none'} (dim[1] to dim[{len(shape)}])",
            expected="at least 1 voxel along each",
            next_step=f"Set dim[0] to {max(sum(n > 0 for n in shape), 1)} in the header, or convert the "
            "image again.",
        )
    if len(shape) < 3 or (not several and any(length > 1 for length in shape[3:])):
        found, next_step = f"{len(shape)} dimensions, shape {shape}", stack
        if len(shape) > 3 and min(shape[:3]) < 2:
            found += ": one slice, several times"
            next_step = (
                "If the last dimension counts slices, convert the DICOM files again (dcm2niix), which stacks "
                "them. Otherwise give the whole stack of slices."
            )
        elif len(shape) > 3:
            next_step = "Choose or average the volumes first, and store one volume per file."
        raise InputError(path, found=found, expected="one three-dimensional volume", next_step=next_step)
    if min(shape[:3]) < 2:
        expected = "at least two slices along every axis"
        raise InputError(path, found=f"a single slice, shape {shape[:3]}", expected=expected, next_step=stack)
    if kind.kind not in "biuf":
        raise InputError(
            path,
            found=f"voxels of type {'colours (RGB)' if kind.kind == 'V' else kind}",
            expected="one real number per voxel",
            next_step="Store the magnitude image."
            if kind.kind == "c"
            else "Give the scan itself, not a colour map or a screenshot of it.",
        )


def _check_name(path: Path) -> None:
    """Check that name and first bytes of a file agree."""
    name = path.name.lower()
    with reading(path), open(path, "rb") as stream:
        start = stream.read(132)
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
        expected=f"{'an uncompressed' if compressed else 'a gzip'} file, according to its name",
        next_step=f"Rename it to {right}."
        if compressed or nifti
        else "Copy or convert it again; `gzip -t` checks a .gz file.",
    )


def _header_size(path: Path, start: bytes) -> tuple[int, str]:
    """Return size and byte order of the header. Headers of Analyze and of two-file NIfTI are refused."""
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
    """Return the kind of a file from its first bytes."""
    if start[128:132] == b"DICM":
        return "a DICOM file"
    for mark, what in _OTHERS:
        if start.lstrip()[: len(mark)] == mark:
            return what
    return "no NIfTI image"
