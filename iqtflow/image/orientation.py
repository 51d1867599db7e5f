"""Place of an image in the world: sform, qform, and the order of its axes.

NIfTI stores the affine twice, each time with a code for its space. The sform is any matrix; the qform is a
rotation with the voxel sizes of ``pixdim``. Programs differ in which one they use.
"""

from __future__ import annotations

import itertools
import os

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.orientations import inv_ornt_aff, ornt_transform
from nibabel.quaternions import quat2mat

from iqtflow.utils.errors import InputError

MAX_VOXEL_MM = 30.0  #: slices of brain scans are thinner; above it the header's units are wrong
MIN_VOXEL_MM = 0.05  #: scanners for living people do not resolve less
FIELD_OF_VIEW_MM = (30.0, 1000.0)  #: from a slab of a few slices to more than a head coil holds

FARTHEST_MM = 10_000.0  #: from the centre of the scanner; 32-bit numbers are too coarse beyond it

#: Two forms agree if no voxel is further apart than this, in mm.
SAME_PLACE_MM = 0.5
#: If voxel sizes of two forms differ by more than this factor, one is wrong. A linear registration to a
#: template scales a head by less.
LARGEST_SCALING = 1.25
#: A quaternion may be longer than 1 by this much through rounding.
QUATERNION_ROUNDING = 1e-2
#: Units of length in headers: factor to mm, and name.
_TO_MM = {1: (1000.0, "metres"), 3: (0.001, "microns")}
_SPACES = {1: "scanner", 2: "aligned", 3: "Talairach", 4: "MNI 152", 5: "template"}


def correct_forms(path: str | os.PathLike, header: nib.Nifti1Header, *, head: bool = True) -> list[str]:
    """Decide which form of the affine is used, and correct the header.

    The sform is used, unless it is wrong and the qform is valid. It is wrong if it is singular or not
    finite, or if its voxel sizes differ from the qform and ``pixdim`` (`LARGEST_SCALING`), as in a
    placeholder. A wrong form is replaced by the other one. Two valid forms both stay.

    Parameters
    ----------
    path
        The file, for messages.
    header
        Header of a volume, changed in place. Afterwards both forms are readable, each code is 0 or that of a
        valid form, ``get_best_affine()`` is the affine to use, and everything is in mm.
    head
        The image must be as large as a head, or a good part of it. For other images the size only decides
        which form is right.

    Returns
    -------
    list of str
        Notes for the user, as sentences.

    Raises
    ------
    InputError
        There is no form, both are wrong, or there are two voxel sizes and nothing decides between them.
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
            expected="a header with the place of the voxels",
            next_step="Convert the DICOM files again (dcm2niix): without it, left and right are a guess.",
        )
    faults = {name: fault for name, form in given.items() if (fault := affine_error(form, shape))}
    if len(faults) == len(given) and not head:
        faults = {name: faults[name] for name, form in given.items() if not _is_affine(form)}
    if len(faults) == len(given):
        found, expected, next_step = next(iter(faults.values()))
        raise InputError(path, found=found, expected=expected, next_step=next_step)
    for name, (found, _, _) in faults.items():
        other = "qform" if name == "sform" else "sform"
        notes.append(f"The {name} is not usable ({found}): the {other} is used in its place.")
    good = [name for name in given if name not in faults]
    taken = _choose_form(path, given, good, pixdim_mm, notes)
    for name in set(given) - set(good if taken == "sform" else [taken]):
        given[name], codes[name] = given[taken], codes[taken]
    _write(header, given, codes)
    if len(good) == 2 and taken == "sform":
        notes.extend(_disagreement(given, codes, shape))
    return notes


def affine_error(affine: np.ndarray, shape: tuple[int, ...]) -> tuple[str, str, str] | None:
    """Return why an affine is wrong for a head scan of this shape: found, expected, next step; or None."""
    sizes = voxel_sizes(affine)
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
    """Make an image on a new grid, with the sform, the qform and the codes of another image.

    Parameters
    ----------
    data : ndarray, shape (w, h, d)
        Voxels, stored in their own type.
    affine : ndarray, shape (4, 4)
        Voxel indices to world mm, in the space of ``like.affine``.
    like
        The image that it was made from. Each of its forms is taken over. If it has none, or is None, both
        forms are `affine` with code 1. A qform has no shear; if that would move a voxel by more than
        `SAME_PLACE_MM`, it is left out (code 0).
    """
    forms, codes = {"sform": affine, "qform": affine}, {"sform": 0, "qform": 0}
    if like is not None:
        step = np.linalg.inv(like.affine) @ affine  # voxels of the new grid to voxels of `like`
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


class ReorientedScan:
    """A scan with its axes reordered to RAS, and the way back for results.

    Parameters
    ----------
    scan
        From `iqtflow.image.validate.check_scan`.
    axis
        Slice axis in the file.

    Attributes
    ----------
    data : ndarray, shape (w, h, d), float32
        Voxels in RAS order.
    affine : ndarray, shape (4, 4)
        Voxel indices of `data` to world mm.
    axis
        Slice axis of `data`.
    """

    def __init__(self, scan: nib.Nifti1Image, axis: int) -> None:
        data = np.asarray(scan.dataobj, dtype=np.float32).reshape(scan.shape[:3])
        to_ras = nib.io_orientation(scan.affine)
        self.scan = scan
        self.data = np.ascontiguousarray(nib.apply_orientation(data, to_ras))
        self.affine = scan.affine @ inv_ornt_aff(to_ras, data.shape)
        self.axis = int(to_ras[axis, 0])
        self._from_ras = ornt_transform([[0, 1], [1, 1], [2, 1]], to_ras)

    def put_back(self, data: np.ndarray, affine: np.ndarray) -> nib.Nifti1Image:
        """Return an image with axes as in the scan's file, and with its qform and sform."""
        stored = np.ascontiguousarray(nib.apply_orientation(data, self._from_ras))
        return placed_like(stored, affine @ inv_ornt_aff(self._from_ras, data.shape), self.scan)


