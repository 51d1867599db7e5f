"""Read and write volumes and JSON files. Files are written whole, and the same data give the same bytes."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from iqtflow.image.nifti_file import open_nifti, reading
from iqtflow.image.orientation import placed_like
from iqtflow.utils.errors import InputError
from iqtflow.utils.files import write_atomically, write_text
from iqtflow.utils.outputs import marked_image, signed


def read_volume(
    path: str | os.PathLike, *, like: nib.Nifti1Image | None = None
) -> tuple[nib.Nifti1Image, np.ndarray]:
    """Read a three-dimensional image.

    Parameters
    ----------
    path
        A NIfTI file.
    like
        If given, the image must be on this image's grid.

    Returns
    -------
    image : Nifti1Image
    data : ndarray, shape (w, h, d), float32

    Raises
    ------
    InputError
        The file is unreadable, not three-dimensional, not finite, or on another grid.
    """
    image = open_nifti(path)
    data = read_voxels(path, image)
    if not np.isfinite(data).all():
        raise InputError(
            path,
            found=f"{np.count_nonzero(~np.isfinite(data))} voxels that are not finite",
            expected="finite intensities",
            next_step="Convert the image again, or replace these voxels.",
        )
    if like is not None and (
        data.shape != like.shape[:3] or not np.allclose(image.affine, like.affine, atol=1e-3)
    ):
        raise InputError(
            path,
            found=f"shape {data.shape} and origin {np.round(image.affine[:3, 3], 2).tolist()}",
            expected=f"the image's grid, shape {like.shape[:3]} and origin "
            f"{np.round(like.affine[:3, 3], 2).tolist()}",
            next_step="Resample it to the image's grid.",
        )
    return with_voxels(image, data), data


def read_voxels(path: str | os.PathLike, image: nib.Nifti1Image) -> np.ndarray:
    """Return the scaled voxels (w, h, d) of an image from `open_nifti` as float32, which may be infinite."""
    with reading(path), np.errstate(all="ignore"):  # values beyond 32 bits become infinite
        return np.asarray(image.dataobj, dtype=np.float32).reshape(image.shape[:3])


def with_voxels(image: nib.Nifti1Image, data: np.ndarray) -> nib.Nifti1Image:
    """Return an image with other voxels (float32); header and notes stay."""
    made = type(image)(data, image.affine, image.header, extra=image.extra)
    made.set_data_dtype(np.float32)
    made.set_filename(image.get_filename())
    return made


def write_volume(
    path: str | os.PathLike,
    data: np.ndarray,
    affine: np.ndarray,
    *,
    like: nib.Nifti1Image | None = None,
    maker: str = "iqtflow",
) -> Path:
    """Write a volume as NIfTI.

    Parameters
    ----------
    path
        ``.nii`` or ``.nii.gz``.
    data : ndarray, shape (w, h, d)
        Stored in its own type.
    affine : ndarray, shape (4, 4)
        Voxel indices to world mm.
    like
        Image whose sform and qform, with their codes (scanner, aligned, ...), the new image takes.
    maker
        Command that makes the file, for the header.

    Raises
    ------
    InputError
        A voxel is not finite.
    OutputError
        The file cannot be written.
    """
    return write_image(path, placed_like(data, affine, like), maker=maker)


def write_image(path: str | os.PathLike, image: nib.Nifti1Image, *, maker: str = "iqtflow") -> Path:
    """Write an image; all images are written here.

    Parameters
    ----------
    path
        ``.nii`` or ``.nii.gz``.
    image
        With finite voxels.
    maker
        Command that makes the file, for the header.

    Raises
    ------
    InputError
        A voxel is not finite. Nothing is written.
    OutputError
        The file cannot be written.
    """
    require_finite(path, image)
    content: memoryview | bytes = marked_image(maker, image)
    if str(path).endswith(".gz"):
        content = gzip.compress(content, compresslevel=4, mtime=0)
    return write_atomically(path, lambda stream: stream.write(content))


def write_images(
    images: Iterable[tuple[str | os.PathLike | None, nib.Nifti1Image | None]], *, maker: str
) -> None:
    """Write several results in this order: all of them, or none if a voxel of one is not finite.

    Parameters
    ----------
    images
        Path and image; a pair without one of the two is left out.
    maker
        As for `write_image`.

    Raises
    ------
    InputError, OutputError
        As `write_image`.
    """
    made = [(path, image) for path, image in images if path is not None and image is not None]
    for path, image in made:
        require_finite(path, image)
    for path, image in made:
        write_image(path, image, maker=maker)


def require_finite(path: str | os.PathLike, image: nib.Nifti1Image) -> None:
    """Check that all voxels of a result are finite, before it is written to `path`.

    Raises
    ------
    InputError
        It states how many are not, and where the first one is.
    """
    wrong = ~np.isfinite(np.asanyarray(image.dataobj))
    if wrong.any():
        first = [int(i) for i in np.unravel_index(np.argmax(wrong), wrong.shape)]
        raise InputError(
            path,
            found=f"a result with {np.count_nonzero(wrong)} voxels that are not finite, the first at {first}",
            expected="finite voxels; this file was not written",
            next_step="Look for extreme intensities in the inputs. If there are none, choose another model, "
            "or --precision float32.",
        )


def write_json(path: str | os.PathLike, fields: dict[str, Any], *, maker: str | None = None) -> Path:
    """Write fields as indented JSON, with the command that makes the file if given."""
    text = json.dumps(fields if maker is None else signed(maker, fields), indent=2) + "\n"
    return write_text(path, text)
