"""Check one scan: can it be processed? Done before minutes of computing."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel as nib
import numpy as np

from iqtflow.image.geometry import AXIS_NAMES, slice_axis
from iqtflow.image.intensity import correct_intensities, empty_slices
from iqtflow.image.nifti import read_voxels, with_voxels
from iqtflow.image.nifti_file import open_nifti
from iqtflow.utils.errors import InputError

#: Smallest and largest absolute intensity. Beyond them 32-bit sums of squares over a volume fail.
INTENSITIES = (1e-12, 1e12)
#: Smallest difference between the voxels of a scan, as a share of the largest value.
LEAST_CONTRAST = 1e-3
#: Smallest number of different values. Masks and label maps have fewer.
LEAST_VALUES = 6


def check_scan(path: str | os.PathLike) -> nib.Nifti1Image:
    """Open a scan and check that it can be processed.

    Parameters
    ----------
    path
        ``.nii`` or ``.nii.gz`` file.

    Returns
    -------
    nibabel.Nifti1Image
        Shape (w, h, d), voxels in memory as float32. Intensities are corrected
        (`iqtflow.image.intensity.correct_intensities`), and so are sform and qform
        (`iqtflow.image.orientation.correct_forms`). ``extra["notes"]`` holds sentences for the user.

    Raises
    ------
    InputError
        `iqtflow.image.nifti_file.open_nifti` refuses the file. Or voxels are not finite, are no magnitudes,
        have inverted contrast, have too few different values, or are too large or too small for 32 bits.
    """
    path = Path(path)
    image = open_nifti(path, kind="scan")
    data = read_voxels(path, image)
    _check_voxels(path, image, data)
    data, notes = correct_intensities(path, data)
    checked = with_voxels(image, data)
    checked.extra["notes"] = [*image.extra["notes"], *notes, *_name_empty_slices(checked, data)]
    return checked


def _check_voxels(path: Path, image: nib.Nifti1Image, data: np.ndarray) -> None:
    low, high = float(data.min()), float(data.max())  # one of them is NaN or infinite if any voxel is
    largest = max(abs(low), abs(high))
    if not np.isfinite(largest):
        with np.errstate(all="ignore"):
            exact = np.asarray(image.dataobj, dtype=np.float64)
        if not np.isfinite(exact).all():
            raise InputError(
                path,
                found=f"{np.sum(~np.isfinite(exact))} of {data.size} voxels that are NaN or infinite",
                expected="finite numbers",
                next_step="Convert or reconstruct the image again, or set these voxels to zero yourself.",
            )
        largest = float(np.abs(exact).max())
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
            expected=f"between {INTENSITIES[0]:g} and {INTENSITIES[1]:g}",
            next_step="Check scl_slope in its header, or scale the image to values of about 1000.",
        )
    some = data.ravel(order="K")[:: max(data.size // 10_000, 1)]  # enough for a scan; sorting all is slow
    if len(np.unique(some)) < LEAST_VALUES and len(values := np.unique(data)) < LEAST_VALUES:
        raise InputError(
            path,
            found=f"only {len(values)} different values ({', '.join(f'{value:g}' for value in values)})",
            expected="a scan; this looks like a mask or a label map",
            next_step="Give the scan itself. In BIDS a mask is named ..._mask, and a label map ..._dseg.",
        )


def _name_empty_slices(image: nib.Nifti1Image, data: np.ndarray) -> list[str]:
    """Name slices that hold one value only, counted from 1 as in viewers."""
    axis = slice_axis(image.affine)
    empty = [index + 1 for index in empty_slices(data, axis)]
    if not empty:
        return []
    which = f"Slice {empty[0]} is" if len(empty) == 1 else f"Slices {_listed(empty)} are"
    return [
        f"{which} empty (counted from 1 along {AXIS_NAMES[axis]}, of {data.shape[axis]}). The enhanced "
        "volume is 0 there. Check whether slices were lost in the transfer."
    ]


def _listed(numbers: list[int]) -> str:
    if len(numbers) > 2 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]} to {numbers[-1]}"
    return f"{', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"
