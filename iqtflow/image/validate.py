"""Whether one image can be worked with: the questions asked of every scan before minutes are spent on it."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel as nib
import numpy as np

from iqtflow.image.geometry import AXIS_NAMES, voxel_sizes
from iqtflow.image.intensity import empty_slices, settle_intensities
from iqtflow.image.nifti import in_memory
from iqtflow.image.nifti_file import UNREADABLE, open_nifti, unreadable
from iqtflow.utils.errors import InputError

#: Largest intensities (by magnitude) that 32-bit arithmetic can square and sum over a volume, and smallest.
INTENSITIES = (1e-12, 1e12)
#: An image has at least this difference between its voxels, as a share of the largest value.
LEAST_CONTRAST = 1e-3
#: An image has at least so many different values; masks and maps of a few labels have fewer.
LEAST_VALUES = 6


def check_scan(path: str | os.PathLike) -> nib.Nifti1Image:
    """Open an image and make sure that it is one volume of numbers, at a known place in the world.

    Parameters
    ----------
    path
        ``.nii`` or ``.nii.gz`` file.

    Returns
    -------
    nibabel.Nifti1Image
        The image, three-dimensional (trailing axes of length 1 removed), its voxels read and held as float32,
        air at 0 (`iqtflow.image.intensity.settle_intensities`), both forms of the affine settled
        (`iqtflow.image.orientation.settle_forms`). ``extra["notes"]`` lists what a user should know, as
        sentences.

    Raises
    ------
    InputError
        The file is missing, no regular file, a git-annex or Git LFS pointer without content, cut short,
        damaged, or not NIfTI; the image is not three-dimensional, has a single slice, no sform and no qform
        that can be right (singular or not finite, absurd voxel sizes or field of view, in mm), or voxels that
        are not finite, no magnitudes, inverted, or of a few values only.
    """
    path = Path(path)
    image = open_nifti(path, kind="scan")
    data = _read_voxels(path, image)
    _check_voxels(path, image, data)
    data, notes = settle_intensities(path, data)
    checked = in_memory(image, data)
    checked.extra["notes"] = [*image.extra["notes"], *notes, *_name_empty_slices(checked, data)]
    return checked


def _read_voxels(path: Path, image: nib.Nifti1Image) -> np.ndarray:
    try:
        with np.errstate(all="ignore"):  # what does not fit into 32 bits is told below
            data = np.asarray(image.dataobj, dtype=np.float32)
    except UNREADABLE as fault:
        raise unreadable(path, fault) from fault
    return data.reshape(data.shape[:3])


def _check_voxels(path: Path, image: nib.Nifti1Image, data: np.ndarray) -> None:
    low, high = float(data.min()), float(data.max())  # NaN and infinities show in one of the two
    largest = max(abs(low), abs(high))
    if not np.isfinite(largest):
        with np.errstate(all="ignore"):
            exact = np.asarray(image.dataobj, dtype=np.float64)
        if np.isfinite(exact).all():
            largest = float(np.abs(exact).max())
        else:
            raise InputError(
                path,
                found=f"{np.sum(~np.isfinite(exact))} of {data.size} voxels that are NaN or infinite",
                expected="finite numbers",
                next_step="Convert or reconstruct the image again, or set these voxels to zero yourself.",
            )
    if low == high and largest <= INTENSITIES[1]:
        raise InputError(
            path,
            found=f"the value {low:g} in every voxel",
            expected="an image",
            next_step="Convert or reconstruct the image again.",
        )
    if high - low < LEAST_CONTRAST * largest:
        raise InputError(
            path,
            found=f"values from {low:.7g} to {high:.7g}: nearly the same in every voxel",
            expected="an image with contrast",
            next_step="Check scl_slope and scl_inter in its header, or convert the image again.",
        )
    if not INTENSITIES[0] <= largest <= INTENSITIES[1]:
        raise InputError(
            path,
            found=f"intensities up to {largest:.3g}",
            expected=f"between {INTENSITIES[0]:g} and {INTENSITIES[1]:g}, which 32-bit numbers can hold",
            next_step="Multiply the image by a number that brings its largest value to about 1000; check "
            "scl_slope in its header.",
        )
    some = data.ravel(order="K")[:: max(data.size // 10_000, 1)]  # of a scan, enough; all are slow to sort
    if len(np.unique(some)) < LEAST_VALUES and len(values := np.unique(data)) < LEAST_VALUES:
        raise InputError(
            path,
            found=f"{len(values)} different values only ({', '.join(f'{value:g}' for value in values)})",
            expected="a scan; this looks like a mask or a map of labels",
            next_step="Give the scan itself. In BIDS a mask is named ..._mask, and a map of labels ..._dseg.",
        )


def _name_empty_slices(image: nib.Nifti1Image, data: np.ndarray) -> list[str]:
    """Name slices that hold one value only, counted from 1 as viewers do."""
    axis = int(np.argmax(voxel_sizes(image.affine)))
    empty = [index + 1 for index in empty_slices(data, axis)]
    if not empty:
        return []
    which = f"Slice {empty[0]} is" if len(empty) == 1 else f"Slices {_listed(empty)} are"
    return [
        f"{which} empty (counted from 1 along {AXIS_NAMES[axis]}, of {data.shape[axis]}): an enhanced volume "
        "is 0 there. Were they lost in the transfer?"
    ]


def _listed(numbers: list[int]) -> str:
    if len(numbers) > 2 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]} to {numbers[-1]}"
    return f"{', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"
