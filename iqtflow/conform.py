"""Whether one image can be worked with: the questions asked of every scan before minutes are spent on it."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np

from iqtflow.errors import InputError
from iqtflow.pointers import how_to_fetch

MAX_VOXEL_MM = 30.0  #: no slice of a brain scan is thicker; past it the header's units are wrong
MIN_VOXEL_MM = 0.05  #: no scanner of living people resolves more
FIELD_OF_VIEW_MM = (30.0, 1000.0)  #: between a slab of a few slices and more than a head coil holds

#: What nibabel, gzip and zlib raise for a file that is cut short, or that is something else.
_UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    zlib.error,
    nib.filebasedimages.ImageFileError,
    nib.spatialimages.HeaderDataError,
)


def check_scan(path: str | os.PathLike) -> nib.Nifti1Image:
    """Open an image and make sure that it is one volume of numbers, at a known place in the world.

    Parameters
    ----------
    path
        ``.nii`` or ``.nii.gz`` file.

    Returns
    -------
    nibabel.Nifti1Image
        The image, three-dimensional (trailing axes of length 1 removed), its voxels read and held as float32.

    Raises
    ------
    InputError
        The file is missing, a git-annex or Git LFS pointer without content, cut short, or not NIfTI; the
        image is not three-dimensional, has a single slice, no sform and no qform, an affine that is singular
        or not finite, absurd voxel sizes (mm) or field of view (mm), or voxels not finite or all the
        same.
    """
    path = Path(path)
    check_content(path)
    image = _open(path)
    _check_shape(path, image)
    _check_affine(path, image)
    data = _read_voxels(path, image)
    _check_voxels(path, data)
    checked = nib.Nifti1Image(data, image.affine, image.header)
    checked.set_data_dtype(np.float32)
    return checked


def check_content(path: Path) -> None:
    """Tell a missing file from one whose content a data-management tool has not fetched yet.

    Raises
    ------
    InputError
        It is one of the two, or it is empty.
    """
    way_out = how_to_fetch(path)
    if way_out:
        link = f"a link to {os.readlink(path)}, which is not there" if path.is_symlink() else None
        raise InputError(
            path,
            found=link or "a pointer to content that has not been fetched",
            expected="an image",
            next_step=way_out,
        )
    if not path.exists():
        dangling = path.is_symlink()
        raise InputError(
            path,
            found=f"a link to {os.readlink(path)}, which is not there" if dangling else "nothing",
            expected="an image",
            next_step="Check what it links to; in a container, mount that too."
            if dangling
            else "Check the path.",
        )
    try:
        empty = path.stat().st_size == 0
    except OSError as fault:
        raise _unreadable(path, fault) from fault
    if empty:
        raise InputError(
            path, found="an empty file", expected="an image", next_step="Copy or download it again."
        )


def _open(path: Path) -> nib.Nifti1Image:
    try:
        image = nib.load(path)
    except _UNREADABLE as fault:
        raise _unreadable(path, fault) from fault
    if not isinstance(image, nib.Nifti1Image):
        raise InputError(
            path,
            found=f"an image of type {type(image).__name__}",
            expected="NIfTI",
            next_step="Convert it, for instance with `nib-convert`.",
        )
    return image


def _unreadable(path: Path, fault: Exception) -> InputError:
    return InputError(
        path,
        found=f"a file that cannot be read ({' '.join(str(fault).split()) or type(fault).__name__})",
        expected="a complete NIfTI image",
        next_step="Copy or convert it again; `gzip -t` tells whether a .gz file is whole.",
    )


def _check_shape(path: Path, image: nib.Nifti1Image) -> None:
    shape = image.shape
    if len(shape) < 3 or any(length > 1 for length in shape[3:]):
        raise InputError(
            path,
            found=f"{sum(length > 1 for length in shape)} dimensions, shape {shape}",
            expected="one three-dimensional volume",
            next_step="Choose or average the volumes first, and store one volume per file.",
        )
    if min(shape[:3]) < 2:
        raise InputError(
            path,
            found=f"a single slice, shape {shape[:3]}",
            expected="at least two slices along every axis",
            next_step="Give the whole stack of slices as one image.",
        )


def _check_affine(path: Path, image: nib.Nifti1Image) -> None:
    if image.header["sform_code"] <= 0 and image.header["qform_code"] <= 0:
        raise InputError(
            path,
            found="neither sform nor qform",
            expected="a header that says where the voxels are",
            next_step="Convert the DICOM files again (dcm2niix): without it, left and right are a guess.",
        )
    affine = image.affine
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    # Determinant over the product of the edges: 1 when the axes are orthogonal, 0 when they share a plane.
    if not np.isfinite(affine).all() or not abs(np.linalg.det(affine[:3, :3])) > 1e-3 * np.prod(sizes):
        raise InputError(
            path,
            found="an affine that is singular or not finite",
            expected="three independent axes",
            next_step="Convert the image again, or repair its header.",
        )
    if sizes.max() > MAX_VOXEL_MM or sizes.min() < MIN_VOXEL_MM:
        raise InputError(
            path,
            found=f"voxels of {_mm(sizes)} mm",
            expected=f"edges between {MIN_VOXEL_MM:g} and {MAX_VOXEL_MM:g} mm",
            next_step="Correct the voxel sizes in the header; are they in mm?",
        )
    extent = sizes * image.shape[:3]
    if extent.min() < FIELD_OF_VIEW_MM[0] or extent.max() > FIELD_OF_VIEW_MM[1]:
        raise InputError(
            path,
            found=f"a field of view of {_mm(extent)} mm",
            expected=f"between {FIELD_OF_VIEW_MM[0]:g} and {FIELD_OF_VIEW_MM[1]:g} mm along every axis",
            next_step="Correct the voxel sizes in the header, or give the whole stack of slices.",
        )


def _mm(lengths: np.ndarray) -> str:
    return " x ".join(f"{length:.4g}" for length in lengths)


def _read_voxels(path: Path, image: nib.Nifti1Image) -> np.ndarray:
    kind = image.get_data_dtype()
    if kind.kind not in "biuf":
        raise InputError(
            path,
            found=f"voxels of type {kind}",
            expected="one real number per voxel",
            next_step="Store the magnitude image.",
        )
    try:
        data = np.asarray(image.dataobj, dtype=np.float32)
    except _UNREADABLE as fault:
        raise _unreadable(path, fault) from fault
    return data.reshape(data.shape[:3])


def _check_voxels(path: Path, data: np.ndarray) -> None:
    low, high = float(data.min()), float(data.max())  # NaN and infinities show in one of the two
    if not np.isfinite([low, high]).all():
        count = int(np.size(data) - np.isfinite(data).sum())
        raise InputError(
            path,
            found=f"{count} of {data.size} voxels that are NaN or infinite",
            expected="finite numbers",
            next_step="Convert or reconstruct the image again, or set these voxels to zero yourself.",
        )
    if low == high:
        raise InputError(
            path,
            found=f"the value {low:g} in every voxel",
            expected="an image",
            next_step="Convert or reconstruct the image again.",
        )
