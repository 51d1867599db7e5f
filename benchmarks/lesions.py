"""Are lesions of the scan still visible in the enhanced volume, with which contrast, and are there new ones?

    python benchmarks/lesions.py SCAN ENHANCED SPLINE MASK [--flair FLAIR] [--json FILE]

A rule chooses the lesions from the scan alone. With a FLAIR of the same session: what is brighter on it
than the median of the deep brain (5 mm from its surface) by three times its spread, 30 mm^3 or more.
Without a FLAIR: dark regions of the T1w of at least 1 ml that survive an opening by 3 mm; this includes
ventricles, strokes and tumours. The contrast of a lesion is 1 - (its mean) / (mean of the brain 2 to 5 mm
around it). A lesion is visible on the T1w if its contrast is at least .05 and three standard errors of the
noise. Before and after are compared on the voxels of the scan: the enhanced volume is averaged over each
slice.

Two counts look for invented lesions. *Pieces*: connected parts within 3 mm of a lesion that are darker than
half way between lesion and surroundings, of at least a fifth of its volume, in the spline and in the
enhanced volume. *Spots*: parts of 10 to 200 mm^3, at least 8 mm inside the brain, that are darker than
their surroundings (a Gaussian of 4 mm) by 15 % in the enhanced volume and by less than 7 % in the spline.
Spots are counted in white matter and in the whole brain. The second count includes grey matter that is
visible only in the enhanced volume.

The audit (`iqtflow.inference.audit`) compares the enhanced volume with the slices by itself: its places of
each kind are counted.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.processing import resample_from_to
from scipy import ndimage

from iqtflow.image.nifti_file import open_nifti
from iqtflow.inference.audit import MISSING, UNSUPPORTED
from iqtflow.inference.data_consistency import audit_files

LEAST_CONTRAST, KEPT = 0.05, 0.5
SPREADS = 3.0  #: above the median of the deep brain on the FLAIR
EVERYWHERE = np.ones((3, 3, 3), bool)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("scan", "enhanced", "spline", "mask"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--flair", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = compare(*(getattr(options, n) for n in ("scan", "enhanced", "spline", "mask")), options.flair)
    for lesion in found["lesions"]:
        print(
            f"{lesion['volume_ml']:8.3f} ml  contrast {lesion['before']:+.3f} -> {lesion['after']:+.3f}  "
            f"pieces {lesion['pieces_before']} -> {lesion['pieces_after']}"
        )
    print(json.dumps({k: v for k, v in found.items() if k != "lesions"}))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


def compare(scan: Path, enhanced: Path, spline: Path, mask: Path, flair: Path | None) -> dict[str, Any]:
    """Measure every lesion before and after, and count."""
    image = open_nifti(scan)
    fine_image = open_nifti(spline)
    sizes = np.linalg.norm(image.affine[:3, :3], axis=0)
    axis = int(np.argmax(sizes))
    brain = np.asarray(open_nifti(mask).dataobj) > 0
    after, before = (np.asarray(open_nifti(p).dataobj, dtype=np.float32) for p in (enhanced, spline))
    k = round(after.shape[axis] / brain.shape[axis])
    if after.shape != tuple(n * (k if a == axis else 1) for a, n in enumerate(brain.shape)):
        # The slice plane was resampled: use the plane of the enhanced volume for all.
        grid = fine_image.affine.copy()
        grid[:3, 3] += grid[:3, axis] * (k - 1) / 2
        grid[:3, axis] *= k
        shape = tuple(n // (k if a == axis else 1) for a, n in enumerate(after.shape))
        image = resample_from_to(nib.Nifti1Image(averaged(before, axis, k), grid), (shape, grid), order=0)
        brain = resample_from_to(open_nifti(mask), (shape, grid), order=0).get_fdata() > 0
        sizes = np.linalg.norm(grid[:3, :3], axis=0)
    inside = [np.flatnonzero(brain.any(axis=tuple(b for b in range(3) if b != a))) for a in range(3)]
    box = tuple(slice(int(i[0]), int(i[-1]) + 1) for i in inside)
    fine_box = tuple(slice(b.start * k, b.stop * k) if a == axis else b for a, b in enumerate(box))
    given = np.asarray(image.dataobj, dtype=np.float32)[box]
    brain, after, before = brain[box], after[fine_box], before[fine_box]
    thin = averaged(after, axis, k)
    depth = ndimage.distance_transform_edt(np.pad(brain, 1), sampling=sizes)[1:-1, 1:-1, 1:-1]
    labels = (
        bright_on_flair(flair, image, box, brain, depth, sizes)
        if flair
        else dark_regions(given, brain, depth, sizes)
    )
    noise = noise_of(given, brain, axis)
    fine_sizes = sizes.copy()
    fine_sizes[axis] /= k
    candidates, lesions = int(labels.max()), []
    for number, place in enumerate(ndimage.find_objects(labels), start=1):
        lesion = measure(
            number, place, labels, (given, thin, before, after), brain, sizes, fine_sizes, axis, k
        )
        if lesion and lesion["before"] >= max(LEAST_CONTRAST, 3 * noise / np.sqrt(lesion["n_voxels"])):
            lesions.append(lesion)
    spots = new_spots(before, after, depth.repeat(k, axis=axis), fine_sizes)
    audit = audit_files(scan, enhanced, mask=mask).fields
    kinds = [found["Kind"] for found in audit["Places"]]
    changes = np.array([lesion["after"] / lesion["before"] for lesion in lesions])
    return {
        "scan": scan.name,
        "candidates": candidates,
        "visible": len(lesions),
        "erased": int((changes < KEPT).sum()),
        "multiplied": sum(lesion["pieces_after"] > lesion["pieces_before"] for lesion in lesions),
        "median_contrast_before": float(np.median([x["before"] for x in lesions])) if lesions else None,
        "median_contrast_after": float(np.median([x["after"] for x in lesions])) if lesions else None,
        "smallest_kept": float(changes.min()) if lesions else None,
        "new_spots_in_white_matter": spots[0],
        "new_spots_anywhere": spots[1],
        "residual_rms": audit["ResidualRMS"],
        "places_missing": kinds.count(MISSING),
        "places_unsupported": kinds.count(UNSUPPORTED),
        "lesions": lesions,
    }


def averaged(volume: np.ndarray, axis: int, k: int) -> np.ndarray:
    """Return the mean over the k thin slices of each thick slice."""
    shape = [*volume.shape[:axis], volume.shape[axis] // k, k, *volume.shape[axis + 1 :]]
    return volume.reshape(shape).mean(axis=axis + 1)


def bright_on_flair(flair, image, box, brain, depth, sizes) -> np.ndarray:
    """Label what is bright on the FLAIR, on the scan's grid."""
    moved = np.asarray(resample_from_to(open_nifti(flair), (image.shape, image.affine), order=1).dataobj)[box]
    deep = depth > 5
    middle = np.median(moved[deep])
    spread = 1.4826 * np.median(np.abs(moved[deep] - middle))
    labels, _ = ndimage.label((moved > middle + SPREADS * spread) & deep, EVERYWHERE)
    return keep_large(labels, 30 / np.prod(sizes))


