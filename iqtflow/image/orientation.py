"""Where an image is in the world: its header says so twice, and everything here reads both.

NIfTI has two forms of the affine, each with a code that says to which space it leads: the sform is any
matrix, the qform a rotation with the voxel sizes of ``pixdim``. Programs differ in which one they believe.
"""

from __future__ import annotations

import itertools
import os

import nibabel as nib
import numpy as np
from nibabel.quaternions import quat2mat

from iqtflow.image.geometry import voxel_sizes
from iqtflow.utils.errors import InputError

MAX_VOXEL_MM = 30.0  #: no slice of a brain scan is thicker; past it the header's units are wrong
MIN_VOXEL_MM = 0.05  #: no scanner of living people resolves more
FIELD_OF_VIEW_MM = (30.0, 1000.0)  #: between a slab of a few slices and more than a head coil holds

FARTHEST_MM = 10_000.0  #: no scanner puts a head further from its centre; 32-bit numbers are too coarse there

#: Forms that put no voxel further apart than this, in mm, say the same.
SAME_PLACE_MM = 0.5
#: Voxel sizes of two forms differ by more than this factor only if one of them is wrong: a linear
#: registration to a template scales a head by less.
LARGEST_SCALING = 1.25
#: Length of a quaternion beyond 1 that is rounding.
QUATERNION_ROUNDING = 1e-2
#: Factor to mm of the units of length that a header may state.
_TO_MM = {1: (1000.0, "metres"), 3: (0.001, "microns")}
_SPACES = {1: "scanner", 2: "aligned", 3: "Talairach", 4: "MNI 152", 5: "template"}


def settle_forms(path: str | os.PathLike, header: nib.Nifti1Header, *, head: bool = True) -> list[str]:
    """Decide which form of the affine is believed, and make the header say so.

    The sform is, as everywhere, unless it cannot be right and the qform can: it is singular or not finite,
    or its voxels are of another size than the qform and ``pixdim`` say (`LARGEST_SCALING`), as of a
    placeholder. A form that is not believed and cannot be right is replaced by the other one; forms that are
    both possible stay as they are.

    Parameters
    ----------
    path
        The file, for messages.
    header
        Of a volume. Changed in place: afterwards both forms can be read, each code is 0 or belongs to a form
        that can be right, ``get_best_affine()`` is the affine to use, and everything is in mm.

    head
        Whether the image has to be as large as a head, or a good part of it. Of others the size only tells
        which form is right.

    Returns
    -------
    list of str
        What a user should know, as sentences.

    Raises
    ------
    InputError
        There is no form, neither can be right, or nothing tells which voxel size is.
    """
    notes: list[str] = []
    shape = tuple(header.get_data_shape()[:3])
    sform, qform, pixdim_mm = _in_mm(header, shape, notes)
    codes = {"sform": int(header["sform_code"]), "qform": int(header["qform_code"])}
    given = {name: form for name, form in (("sform", sform), ("qform", qform)) if codes[name] > 0}
    if not given:
        raise InputError(
            path,
            found="neither sform nor qform",
            expected="a header that says where the voxels are",
            next_step="Convert the DICOM files again (dcm2niix): without it, left and right are a guess.",
        )
    faults = {name: fault for name, form in given.items() if (fault := fault_of(form, shape))}
    if len(faults) == len(given) and not head:
        faults = {name: faults[name] for name, form in given.items() if not _is_affine(form)}
    if len(faults) == len(given):
        found, expected, next_step = next(iter(faults.values()))
        raise InputError(path, found=found, expected=expected, next_step=next_step)
    for name, (found, _, _) in faults.items():
        other = "qform" if name == "sform" else "sform"
        notes.append(f"The {name} is not usable ({found}): the {other} is used in its place.")
    good = [name for name in given if name not in faults]
    taken = _believed(path, given, good, pixdim_mm, notes)
    for name in set(given) - set(good if taken == "sform" else [taken]):
        given[name], codes[name] = given[taken], codes[taken]
    _write(header, given, codes)
    if len(good) == 2 and taken == "sform":
        notes.extend(_disagreement(given, codes, shape))
    return notes


