"""From a volume that was interpolated between thick slices, back to these slices.

The slices are read where they were. Interpolating splines, linear and windowed-sinc interpolation keep the
values there, so that noise and detail of the slices come back.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes

from iqtflow.config import AXES, SETTINGS
from iqtflow.image.geometry import AXIS_NAMES, NEAR_ISOTROPIC_RATIO, sample_spline
from iqtflow.image.orientation import placed_like
from iqtflow.image.resolution import Resolution, find_slices, measure_resolution
from iqtflow.utils.errors import InputError

FEWEST_SLICES = 4
#: A volume that resolves this share of the stated spacing was not interpolated from such slices.
TOO_FINE = 0.5
#: From this share on, the spectrum agrees with the spacing: it is up to a fifth too small.
FINER = 0.75
#: The stated spacing may differ by this share from the one that was found: more, and the slices at the ends
#: of a head are between those that were acquired.
SAME_SPACING = 0.02


@dataclass(frozen=True)
class AcquiredSlices:
    """How a volume was brought back to slices.

    Attributes
    ----------
    axis
        Array axis of the slices.
    spacing_mm
        Their spacing.
    first
        Index of the first one along the axis, in the volume's voxels.
    how
        How their places were found (`iqtflow.image.resolution.find_slices`).
    notes
        Sentences for the user.
    """

    axis: int
    spacing_mm: float
    first: float
    how: str
    notes: tuple[str, ...] = ()

    def as_sidecar(self) -> dict[str, Any]:
        """Return the field ``AcquiredSpacing``."""
        return {
            "SpacingMm": self.spacing_mm,
            "Axis": AXIS_NAMES[self.axis],
            "FirstSlice": round(self.first, 3),
            "PlacesFrom": self.how,
        }


def as_acquired(
    image: nib.Nifti1Image, spacing_mm: float | None, axis: str | None = None, *, force: bool = False
) -> tuple[nib.Nifti1Image, Resolution, AcquiredSlices | None]:
    """Measure the resolution of a scan, and bring it back to its slices if a spacing is given.

    Parameters
    ----------
    image, axis, force
        As for `back_to_slices`.
    spacing_mm
        As for `back_to_slices`; None: the scan stays as it is.

    Returns
    -------
    scan : nibabel.Nifti1Image
    resolution : Resolution
        Of `image`.
    slices : AcquiredSlices or None
        None without `spacing_mm`.

    Raises
    ------
    InputError
        As `back_to_slices`, or there is an axis and no spacing.
    """
    if spacing_mm is None and axis is not None:
        raise InputError(
            "--acquired-axis (acquired_axis)",
            found=f"{axis!r} without --acquired-spacing",
            expected="both, or none of the two",
            next_step="Add --acquired-spacing MM (acquired_spacing=MM): the distance of the slices.",
        )
    resolution = measure_resolution(np.asarray(image.dataobj), image.affine)
    if spacing_mm is None:
        return image, resolution, None
    scan, slices = back_to_slices(image, spacing_mm, axis, resolution=resolution, force=force)
    return scan, resolution, slices


def back_to_slices(
    image: nib.Nifti1Image,
    spacing_mm: float,
    axis: str | None = None,
    *,
    resolution: Resolution,
    force: bool = False,
) -> tuple[nib.Nifti1Image, AcquiredSlices]:
    """Bring an interpolated volume back to the slices that it was made from.

    Parameters
    ----------
    image
        From `iqtflow.image.validate.check_scan`.
    spacing_mm
        Distance between the centres of the slices as they were acquired.
    axis
        Array axis "x", "y" or "z" of the slices; None: the one with the coarsest measured resolution.
    resolution
        Of the volume, measured.
    force
        Also a volume that resolves much more than such slices.

    Returns
    -------
    scan : nibabel.Nifti1Image
        Thick-slice scan; each slice is at its place in the world. Filename and notes are those of the volume.
    slices : AcquiredSlices

    Raises
    ------
    InputError
        The spacing or the axis is not allowed or does not fit the volume, the axis is not stated and none is
        coarse, or the volume resolves more than such slices.
    """
    name = image.get_filename() or "scan"
    number = choose_axis(name, axis, resolution)
    grid = slice_grid(image, spacing_mm, number)
    if not force:
        require_coarse(name, resolution, number, spacing_mm)
    data = np.asarray(image.dataobj, dtype=np.float32)
    first, how = find_slices(data, image.affine, number, spacing_mm)
    step, n = spacing_mm / resolution.voxel_mm[number], data.shape[number]
    first = first - step if first > step - 0.25 else first  # just outside of the first voxel
    where = np.arange(first, n - 0.75, step)
    if how == "repeated slices":
        slices = np.take(data, np.clip(np.round(where).astype(int), 0, n - 1), axis=number)
    else:
        slices = sample_spline(data, number, where)
        slices = np.maximum(slices, min(float(data.min()), 0.0))  # a magnitude image stays one
    affine = image.affine.copy()
    affine[:3, 3] += affine[:3, number] * first
    affine[:3, number] = grid.affine[:3, number]
    scan = placed_like(np.ascontiguousarray(slices), affine, image)
    scan.extra.update(image.extra)
    if image.get_filename():
        scan.set_filename(image.get_filename())
    notes = [
        f"The volume was brought back to {len(where)} slices, {spacing_mm:g} mm apart along {AXES[number]} "
        f"({how})."
    ]
    if how == "centred":
        notes.append(
            "The places of the acquired slices were not found: slices centred in the volume are used."
        )
    if told := doubt_spacing(resolution, number, spacing_mm):
        notes.append(told)
    return scan, AcquiredSlices(number, float(spacing_mm), first, how, tuple(notes))


def choose_axis(name: str | os.PathLike, axis: str | None, resolution: Resolution) -> int:
    """Return the array axis of the slices: the one that is stated, else the coarsest one.

    Raises
    ------
    InputError
        The axis is unknown, or not stated and none is coarse.
    """
    if axis is not None:
        if axis not in AXES:
            raise InputError(
                "acquired_axis",
                found=repr(axis),
                expected=f"one of {', '.join(AXES)}",
                next_step="Correct this argument.",
            )
        return AXES.index(axis)
    if resolution.coarse_axis is None:
        raise InputError(
            name,
            found=f"no axis that is clearly coarser than the others (measured: {resolution.words()})",
            expected="a volume that was interpolated from thick slices",
            next_step="Leave out --acquired-spacing for this scan, or state the axis with --acquired-axis.",
        )
    return resolution.coarse_axis


def require_coarse(name: str | os.PathLike, resolution: Resolution, axis: int, spacing_mm: float) -> None:
    """Raise an error if a volume resolves much more than slices of this spacing.

    Raises
    ------
    InputError
        It does.
    """
    measured = resolution.mm[axis]
    if measured is not None and measured < TOO_FINE * spacing_mm:
        raise InputError(
            name,
            found=f"a resolution of {measured:.3g} mm along {AXES[axis]} (measured: {resolution.words()})",
            expected=f"a volume that was interpolated from slices {spacing_mm:g} mm apart",
            next_step="Correct --acquired-spacing or --acquired-axis; in a data set, choose the interpolated "
            "scans with --bids-filter-file. With --force the slices are taken all the same.",
        )


def doubt_spacing(resolution: Resolution, axis: int, spacing_mm: float) -> str | None:
    """Return a sentence if what was measured does not fit the stated spacing, else None."""
    measured = resolution.mm[axis]
    if measured is None:
        return None
    if resolution.found[axis] and abs(measured / spacing_mm - 1) > SAME_SPACING:
        return (
            f"--acquired-spacing is {spacing_mm:g} mm, but slices {measured:.3g} mm apart were found: check "
            "the spacing in the protocol."
        )
    if measured < FINER * spacing_mm:
        return (
            f"--acquired-spacing is {spacing_mm:g} mm, but the resolution along {AXES[axis]} is "
            f"{measured:.3g} mm: check that this scan was interpolated from such slices. If not, detail is "
            "lost."
        )
    return None


def slice_grid(image: nib.Nifti1Image, spacing_mm: float, axis: int) -> nib.Nifti1Image:
    """Return an image without voxels on the grid of the slices, for decisions that need the header only.

    Raises
    ------
    InputError
        Such slices do not fit the volume.
    """
    sizes, name = voxel_sizes(image.affine), image.get_filename() or "scan"
    item = SETTINGS["enhance"]["acquired_spacing"]
    try:
        spacing_mm = float(item.convert(spacing_mm))
    except (ValueError, TypeError):
        raise InputError(
            "acquired_spacing",
            found=repr(spacing_mm),
            expected=f"{item.expected_one} (mm)",
            next_step="Correct this argument.",
        ) from None
    own, others = float(sizes[axis]), np.delete(sizes, axis)
    least = NEAR_ISOTROPIC_RATIO * max(own, float(np.sqrt(np.prod(others))))
    count = int(image.shape[axis] * own / spacing_mm)
    found = f"--acquired-spacing {spacing_mm:g} along {AXES[axis]}"
    if own >= (1 - SAME_SPACING) * spacing_mm:
        raise InputError(
            name,
            found=f"{found}, where the voxels are {own:.4g} mm already",
            expected="a volume that was interpolated to thinner voxels",
            next_step="Leave out --acquired-spacing: the slices of this scan are as acquired.",
        )
    if spacing_mm < least or spacing_mm <= others.max():
        raise InputError(
            name,
            found=f"{found}, voxels of {' x '.join(f'{v:.3g}' for v in sizes)} mm",
            expected=f"a spacing of {max(least, float(others.max())):.3g} mm or more",
            next_step="Give the distance of the slices as they were acquired, and their axis, from the "
            "protocol; or leave out --acquired-spacing.",
        )
    if count < FEWEST_SLICES:
        raise InputError(
            name,
            found=f"{found}: {count} slices in {image.shape[axis] * own:.4g} mm",
            expected=f"{FEWEST_SLICES} slices or more",
            next_step="Correct --acquired-spacing or --acquired-axis.",
        )
    shape = tuple(count if a == axis else n for a, n in enumerate(image.shape[:3]))
    affine = image.affine.copy()
    affine[:3, axis] *= spacing_mm / own
    empty = nib.Nifti1Image(np.broadcast_to(np.float32(0), shape), affine)
    if image.get_filename():
        empty.set_filename(image.get_filename())
    return empty


def advise(resolution: Resolution) -> tuple[str, str] | None:
    """Return what was measured and what to do, as sentences, if a scan was interpolated from thick slices."""
    axis = resolution.coarse_axis
    if axis is None:
        return None
    about = "" if resolution.found[axis] else "about "
    return (
        f"a scan that was interpolated from slices {about}{resolution.mm[axis]:.3g} mm apart (measured "
        f"resolution: {resolution.words()})",
        f"Bring it back to its slices: --acquired-spacing {resolution.mm[axis]:.3g} --acquired-axis "
        f"{AXES[axis]} (use the spacing of the protocol if you know it).",
    )