def dark_regions(given, brain, depth, sizes) -> np.ndarray:
    """Label large dark regions of the scan itself."""
    smooth = ndimage.gaussian_filter(given, [min(2 / s, 1.5) if s < 4 else 0 for s in sizes])
    dark = brain & (smooth < 0.7 * np.percentile(given[brain], 80)) & (depth > 3)
    reach = [max(round(3 / s), 0) for s in sizes]
    offsets = np.ogrid[tuple(slice(-r, r + 1) for r in reach)]
    ball = sum((o / max(r, 1)) ** 2 for o, r in zip(offsets, reach, strict=True)) <= 1.01
    labels, _ = ndimage.label(ndimage.binary_opening(dark, ball), EVERYWHERE)
    return keep_large(labels, 1000 / np.prod(sizes))


def keep_large(labels: np.ndarray, least: float) -> np.ndarray:
    """Remove components with fewer voxels than `least`."""
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return ndimage.label(np.isin(labels, np.flatnonzero(sizes >= least)), EVERYWHERE)[0]


def measure(number, place, labels, volumes, brain, sizes, fine_sizes, axis, k) -> dict[str, Any] | None:
    """Return contrast and pieces of one lesion, in a box 8 mm larger than the lesion."""
    pad = [int(np.ceil(8 / s)) for s in sizes]
    box = tuple(slice(max(p.start - m, 0), p.stop + m) for p, m in zip(place, pad, strict=True))
    fine = tuple(slice(b.start * k, b.stop * k) if a == axis else b for a, b in enumerate(box))
    given, thin, before, after = (v[b] for v, b in zip(volumes, (box, box, fine, fine), strict=True))
    lesion, others = labels[box] == number, labels[box] > 0
    away = ndimage.distance_transform_edt(~lesion, sampling=sizes)
    shell = (away > 2) & (away <= 5) & ~others & brain[box]
    # Fluid does not count as surroundings.
    shell &= given > 0.7 * np.median(given[shell]) if shell.any() else shell
    if np.count_nonzero(shell) < 20:
        return None
    contrasts = [1 - float(v[lesion].mean() / v[shell].mean()) for v in (given, thin)]
    pieces = []
    for volume in (before, after):
        low, high = (float(averaged(volume, axis, k)[where].mean()) for where in (lesion, shell))
        near = (away <= 3).repeat(k, axis=axis)[tuple(slice(n) for n in volume.shape)]
        calm = ndimage.gaussian_filter(volume, 0.5 / fine_sizes)
        parts, _ = ndimage.label(near & (calm < (low + high) / 2), EVERYWHERE)
        counts = np.bincount(parts.ravel())[1:]
        pieces.append(int((counts >= 0.2 * k * np.count_nonzero(lesion)).sum()))
    return {
        "volume_ml": round(float(lesion.sum() * np.prod(sizes) / 1000), 4),
        "n_voxels": int(lesion.sum()),
        "before": round(contrasts[0], 4),
        "after": round(contrasts[1], 4),
        "pieces_before": pieces[0],
        "pieces_after": pieces[1],
    }


