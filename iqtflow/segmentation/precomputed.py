"""Ready-made tissue probability maps, as fMRIPrep and sMRIPrep write them.

They are in the space of the T1w image (no ``space-`` entity), but not always on its grid: sMRIPrep reorders
the axes to RAS, and resamples if the images of a subject differ.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iqtflow.utils.errors import InputError
from iqtflow.utils.files import read_text

if TYPE_CHECKING:
    import nibabel as nib
    import numpy as np

    from iqtflow.segmentation.atropos import TissueMaps

LABELS = ("WM", "GM", "CSF")  #: of the maps, in the order of the fields of `ReadyMaps`
#: Largest share of its volume that a map may lose in resampling to the image.
LARGEST_LOSS = 0.05
#: Share of intensity variance that the three tissues explain. On uncorrected scans of 1 to 1.3 mm it was 0.79
#: to 0.81 with maps of the same image, 0.44 to 0.60 with a shift of 2 mm, 0.25 to 0.39 with 4 mm, and 0.06 to
#: 0.27 with left and right exchanged.
LEAST_EXPLAINED = 0.35
USUAL_EXPLAINED = 0.6
#: Rounding may move a probability this far beyond 0 and 1.
ROUNDING = 0.01


@dataclass(frozen=True)
class ReadyMaps:
    """Files of the three tissues, and of the brain mask if there is one."""

    wm: Path
    gm: Path
    csf: Path
    mask: Path | None = None


def find_ready_maps(image: str | os.PathLike, derivatives_dir: str | os.PathLike) -> ReadyMaps | None:
    """Find the maps of an image by BIDS names.

    Parameters
    ----------
    image
        Image with a BIDS name, ``sub-X[_ses-Y]..._T1w.nii.gz``. It is not opened.
    derivatives_dir
        Root of the derivatives, with ``sub-X/[ses-Y/]anat/..._label-{WM,GM,CSF}_probseg.nii.gz``.

    Returns
    -------
    ReadyMaps or None
        None if one of the three is missing. All entities of a map except ``label`` and ``desc`` must be those
        of the image; some may be missing, because averages of several images leave entities out. Of several
        sets, the one with the most entities is taken, and one without ``desc`` before one with it.
    """
    from iqtflow.bids import read_entities

    wanted = read_entities(Path(image).name.split(".")[0])
    subject = Path(derivatives_dir, f"sub-{wanted.get('sub')}")
    folders = [subject / "anat"]
    if "ses" in wanted:
        folders.insert(0, subject / f"ses-{wanted['ses']}" / "anat")
    sets: dict[tuple[Path, tuple[tuple[str, str], ...]], dict[str, Path]] = {}
    for folder in folders:
        for path in sorted(folder.glob("sub-*_probseg.nii*")):
            entities = read_entities(path.name.split(".")[0])
            label = entities.pop("label", None)
            shared = {key: value for key, value in entities.items() if key != "desc"}
            if label in LABELS and shared.items() <= wanted.items():
                sets.setdefault((folder, tuple(entities.items())), {})[label] = path
    complete: list[Any] = [
        (-sum(key != "desc" for key, _ in entities), any(key == "desc" for key, _ in entities), *found)
        for (_, entities), maps in sets.items()
        if len(maps) == len(LABELS)
        for found in [[maps[label] for label in LABELS]]
    ]
    if not complete:
        return None
    wm, gm, csf = min(complete)[2:]
    return ReadyMaps(wm, gm, csf, _mask_beside(wm))


def read_ready_maps(
    image: nib.Nifti1Image, data: np.ndarray, files: ReadyMaps, *, skull_stripped: bool | None = None
) -> TissueMaps:
    """Read ready-made maps onto the grid of their image, and check that they belong to it.

    Parameters
    ----------
    image : Nifti1Image
        The image, for its affine and name.
    data : ndarray of float32, shape (w, h, d)
        Its intensities.
    files
        From `find_ready_maps`, or from the user. Without a mask, the brain is where the three tissues sum to
        more than one half.
    skull_stripped
        For the record, if known.

    Returns
    -------
    TissueMaps
        On the image's grid. ``details["grid"]`` is "same", "turned" (axes reordered, without loss) or
        "resampled" (linear interpolation). The bias-corrected image is the image itself.
        ``details["remarks"]`` is for the user.

    Raises
    ------
    InputError
        A file cannot be read, is not a probability map, reaches beyond the image, or does not fit the image
        (maps in another space).
    """
    import numpy as np

    from iqtflow.segmentation.atropos import TissueMaps
    from iqtflow.segmentation.spm.checks import explained_variance
    from iqtflow.segmentation.spm.segment import brain_from_tissues

    maps: dict[str, np.ndarray] = {}
    grids = set()
    paths = {"WM": files.wm, "GM": files.gm, "CSF": files.csf}
    for label, path in paths.items():
        maps[label], grid = _read_onto(path, image)
        grids.add(grid)
    if files.mask is None:
        mask = brain_from_tissues(np.sum(list(maps.values()), axis=0))
    else:
        mask = _read_onto(files.mask, image)[0] >= 0.5
        paths["mask"] = files.mask
    explained = explained_variance([maps[label] for label in ("GM", "WM", "CSF")], data)
    if explained < LEAST_EXPLAINED:
        raise InputError(
            files.gm,
            found=f"tissue that explains {explained:.2f} of the variance of {image.get_filename()}",
            expected=f"at least {LEAST_EXPLAINED:g}: maps in the space of this image",
            next_step="Give the maps without a space- entity of this image, or choose another segmentation.",
        )
    remarks = []
    if explained < USUAL_EXPLAINED:
        remarks.append(f"the maps explain only {explained:.2f} of the image's variance: are they aligned?")
    if "resampled" in grids:
        remarks.append("the maps are on another grid and were interpolated")
    voxel_ml = abs(float(np.linalg.det(image.affine[:3, :3]))) / 1000
    details = {
        "maps": {label: os.fspath(path) for label, path in paths.items()},
        "grid": max(grids, key=("same", "turned", "resampled").index),
        "mask_method": "tissues" if files.mask is None else "given",
        "skull_stripped": skull_stripped,
        "volumes_ml": {label: round(float(maps[label].sum(dtype=float)) * voxel_ml, 2) for label in LABELS},
        "brain_ml": round(float(mask.sum()) * voxel_ml, 2),
        "explained_variance": round(explained, 4),
        "remarks": remarks,
    }
    return TissueMaps(
        wm=maps["WM"],
        gm=maps["GM"],
        csf=maps["CSF"],
        mask=mask,
        bias_corrected=data,
        engine="ready-made",
        version=_maker(files.gm),
        details=details,
    )


def _mask_beside(wm: Path) -> Path | None:
    """Find the brain mask of the same image in the same folder."""
    parts = wm.name.split("_")
    stem = "_".join(part for part in parts[:-1] if not part.startswith(("label-", "desc-")))
    for extension in (".nii.gz", ".nii"):
        mask = wm.with_name(f"{stem}_desc-brain_mask{extension}")
        if mask.is_file():
            return mask
    return None


def _read_onto(path: Path, image: nib.Nifti1Image) -> tuple[np.ndarray, str]:
    """Read probabilities onto an image's grid; also return how: "same", "turned" or "resampled"."""
    import numpy as np
    from scipy import ndimage

    from iqtflow.image.nifti import read_volume

    source, values = read_volume(path)
    low, high = float(values.min()), float(values.max())
    if low < -ROUNDING or high > 1 + ROUNDING or high <= 0.5:
        raise InputError(
            path,
            found=f"values from {low:g} to {high:g}",
            expected="probabilities from 0 to 1",
            next_step="Give probability maps (suffix probseg), scaled to 1.",
        )
    values = np.clip(values, 0, 1)
    to_source = np.linalg.inv(source.affine) @ image.affine
    shape = image.shape[:3]
    if values.shape == shape and np.allclose(to_source, np.eye(4), atol=1e-3):
        return values, "same"
    rounded = np.rint(to_source)
    # Voxels coincide: a rotation by 90 degrees, a mirrored axis, another field of view.
    turned = np.allclose(to_source, rounded, atol=1e-3) and abs(round(np.linalg.det(rounded))) == 1
    matrix = rounded if turned else to_source
    moved = ndimage.affine_transform(values, matrix[:3, :3], matrix[:3, 3], shape, order=1, cval=0.0)
    volume = abs(np.linalg.det(image.affine[:3, :3]))
    volume /= abs(np.linalg.det(source.affine[:3, :3]))
    kept = moved.sum(dtype=float) / values.sum(dtype=float) * volume
    if kept < 1 - LARGEST_LOSS:
        raise InputError(
            path,
            found=f"only {kept:.0%} of its tissue inside {image.get_filename()}",
            expected="a map in the space of this image",
            next_step="Give the map without a space- entity that was made from this image.",
        )
    return moved.astype(np.float32), "turned" if turned else "resampled"


def _maker(path: Path) -> str:
    """Return program and version from the ``dataset_description.json`` of derivatives."""
    for folder in path.absolute().parents:
        try:
            text = read_text(folder / "dataset_description.json")
            maker = json.loads(text)["GeneratedBy"][0]
            return " ".join(filter(None, [maker["Name"], maker.get("Version")]))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            break
    return "unknown"