def fault_of(affine: np.ndarray, shape: tuple[int, ...]) -> tuple[str, str, str] | None:
    """Tell why an affine cannot be that of a head scan of this shape: found, expected, next step; or None."""
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    if not _is_affine(affine):
        return (
            "an affine that is singular or not finite",
            "three independent axes",
            "Convert the image again, or repair its header.",
        )
    if sizes.max() > MAX_VOXEL_MM or sizes.min() < MIN_VOXEL_MM:
        return (
            f"voxels of {_by(sizes)} mm",
            f"edges between {MIN_VOXEL_MM:g} and {MAX_VOXEL_MM:g} mm",
            "Correct the voxel sizes in the header; are they in mm?",
        )
    if np.abs(affine[:3, 3]).max() > FARTHEST_MM:
        return (
            f"an origin at {_by(affine[:3, 3])} mm",
            f"one within {FARTHEST_MM / 1000:g} m of the scanner's centre",
            "Convert the image again, or repair its header.",
        )
    extent = sizes * shape[:3]
    if extent.min() < FIELD_OF_VIEW_MM[0] or extent.max() > FIELD_OF_VIEW_MM[1]:
        return (
            f"a field of view of {_by(extent)} mm",
            f"between {FIELD_OF_VIEW_MM[0]:g} and {FIELD_OF_VIEW_MM[1]:g} mm along every axis",
            "Correct the voxel sizes in the header, or give the whole stack of slices.",
        )
    return None


def placed_like(data: np.ndarray, affine: np.ndarray, like: nib.Nifti1Image | None) -> nib.Nifti1Image:
    """Make an image that has both forms and codes of another one, for a grid of its own.

    Parameters
    ----------
    data : ndarray, shape (w, h, d)
        Voxels, stored in their own type.
    affine : ndarray, shape (4, 4)
        Voxel indices to world mm, in the space of ``like.affine``.
    like
        The image that it was made from; each of its forms is carried over by itself. Without one, or without
        a form in it, both are `affine`, code 1. A qform holds no shear: where that would move a voxel by more
        than `SAME_PLACE_MM` it is left out (code 0).
    """
    forms, codes = {"sform": affine, "qform": affine}, {"sform": 0, "qform": 0}
    if like is not None:
        step = np.linalg.inv(like.affine) @ affine  # voxels of the new grid to voxels of the other one
        for name, form in _read(like.header).items():
            if like.header[f"{name}_code"] > 0 and np.isfinite(form).all():
                forms[name], codes[name] = form @ step, int(like.header[f"{name}_code"])
    if not any(codes.values()):
        codes = {"sform": 1, "qform": 1}
    header = nib.Nifti1Header()
    header.set_data_shape(data.shape)
    header.set_data_dtype(data.dtype)
    header.set_xyzt_units("mm")
    _write(header, forms, codes)
    return nib.Nifti1Image(data, header.get_best_affine(), header)


def distance_mm(one: np.ndarray, other: np.ndarray, shape: tuple[int, ...]) -> float:
    """Largest distance between where two affines put a voxel of a field of view."""
    corners = np.array(list(itertools.product(*((-0.5, n - 0.5) for n in shape[:3]))))
    moved = nib.affines.apply_affine(one, corners) - nib.affines.apply_affine(other, corners)
    return float(np.linalg.norm(moved, axis=1).max())


def _is_affine(affine: np.ndarray) -> bool:
    """Whether an affine is finite and has three independent axes."""
    edges = affine[:3, :3]
    with np.errstate(all="ignore"):
        # Determinant over the product of the edges: 1 when axes are orthogonal, 0 when they share a plane.
        volume = np.linalg.det(edges / np.linalg.norm(edges, axis=0))
    return bool(np.isfinite(affine).all() and abs(volume) > 1e-3)