def noise_of(given: np.ndarray, brain: np.ndarray, axis: int) -> float:
    """Return the noise / the 80th percentile of the brain, from second differences in the plane."""
    volume, inside = np.moveaxis(given, axis, 2), np.moveaxis(brain, axis, 2)[1:, 1:]
    diagonal = volume[1:, 1:] - volume[:-1, 1:] - volume[1:, :-1] + volume[:-1, :-1]
    return float(np.median(np.abs(diagonal[inside])) / (2 * 0.6745) / np.percentile(given[brain], 80))


def new_spots(before: np.ndarray, after: np.ndarray, depth: np.ndarray, sizes: np.ndarray) -> tuple[int, int]:
    """Count small dark spots that are not in the spline: in white matter, and anywhere."""
    found = find_spots(before, after, depth, sizes)
    return sum(is_white for _, is_white in found), len(found)


def below_surround(volume: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return by which share each voxel is darker than its surroundings, and the surroundings."""
    near, wide = (ndimage.gaussian_filter(volume, mm / sizes) for mm in (0.7, 4.0))
    return 1 - near / np.maximum(wide, 1e-6), wide


def find_spots(
    before: np.ndarray, after: np.ndarray, depth: np.ndarray, sizes: np.ndarray
) -> list[tuple[tuple[np.ndarray, ...], bool]]:
    """Return the voxels of each new dark spot, and whether it is in white matter."""
    deep = depth[tuple(slice(n) for n in after.shape)] > 8
    drop_after, wide = below_surround(after, sizes)
    drop_before, _ = below_surround(before, sizes)
    white = wide > 0.9 * np.percentile(after[deep], 80)
    dark = deep & (drop_after > 0.15)
    labels, _ = ndimage.label(dark, EVERYWHERE)
    labels = keep_large(labels, 10 / np.prod(sizes))
    found = []
    for number, place in enumerate(ndimage.find_objects(labels), start=1):
        inside = np.nonzero(labels[place] == number)
        spot = tuple(i + part.start for i, part in zip(inside, place, strict=True))
        if drop_before[spot].mean() < 0.07 and len(spot[0]) * np.prod(sizes) < 200:
            found.append((spot, bool(white[spot].mean() > 0.9)))
    return found


if __name__ == "__main__":
    main()