def distance_mm(one: np.ndarray, other: np.ndarray, shape: tuple[int, ...]) -> float:
    """Return the largest distance (mm) between the places of a voxel by two affines."""
    corners = np.array(list(itertools.product(*((-0.5, n - 0.5) for n in shape[:3]))))
    moved = nib.affines.apply_affine(one, corners) - nib.affines.apply_affine(other, corners)
    return float(np.linalg.norm(moved, axis=1).max())


def _is_affine(affine: np.ndarray) -> bool:
    """Return whether an affine is finite and has three independent axes."""
    edges = affine[:3, :3]
    with np.errstate(all="ignore"):
        # Determinant over the product of the edges: 1 for orthogonal axes, 0 for axes in one plane.
        volume = np.linalg.det(edges / np.linalg.norm(edges, axis=0))
    return bool(np.isfinite(affine).all() and abs(volume) > 1e-3)


def _in_mm(
    header: nib.Nifti1Header, shape: tuple[int, ...], notes: list[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read both forms and the voxel sizes. Metres and microns become mm."""
    sform, qform = _read(header).values()
    pixdim = np.abs(np.asarray(header["pixdim"][1:4], dtype=float))
    factor, name = _TO_MM.get(int(header["xyzt_units"]) & 7, (1.0, "mm"))
    header.set_xyzt_units("mm")
    if factor == 1:
        return sform, qform, pixdim
    if affine_error(sform if header["sform_code"] > 0 else qform, shape) is None:
        notes.append(f"The header gives {name} as its unit, but its numbers are in mm: mm are used.")
        return sform, qform, pixdim
    sform[:3] *= factor
    qform[:3] *= factor
    notes.append(f"The header is in {name}: outputs are in mm.")
    return sform, qform, pixdim * factor


def _read(header: nib.Nifti1Header) -> dict[str, np.ndarray]:
    """Read both forms, whatever their codes. Invalid rotations are NaN."""
    sform, qform = np.eye(4), np.eye(4)
    sform[:3] = [np.asarray(header[f"srow_{axis}"], dtype=float) for axis in "xyz"]
    with np.errstate(all="ignore"):
        qform[:3, :3] = _rotation(header) * np.abs(np.asarray(header["pixdim"][1:4], dtype=float))
    qform[:3, 2] *= -1 if header["pixdim"][0] < 0 else 1
    qform[:3, 3] = [float(header[f"qoffset_{axis}"]) for axis in "xyz"]
    return {"sform": sform, "qform": qform}


def _rotation(header: nib.Nifti1Header) -> np.ndarray:
    """Read the rotation of the qform; NaN if its quaternion is invalid (longer than 1, but for rounding)."""
    b, c, d = (float(header[f"quatern_{axis}"]) for axis in "bcd")
    rest = 1 - (b * b + c * c + d * d)
    if not rest > -QUATERNION_ROUNDING:
        return np.full((3, 3), np.nan)
    return quat2mat((np.sqrt(max(rest, 0.0)), b, c, d))


def _choose_form(
    path: str | os.PathLike,
    given: dict[str, np.ndarray],
    good: list[str],
    pixdim_mm: np.ndarray,
    notes: list[str],
) -> str:
    """Return the name of the form to use, and add the reason to `notes` if there is a conflict."""
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
        notes.append(f"Voxel sizes differ ({stated}): the qform is used and replaces the sform in outputs.")
        return "qform"
    raise InputError(
        path,
        found=f"two voxel sizes: {stated}",
        expected="one voxel size, or a qform that agrees with one of them",
        next_step="Convert the DICOM files again (dcm2niix), or correct the wrong one.",
    )


def _disagreement(given: dict[str, np.ndarray], codes: dict[str, int], shape: tuple[int, ...]) -> list[str]:
    """Note that two forms disagree, and whether they disagree about left and right."""
    apart = distance_mm(given["sform"], given["qform"], shape)
    if apart <= SAME_PLACE_MM:
        return []
    named = " and ".join(f"{n} ({_SPACES.get(codes[n], codes[n])})" for n in ("sform", "qform"))
    notes = [f"{named} put voxels up to {apart:.1f} mm apart: the sform is used; outputs keep both."]
    if np.linalg.det(given["sform"][:3, :3]) * np.linalg.det(given["qform"][:3, :3]) < 0:
        notes.append("They are mirror images: check left and right.")
    return notes


def _write(header: nib.Nifti1Header, given: dict[str, np.ndarray], codes: dict[str, int]) -> None:
    """Write both forms. ``pixdim`` holds the voxel sizes of the qform, if there is one.

    A form with the code 0 is written as the other one, for programs that ignore the codes.
    """
    best = given["sform"] if codes["sform"] else given["qform"]
    qform = given["qform"] if codes["qform"] else best
    header.set_sform(best, codes["sform"])
    header.set_qform(qform, codes["qform"])
    if codes["sform"] and distance_mm(_read(header)["qform"], qform, header.get_data_shape()) > SAME_PLACE_MM:
        header["qform_code"] = 0  # it has shear


def _by(lengths: np.ndarray) -> str:
    return " x ".join(f"{length:.4g}" for length in lengths)