def _in_mm(
    header: nib.Nifti1Header, shape: tuple[int, ...], notes: list[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read both forms and the voxel sizes; those in metres or microns are turned into mm."""
    forms = _read(header)
    sform, qform = forms["sform"], forms["qform"]
    pixdim = np.abs(np.asarray(header["pixdim"][1:4], dtype=float))
    factor, name = _TO_MM.get(int(header["xyzt_units"]) & 7, (1.0, "mm"))
    header.set_xyzt_units("mm")
    if factor == 1:
        return sform, qform, pixdim
    if fault_of(sform if header["sform_code"] > 0 else qform, shape) is None:
        notes.append(f"The header gives {name} as its unit, but its numbers are in mm: mm are used.")
        return sform, qform, pixdim
    sform[:3] *= factor
    qform[:3] *= factor
    notes.append(f"The header is in {name}: outputs are in mm.")
    return sform, qform, pixdim * factor


def _read(header: nib.Nifti1Header) -> dict[str, np.ndarray]:
    """Both forms as the header has them, whatever their codes; NaN where there is no rotation."""
    sform, qform = np.eye(4), np.eye(4)
    sform[:3] = [np.asarray(header[f"srow_{axis}"], dtype=float) for axis in "xyz"]
    with np.errstate(all="ignore"):
        qform[:3, :3] = _rotation(header) * np.abs(np.asarray(header["pixdim"][1:4], dtype=float))
    qform[:3, 2] *= -1 if header["pixdim"][0] < 0 else 1
    qform[:3, 3] = [float(header[f"qoffset_{axis}"]) for axis in "xyz"]
    return {"sform": sform, "qform": qform}


def _rotation(header: nib.Nifti1Header) -> np.ndarray:
    """Rotation of the qform; NaN where its quaternion is none, though one beyond 1 by rounding is."""
    b, c, d = (float(header[f"quatern_{axis}"]) for axis in "bcd")
    rest = 1 - (b * b + c * c + d * d)
    if not rest > -QUATERNION_ROUNDING:
        return np.full((3, 3), np.nan)
    return quat2mat((np.sqrt(max(rest, 0.0)), b, c, d))


def _believed(
    path: str | os.PathLike,
    given: dict[str, np.ndarray],
    good: list[str],
    pixdim_mm: np.ndarray,
    notes: list[str],
) -> str:
    """Name the form that is believed; `notes` grow by the reason where it takes one."""
    if good[0] == "qform":
        return "qform"
    sizes = voxel_sizes(given["sform"])
    with np.errstate(all="ignore"):
        scaling = np.exp(np.abs(np.log(sizes / pixdim_mm)).max())
    says_nothing = np.allclose(pixdim_mm, 1) or not (
        pixdim_mm.min() >= MIN_VOXEL_MM and pixdim_mm.max() <= MAX_VOXEL_MM
    )
    stated = f"the sform has voxels of {_by(sizes)} mm, pixdim says {_by(pixdim_mm)} mm"
    if says_nothing or scaling <= LARGEST_SCALING:
        if not says_nothing and "qform" not in good and scaling > 1.02:
            notes.append(f"Voxel sizes differ ({stated}): the sform is used.")
        return "sform"
    if "qform" in good:
        notes.append(f"Voxel sizes differ ({stated}): the qform is used, and replaces the sform in outputs.")
        return "qform"
    raise InputError(
        path,
        found=f"two voxel sizes: {stated}",
        expected="one voxel size, or a qform that tells which is right",
        next_step="Convert the DICOM files again (dcm2niix), or correct the one that is wrong.",
    )


def _disagreement(given: dict[str, np.ndarray], codes: dict[str, int], shape: tuple[int, ...]) -> list[str]:
    """Note that forms put the voxels elsewhere: one sentence, two where left and right are at stake."""
    apart = distance_mm(given["sform"], given["qform"], shape)
    if apart <= SAME_PLACE_MM:
        return []
    named = " and ".join(f"{n} ({_SPACES.get(codes[n], codes[n])})" for n in ("sform", "qform"))
    notes = [f"{named} put voxels up to {apart:.1f} mm apart: the sform is used; outputs keep both."]
    if np.linalg.det(given["sform"][:3, :3]) * np.linalg.det(given["qform"][:3, :3]) < 0:
        notes.append("They are mirror images: check left and right.")
    return notes


def _write(header: nib.Nifti1Header, given: dict[str, np.ndarray], codes: dict[str, int]) -> None:
    """Write both forms; voxel sizes in ``pixdim`` are the qform's where there is one.

    A form with the code 0 is written as the other one, for readers that do not look at codes.
    """
    best = given["sform"] if codes["sform"] else given["qform"]
    qform = given["qform"] if codes["qform"] else best
    header.set_sform(best, codes["sform"])
    header.set_qform(qform, codes["qform"])
    if codes["sform"] and distance_mm(_read(header)["qform"], qform, header.get_data_shape()) > SAME_PLACE_MM:
        header["qform_code"] = 0  # it has shear


def _by(lengths: np.ndarray) -> str:
    return " x ".join(f"{length:.4g}" for length in lengths)
