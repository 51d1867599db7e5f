"""Tissue probability maps without SPM: bias correction and a Gaussian mixture with a Markov random field.

N4 [1]_ removes the bias field, a mixture of Gaussians finds the intensities of the three tissues (the k-means
start of Atropos splits white matter in two in some brains), and Atropos [2]_ refines the posteriors with a
Markov random field.

References
----------
.. [1] N. J. Tustison et al., "N4ITK: Improved N3 Bias Correction", IEEE Trans. Med. Imaging 29(6):1310-1320,
   2010, doi:10.1109/TMI.2010.2046908
.. [2] B. B. Avants et al., "An Open Source Multivariate Framework for n-Tissue Segmentation with
   Evaluation on Public Data", Neuroinformatics 9:381-400, 2011, doi:10.1007/s12021-011-9109-y
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine, from_matvec, voxel_sizes

from iqtflow.image.geometry import bounding_box
from iqtflow.segmentation.atlas import ATLAS, LEAST_OVERLAP, classify_with_priors, register_atlas
from iqtflow.segmentation.brainmask import find_brain_mask
from iqtflow.segmentation.mixture import fit_tissue_mixture
from iqtflow.utils.errors import InputError

#: In the order of their mean intensity in T1-weighting, which identifies them.
TISSUES = ("CSF", "GM", "WM")
#: Margin around the brain, in voxels, that N4 and the mixture use.
MARGIN_VOXELS = 3
#: Spacing (mm) of the grid on which N4 fits the bias field.
N4_SPACING_MM = 6.0
#: Iterations at each of N4's four levels. The mesh of control points is halved from level to level.
N4_ITERATIONS = (50, 50, 50, 50)
#: Iterations of Atropos. It starts from a converged mixture.
ATROPOS_ITERATIONS = 2
#: Weight of the Markov random field over 3 x 3 x 3 voxels (ANTs' own choice for brains).
MRF_WEIGHT = 0.1

#: Outside these volumes (ml) a brain mask is wrong. A newborn's brain has 350 ml, the largest adult's 2000.
BRAIN_ML = (300.0, 2300.0)
#: GM to WM volume: 1.1 to 1.9 in healthy adults, up to 2.5 in infants. Mixed voxels can go to either.
GM_TO_WM = (0.9, 2.5)
#: Smallest share of the brain for WM and for GM.
LEAST_SHARE = 0.12
#: Below this extent (mm) an image shows only part of a brain, and its volumes mean nothing.
PARTIAL_EXTENT_MM = 80.0


@dataclass(frozen=True)
class TissueMaps:
    """Tissue probabilities of one brain; they sum to 1 inside `mask` and are 0 outside.

    Attributes
    ----------
    wm, gm, csf : ndarray of float32, shape (w, h, d)
        Probabilities in [0, 1].
    mask : ndarray of bool, shape (w, h, d)
        The brain.
    bias_corrected : ndarray of float32, shape (w, h, d)
        The volume without its bias field. The mean of the brain and all voxels outside it are unchanged.
    engine, version : str
        Program that made the maps.
    details : dict
        For the record: volumes (ml), mean intensities, seconds, seed, origin of the mask, settings.
    """

    wm: np.ndarray
    gm: np.ndarray
    csf: np.ndarray
    mask: np.ndarray
    bias_corrected: np.ndarray
    engine: str
    version: str
    details: dict[str, Any] = field(default_factory=dict)


def segment_tissues(
    image: nib.Nifti1Image,
    *,
    mask: np.ndarray | None = None,
    skull_stripped: bool | None = None,
    priors: str = "none",
    num_threads: int = 1,
    seed: int = 0,
) -> TissueMaps:
    """Segment a T1-weighted brain into white matter, grey matter and cerebrospinal fluid.

    Parameters
    ----------
    image
        T1-weighted volume, (w, h, d), any orientation and intensity unit.
    mask : ndarray of bool, shape (w, h, d), optional
        The brain; by default from `find_brain_mask`.
    skull_stripped
        For `find_brain_mask`.
    priors
        "none": intensities and neighbourhoods, the maps that the included models were trained on. "atlas":
        intensities and prior probabilities (`iqtflow.segmentation.atlas`) instead of Atropos. Use it for
        thick slices, in which "none" takes mixed voxels for grey matter. If the image shows only part of a
        brain, or the atlas does not fit, "none" is used, and the details say so.
    num_threads
        CPU threads. ITK reads this once in a process, in the first call.
    seed
        For the record only. Only Atropos draws at random (the order of the voxels), with a constant seed.

    Returns
    -------
    TissueMaps
        Maps on the voxel grid of `image`. Same input and number of threads, same bits.

    Raises
    ------
    InputError
        The volume is constant, the mask is on another grid, or the brain has fewer than three different
        intensities.

    Notes
    -----
    Tissues are identified by their mean intensity, which in T1-weighting increases from CSF to GM to WM.
    """
    started = time.perf_counter()
    data = np.asarray(image.get_fdata(dtype=np.float32))
    name = image.get_filename() or "image"
    if data.ndim != 3 or data.min() == data.max():
        raise InputError(
            name,
            found=f"shape {data.shape}, intensities from {data.min():g} to {data.max():g}",
            expected="one three-dimensional volume with different intensities",
            next_step="Look at the volume.",
        )
    if mask is None:
        found = find_brain_mask(data, image.affine, skull_stripped=skull_stripped, num_threads=num_threads)
        mask, mask_method, skull_stripped = found.mask, found.method, found.skull_stripped
    else:
        mask, mask_method = np.asarray(mask, dtype=bool), "given"
    _check_mask(mask, data, name)
    seconds = {"mask": time.perf_counter() - started}

    # ITK reads this once, at the first filter of the process. On two threads the registration sums its metric
    # in another order each time, and the result differs.
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = str(1 if priors == "atlas" else num_threads)
    import ants

    spacing_mm = voxel_sizes(image.affine)
    box = bounding_box(mask, MARGIN_VOXELS)
    brain, box_mask = data[box], mask[box]

    clock = time.perf_counter()
    corrected = _correct_bias(ants, brain, box_mask, spacing_mm)
    seconds["bias"] = time.perf_counter() - clock

    clock = time.perf_counter()
    posteriors: np.ndarray | None = None
    atlas: dict[str, Any] = {}
    if priors == "atlas":
        origin_mm = apply_affine(image.affine, [side.start for side in box])
        box_affine = from_matvec(image.affine[:3, :3], origin_mm)
        posteriors, atlas = _by_atlas(ants, corrected, box_mask, box_affine)
    if posteriors is None:
        start = np.zeros((3, *corrected.shape), dtype=np.float32)
        start[:, box_mask] = fit_tissue_mixture(corrected[box_mask]).posteriors(corrected[box_mask])
        posteriors = _refine(ants, corrected, box_mask, start, spacing_mm)
    seconds["tissues"] = time.perf_counter() - clock

    maps = np.zeros((3, *data.shape), dtype=np.float32)
    maps[(slice(None), *box)] = posteriors
    bias_corrected = data.copy()
    bias_corrected[mask] = corrected[box_mask]
    voxel_ml = float(np.prod(spacing_mm)) / 1000.0
    totals_ml = maps.sum(axis=(1, 2, 3), dtype=np.float64) * voxel_ml
    details = {
        "mask_method": mask_method,
        "skull_stripped": skull_stripped,
        "volumes_ml": dict(zip(TISSUES, totals_ml.round(2).tolist(), strict=True)),
        "brain_ml": round(float(mask.sum()) * voxel_ml, 2),
        "mean_intensity": dict(zip(TISSUES, _means(corrected, posteriors).tolist(), strict=True)),
        "seconds": {step: round(value, 2) for step, value in seconds.items()},
        "seed": seed,
        "num_threads": num_threads,
        "n4_iterations": list(N4_ITERATIONS),
        "atropos_iterations": ATROPOS_ITERATIONS,
        "mrf_weight": MRF_WEIGHT,
        **atlas,
    }
    return TissueMaps(
        wm=maps[2],
        gm=maps[1],
        csf=maps[0],
        mask=mask,
        bias_corrected=bias_corrected,
        engine="ANTs N4 + atlas" if atlas.get("atlas") else "ANTs N4 + Atropos",
        version=f"antspyx {ants.__version__}",
        details=details,
    )


def check_plausible(maps: TissueMaps, image: nib.Nifti1Image) -> list[str]:
    """Refuse impossible tissue maps, and return notes on unusual ones.

    Parameters
    ----------
    maps
        From `segment_tissues` or another engine.
    image
        The volume of the maps.

    Returns
    -------
    list of str
        Notes, as sentences; empty if nothing is unusual.

    Raises
    ------
    InputError
        Volumes, proportions or the order of the mean intensities are impossible. The message states them.

    Notes
    -----
    The brain volume is checked only if the whole brain can be in the image (every extent at least 80 mm).
    """
    name = image.get_filename() or "image"
    spacing_mm = voxel_sizes(image.affine)
    voxel_ml = float(np.prod(spacing_mm)) / 1000.0
    tissues = np.stack([maps.csf, maps.gm, maps.wm])
    csf_ml, gm_ml, wm_ml = (tissues.sum(axis=(1, 2, 3), dtype=np.float64) * voxel_ml).tolist()
    brain_ml = wm_ml + gm_ml + csf_ml
    figures = f"WM {wm_ml:.0f} ml, GM {gm_ml:.0f} ml, CSF {csf_ml:.0f} ml"
    look = "Look at the brain mask; give a better one with --mask, or leave this scan out."

    if brain_ml <= 0 or min(wm_ml, gm_ml) / brain_ml < LEAST_SHARE:
        raise InputError(
            name,
            found=figures,
            expected=f"WM and GM each at least {LEAST_SHARE:.0%} of the brain",
            next_step=look,
        )
    means = _means(maps.bias_corrected, tissues)
    if not means[0] < means[1] < means[2]:
        raise InputError(
            name,
            found="mean intensities CSF {:.4g}, GM {:.4g}, WM {:.4g}".format(*means),
            expected="CSF darker than GM, and GM darker than WM, as in T1-weighting",
            next_step="Give a T1-weighted scan, or a better mask with --mask.",
        )

    notes = []
    partial = min(np.array(image.shape[:3]) * spacing_mm) < PARTIAL_EXTENT_MM
    if partial:
        notes.append(f"only part of a brain is in the field of view ({figures}): ignore its volumes")
    elif not BRAIN_ML[0] <= brain_ml <= BRAIN_ML[1]:
        raise InputError(
            name,
            found=f"a brain of {brain_ml:.0f} ml ({figures})",
            expected=f"{BRAIN_ML[0]:.0f} to {BRAIN_ML[1]:.0f} ml",
            next_step=look,
        )
    if not GM_TO_WM[0] <= gm_ml / wm_ml <= GM_TO_WM[1]:
        usual = f"{GM_TO_WM[0]} to {GM_TO_WM[1]}"
        notes.append(f"GM is {gm_ml / wm_ml:.2f} times WM ({figures}); {usual} is usual")
    if maps.details.get("mask_method") == "head":
        notes.append("no brain was found: the whole head was segmented")
    return notes


def _check_mask(mask: np.ndarray, data: np.ndarray, name: str | os.PathLike) -> None:
    if mask.shape != data.shape:
        raise InputError(
            name,
            found=f"a mask of shape {mask.shape}",
            expected=f"the shape of the volume, {data.shape}",
            next_step="Give a mask on the voxel grid of the volume.",
        )
    n_values = np.unique(data[mask]).size
    if n_values < 3:
        raise InputError(
            name,
            found=f"{n_values} distinct intensities in a mask of {int(mask.sum())} voxels",
            expected="a brain with three tissues",
            next_step="Look at the volume and its mask.",
        )


def _correct_bias(ants: Any, brain: np.ndarray, mask: np.ndarray, spacing_mm: np.ndarray) -> np.ndarray:
    """Remove the bias field. The mean of the brain does not change, so that intensities stay comparable."""
    # N4 uses logarithms: values of zero and below (noise, ringing) are raised to a positive floor.
    floor = 1e-3 * float(brain[mask].mean())
    positive = np.maximum(brain, floor)
    # ANTs shrinks every axis by the same factor. A few thick slices must not disappear.
    shrink = max(1, min(round(N4_SPACING_MM / spacing_mm.min()), min(brain.shape) // 4))
    spacing = tuple(float(s) for s in spacing_mm)
    field_image = ants.n4_bias_field_correction(
        ants.from_numpy(positive, spacing=spacing),
        mask=ants.from_numpy(mask.astype(np.float32), spacing=spacing),
        shrink_factor=shrink,
        convergence={"iters": list(N4_ITERATIONS), "tol": 1e-6},
        return_bias_field=True,
    )
    bias = np.maximum(field_image.numpy(), 1e-6)
    corrected = brain / bias
    return (corrected * (brain[mask].mean() / corrected[mask].mean())).astype(np.float32)


def _by_atlas(
    ants: Any, data: np.ndarray, mask: np.ndarray, affine: np.ndarray
) -> tuple[np.ndarray | None, dict[str, Any]]:
    """Return posteriors (3, w, h, d) with the atlas (None if it does not fit), and details."""
    extent_mm = voxel_sizes(affine) * data.shape
    if extent_mm.min() < PARTIAL_EXTENT_MM:
        why = f"a field of view of {extent_mm.min():.0f} mm is too small for the atlas"
        return None, {"atlas": None, "remarks": [f"{why}: only intensities were used"]}
    with _temporary_files_removed():
        found = register_atlas(ants, data, mask, affine)
    posteriors = np.zeros((3, *data.shape), dtype=np.float32)
    posteriors[:, mask] = classify_with_priors(data[mask], found.maps[:, mask])
    posteriors[0] = np.clip(mask - posteriors[1] - posteriors[2], 0.0, 1.0)
    means = _means(data, posteriors)
    if found.overlap < LEAST_OVERLAP or not means[0] < means[1] < means[2]:
        why = f"the atlas does not fit this brain (overlap {found.overlap:.2f})"
        return None, {"atlas": None, "remarks": [f"{why}: only intensities were used"]}
    return posteriors, {"atlas": ATLAS, "atlas_overlap": round(found.overlap, 3)}


def _refine(
    ants: Any, data: np.ndarray, mask: np.ndarray, start: np.ndarray, spacing_mm: np.ndarray
) -> np.ndarray:
    """Refine posteriors with Atropos; return (3, w, h, d), ordered by mean, with sum 1 in the mask."""
    spacing = tuple(float(s) for s in spacing_mm)
    with _temporary_files_removed():
        result = ants.atropos(
            a=ants.from_numpy(data, spacing=spacing),
            x=ants.from_numpy(mask.astype(np.float32), spacing=spacing),
            i=[ants.from_numpy(tissue, spacing=spacing) for tissue in start],
            m=f"[{MRF_WEIGHT},1x1x1]",
            c=f"[{ATROPOS_ITERATIONS},0]",
            priorweight=0.0,
            # Without this Atropos takes the order of voxels from the clock, and maps differ in the fifth
            # digit from run to run, also with ANTS_RANDOM_SEED.
            r="0",
        )
    maps = np.stack([tissue.numpy() for tissue in result["probabilityimages"]]).astype(np.float64)
    maps = np.clip(np.nan_to_num(maps), 0.0, 1.0) * mask
    total = maps.sum(axis=0)
    maps = np.where(total > 0.5, maps / np.maximum(total, 0.5), start)[np.argsort(_means(data, maps))]
    # The last map takes the rounding error, so that the sum is 1 within float32.
    maps = maps.astype(np.float32)
    maps[0] = np.clip(mask - maps[1] - maps[2], 0.0, 1.0)
    return maps


@contextmanager
def _temporary_files_removed() -> Iterator[None]:
    """Give ANTsPy a temporary folder, because it leaves probability maps in files behind."""
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="iqtflow-") as folder:
        tempfile.tempdir = folder
        try:
            yield
        finally:
            tempfile.tempdir = before


def _means(data: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """Return the mean intensity of each map, weighted by probability."""
    weights = np.maximum(maps.sum(axis=(1, 2, 3), dtype=np.float64), 1e-9)
    return (maps * data).sum(axis=(1, 2, 3), dtype=np.float64) / weights
