"""A thick-slice scan to a thin-slice one: the way of one image, from the scanner's file and back to its
place.

Find the slices, put them last, bring the plane to a grid that the network knows, find the brain, scale
intensities by it, run the network(s), scale back, put the axes back. Geometry, normalisation and brain mask
are the functions that training uses.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from scipy import ndimage

import iqtflow
from iqtflow.image.geometry import (
    AXIS_NAMES,
    SliceGeometry,
    Upsampling,
    cubic_upsample,
    find_slice_geometry,
    resample_inplane,
    slices_back,
    slices_last,
    thin_affine,
)
from iqtflow.image.intensity import bridge_slices, empty_slices, intensity_scale
from iqtflow.image.metadata import settle_values
from iqtflow.image.orientation import ReorientedScan
from iqtflow.inference.ood import compare, find_reference, measure_scan
from iqtflow.inference.predict import enhance_volume
from iqtflow.inference.uncertainty import as_sidecar
from iqtflow.inference.white_matter import correct_white_matter, usual_ratios
from iqtflow.models.card import PAPER_PATCH
from iqtflow.models.model_file import load_model
from iqtflow.models.zoo import choose_model
from iqtflow.segmentation.brainmask import BrainMask, find_brain_mask
from iqtflow.utils.errors import InputError
from iqtflow.utils.system import peak_memory_gb

#: What the numbers in an enhanced volume mean.
INTENSITIES = (
    "In the input scan's own arbitrary units: white matter keeps its intensity, values below 0 are set to 0. "
    "WhiteMatter says how well it was kept, and by which factor the estimate was scaled for it."
)
#: Share of brain voxels below 0 above which a scan is no magnitude image.
NEGATIVE_SHARE = 0.01


@dataclass(frozen=True)
class EnhancedScan:
    """What becomes of a scan.

    Attributes
    ----------
    mean
        Enhanced volume, in the scan's axis order, world space and units.
    std
        Standard deviation of the error that is to be expected, on the same grid
        (`iqtflow.inference.uncertainty`); None for a single network that does not predict it.
    spline
        Cubic B-spline interpolation of the scan on the same grid.
    mask
        Brain mask on the scan's own grid.
    details
        What a BIDS sidecar should say.
    """

    mean: nib.Nifti1Image
    std: nib.Nifti1Image | None
    spline: nib.Nifti1Image
    mask: nib.Nifti1Image
    details: dict[str, Any]


class NothingToGain(InputError):
    """The scan is near-isotropic already. A run over a data set skips it; a command or a node that was asked
    for this very scan fails, since it has no enhanced volume to give.
    """


def enhance_image(
    image: nib.Nifti1Image,
    *,
    sidecar: Mapping[str, Any] | None = None,
    model: str | os.PathLike | None = None,
    contrast: str = "T1w",
    device: str = "cpu",
    precision: str | None = None,
    num_threads: int = 1,
    skull_stripped: bool | None = None,
    force: bool = False,
    max_memory_gb: float | None = None,
    tiling: str = "auto",
    mirror: bool = False,
    keep_white_matter: bool = True,
    report: Callable[[str], None] | None = None,
) -> EnhancedScan:
    """Enhance a thick-slice scan.

    Parameters
    ----------
    image
        Three-dimensional scan (`iqtflow.image.validate.check_scan`); slices along any axis, any orientation.
    sidecar
        Its BIDS metadata.
    model
        A model file or the name of a model that ships; None chooses by slice spacing over in-plane voxel
        size.
    contrast
        BIDS suffix of the scan; a model serves the contrast only that it was trained for.
    device, precision, num_threads, max_memory_gb, tiling
        See `iqtflow.inference.predict.enhance_volume`.
    mirror
        Average each network's estimate with that of the scan mirrored from left to right.
    keep_white_matter
        Scale an estimate whose white matter left the scan's by more than on the model's evaluation scans
        (`iqtflow.inference.white_matter`).
    skull_stripped
        Whether the scan shows the brain only; None believes the sidecar, and looks when that does not say.
    force
        Enhance a near-isotropic scan too.
    report
        Receives two lines, before the work: with what it is done, and in which way and memory.

    Returns
    -------
    EnhancedScan

    Raises
    ------
    NothingToGain
        The scan is near-isotropic and `force` is False.
    InputError
        No model serves the scan, or its intensities cannot be worked with.
    """
    began = time.monotonic()
    sidecar, notes = settle_values(sidecar or {}, "sidecar")
    geometry = find_slice_geometry(image, sidecar)
    if geometry.near_isotropic and not force:
        raise NothingToGain(
            image.get_filename() or "scan",
            found=f"slices {geometry.spacing_mm:.3g} mm apart, {_by(geometry.inplane_mm)} mm in plane",
            expected="thick slices",
            next_step="There is nothing to gain along the slice axis, and nothing is written; --force "
            "(force=True) enhances it all the same.",
        )
    path, upsampling = choose_model(geometry, model, contrast)
    networks = load_model(path)
    card = networks.card
    if report is not None:
        report(
            f"device {device}; model {card.name} (k = {card.k}, {card.n_members} network(s), "
            f"SHA-256 {networks.sha256[:12]}); slices along {AXIS_NAMES[geometry.axis]}, {geometry.source}"
        )

    laid = ReorientedScan(image, geometry.axis)
    if skull_stripped is None:
        skull_stripped = sidecar.get("SkullStripped")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        brain = find_brain_mask(
            laid.data, laid.affine, skull_stripped=skull_stripped, num_threads=num_threads
        )
    scale = intensity_scale(laid.data[brain.mask])
    support = _support(laid.data, brain)
    # The network would see the edges of a lost slice: it is bridged for it, and empty in what results.
    missing = empty_slices(laid.data, laid.axis)
    laid.data = bridge_slices(laid.data, laid.axis, missing)

    data, affine = slices_last(laid.data, laid.affine, laid.axis)
    if upsampling.inplane_mm is not None:
        data, affine = resample_inplane(data, affine, upsampling.inplane_mm)
    tissue, grid = slices_last(brain.mask, laid.affine, laid.axis)
    if upsampling.inplane_mm is not None:
        tissue = resample_inplane(tissue, grid, upsampling.inplane_mm)[0] > 0.5
    result = enhance_volume(
        data,
        networks,
        scale=scale,
        device=device,
        precision=precision,
        num_threads=num_threads,
        max_memory_gb=max_memory_gb,
        tiling=tiling,
        mirror_axis=_left_right(laid.axis) if mirror else None,
        tissue=tissue,
        report=report,
    )

    reference = find_reference(card)
    white = correct_white_matter(
        data, result.mean, tissue, usual_ratios(reference) if keep_white_matter else None
    )
    if support is not None:
        support, grid = slices_last(support, laid.affine, laid.axis)
        if upsampling.inplane_mm is not None:
            support = resample_inplane(support, grid, upsampling.inplane_mm)[0] > 0.1
        support = np.repeat(support, upsampling.k, axis=2)
    if missing:
        there = np.repeat(~np.isin(np.arange(data.shape[2]), missing), upsampling.k)
        support = there if support is None else support & there

    def finish(volume: np.ndarray) -> nib.Nifti1Image:
        erased = volume if support is None else np.where(support, volume, np.float32(0))
        return laid.put_back(*slices_back(erased, thin_affine(affine, upsampling.k), laid.axis))

    factor = np.float32(white.factor)
    mean = finish(result.mean * factor)
    std = None if result.std is None else finish(result.std * factor)
    spline = finish(np.clip(cubic_upsample(data, upsampling.k), 0, None))
    notes += [str(w.message) for w in caught if issubclass(w.category, RuntimeWarning)]
    familiarity = None
    if reference is not None:
        values = measure_scan(
            laid.data,
            brain.mask,
            axis=laid.axis,
            voxel_mm=voxel_sizes(laid.affine).tolist(),
            k=card.k,
            pixel_mm=upsampling.inplane_mm,
        )
        familiarity = compare(values, reference, brain_found=brain.method != "head")
    details = {
        "SkullStripped": brain.skull_stripped,
        "UpsamplingFactor": upsampling.k,
        "SliceAxis": AXIS_NAMES[geometry.axis],
        "Units": "arbitrary",
        "IntensityDescription": INTENSITIES,
        "VoxelSizeMm": [round(float(v), 4) for v in voxel_sizes(mean.affine)],
        "Geometry": {
            "SpacingMm": round(geometry.spacing_mm, 4),
            "ThicknessMm": round(geometry.thickness_mm, 4),
            "GapMm": round(geometry.gap_mm, 4),
            "InplaneMm": [round(v, 4) for v in geometry.inplane_mm],
            "Ratio": round(geometry.ratio, 3),
            "Source": geometry.source,
        },
        "Upsampling": {"Note": upsampling.note, "ResampledToMm": upsampling.inplane_mm},
        "Model": {
            "Name": card.name,
            "SHA256": networks.sha256,
            "Members": card.n_members,
            "Contrast": card.contrast,
        },
        "BrainMask": {"Method": brain.method},
        "Uncertainty": None
        if result.std is None
        else as_sidecar(card, card.uncertainty(mirror=mirror), mirror=mirror),
        "IntensityScale": scale,
        "WhiteMatter": white.as_sidecar(),
        "OutOfDistribution": None if familiarity is None else familiarity.as_sidecar(),
        **result.details,
        "Seconds": round(time.monotonic() - began, 1),
        "PeakMemoryGB": round(peak_memory_gb(), 2),
        "PackageVersion": iqtflow.__version__,
        "Warnings": [
            *([familiarity.sentence()] if familiarity is not None and familiarity.unfamiliar else []),
            *image.extra.get("notes", ()),
            *notes,
            *geometry.notes,
            *result.warnings,
            *_warnings(data, laid.data[brain.mask], geometry, upsampling),
        ],
    }
    mask = laid.put_back(brain.mask.astype(np.uint8), laid.affine)
    return EnhancedScan(mean, std, spline, mask, details)


def _left_right(slice_axis: int) -> int:
    """Array axis of left and right after slices are put last, for axes laid as in RAS."""
    return 2 if slice_axis == 0 else 0


def _support(scan: np.ndarray, brain: BrainMask) -> np.ndarray | None:
    """Where a scan with an erased surround has anything, or nearly so; None for other scans.

    Outside of it the enhanced volume is erased, too: it is still a skull-stripped one. Three voxels more
    leave room for the brain's edge, anywhere within a thick slice, and for the spline's ringing about it.
    """
    if brain.method != "nonzero":
        return None
    return ndimage.binary_dilation(brain.mask | (scan != 0), np.ones((3, 3, 3)), iterations=3)


def _warnings(
    data: np.ndarray, brain: np.ndarray, geometry: SliceGeometry, upsampling: Upsampling
) -> list[str]:
    """What a reader of the enhanced volume should know about the scan, as sentences."""
    found, n_slices, wanted = [], data.shape[2], PAPER_PATCH // upsampling.k
    if upsampling.inplane_mm is not None:
        found.append(
            f"Slice spacing is {geometry.ratio:.1f} times the in-plane voxel size and the model was trained "
            f"for {upsampling.k}: the plane was resampled from {_by(geometry.inplane_mm)} to "
            f"{_by((upsampling.inplane_mm,) * 2)} mm."
        )
    if n_slices < wanted:
        found.append(
            f"The scan has {n_slices} slices, fewer than the {wanted} that networks see in training."
        )
    share = float(np.mean(brain < 0))
    if share > NEGATIVE_SHARE:
        found.append(
            f"{share:.0%} of the brain's voxels are below 0; networks are trained on magnitudes (>= 0)."
        )
    return found


def _by(sizes: tuple[float, float]) -> str:
    return f"{sizes[0]:.3g} x {sizes[1]:.3g}"
