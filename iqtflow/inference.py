"""A whole scan through an ensemble of networks: one pass where memory allows, blended tiles where it does not.

The way of a scan: find its slices, put them last, bring the plane to a grid that the network knows, find the brain, scale intensities by it,
run the network(s), scale back, put the axes back. Geometry, normalisation and mask are the functions that training uses.
"""

from __future__ import annotations

import math
import os
import resource
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from iqtflow.brainmask import find_brain_mask
from iqtflow.errors import InputError
from iqtflow.geometry import (
    AXIS_NAMES, choose_upsampling, cubic_upsample, find_slice_geometry, resample_inplane, slices_back, slices_last, thin_affine, voxel_sizes,
)
from iqtflow.models import Model, find_model, list_shipped, load_model
from iqtflow.normalisation import intensity_scale

#: Memory of one pass, in bytes for each padded high-resolution voxel and channel of the first level (float32, measured
#: with ANISO U-Net on a CPU: 385 bytes at 16 channels).
BYTES_PER_VOXEL_AND_CHANNEL = 385 / 16
#: Share of the free memory that one pass may take.
MEMORY_SHARE = 0.6
#: Voxels that a volume is extended by on each side of the plane, and slices on either side, before it is padded to a multiple that the
#: network needs: "same" convolutions put zeros there, which must not reach the head.
MARGIN = 8


@dataclass(frozen=True)
class Enhanced:
    """Network output for a slices-last volume: mean over the ensemble, standard deviation (None for one network), how it was done."""

    mean: np.ndarray
    std: np.ndarray | None
    details: dict[str, Any]


@dataclass(frozen=True)
class EnhancedScan:
    """Images on the enhanced grid, brain mask on the scan's grid, and everything that a sidecar should say."""

    mean: nib.Nifti1Image
    std: nib.Nifti1Image | None
    spline: nib.Nifti1Image
    mask: nib.Nifti1Image
    details: dict[str, Any] = field(default_factory=dict)


class NothingToGain(InputError):
    """The scan is near-isotropic already: skipped, not failed."""

    exit_code = 0


def enhance_image(image: nib.Nifti1Image, *, sidecar: Mapping[str, Any] | None = None, model: str | os.PathLike | None = None, device: str = "cpu", num_threads: int = 1,
                  skull_stripped: bool | None = None, force: bool = False, max_memory_gb: float | None = None) -> EnhancedScan:
    """Enhance a thick-slice scan.

    Parameters
    ----------
    image
        Three-dimensional T1w scan, slices along any axis, any orientation.
    sidecar
        Its BIDS metadata.
    model
        A model file or the name of a shipped one; None chooses by the scan's ratio of slice spacing to in-plane voxel size.
    device
        "cpu" or "cuda".
    num_threads
        CPU threads.
    skull_stripped
        Whether the scan shows the brain only; None looks.
    force
        Enhance a near-isotropic scan too.
    max_memory_gb
        Memory that one pass may take; the share `MEMORY_SHARE` of what is free when None.

    Returns
    -------
    EnhancedScan
        In the scan's axis order and world space and in its units (white matter keeps its intensity).

    Raises
    ------
    NothingToGain
        The scan is near-isotropic and `force` is False.
    InputError
        No model serves the scan, or the scan cannot be worked with.
    """
    began = time.monotonic()
    geometry = find_slice_geometry(image, sidecar)
    if geometry.near_isotropic and not force:
        raise NothingToGain(image.get_filename() or "scan", found=f"slices {geometry.spacing_mm:.3g} mm apart at {geometry.inplane_mm[0]:.3g} x {geometry.inplane_mm[1]:.3g} mm in plane",
                            expected="thick slices", next_step="It is skipped: there is nothing to gain along the slice axis. --force enhances it all the same.")
    if skull_stripped is None and isinstance((sidecar or {}).get("SkullStripped"), bool):
        skull_stripped = sidecar["SkullStripped"]
    path, pinned = _choose_model(geometry, model)
    loaded = load_model(path, expected_sha256=pinned)
    upsampling = choose_upsampling(geometry, [loaded.card["k"]])

    whole = np.asarray(image.dataobj, dtype=np.float32).reshape(image.shape[:3])
    brain = find_brain_mask(whole, image.affine, skull_stripped=skull_stripped, num_threads=num_threads)
    scale = intensity_scale(whole[brain.mask])
    data, affine = slices_last(whole, image.affine, geometry.axis)
    if upsampling.inplane_mm is not None:
        data, affine = resample_inplane(data, affine, upsampling.inplane_mm)
    result = enhance_volume(data, loaded, scale=scale, device=device, num_threads=num_threads, max_memory_gb=max_memory_gb)
    spline = np.clip(cubic_upsample(data, upsampling.k), 0, None)

    def put_back(volume: np.ndarray) -> nib.Nifti1Image:
        back, back_affine = slices_back(volume, thin_affine(affine, upsampling.k), geometry.axis)
        return nib.Nifti1Image(np.ascontiguousarray(back, dtype=np.float32), back_affine)

    mean = put_back(result.mean)
    details = {
        "SkullStripped": brain.skull_stripped, "UpsamplingFactor": upsampling.k, "SliceAxis": AXIS_NAMES[geometry.axis], "SliceSpacing": round(geometry.spacing_mm, 4),
        "SliceThickness": round(geometry.thickness_mm, 4), "SliceGap": round(geometry.gap_mm, 4), "GeometrySource": geometry.source,
        "UpsamplingChoice": upsampling.note, "VoxelSize": [round(float(v), 4) for v in voxel_sizes(mean.affine)],
        "Model": {"Name": loaded.card["name"], "SHA256": loaded.sha256, "Members": loaded.card["n_members"]},
        "BrainMaskMethod": brain.method, "IntensityScale": scale,
        "Units": "arbitrary, as the scan's own: white matter keeps its intensity; values below zero are set to zero",
        **result.details, "Seconds": round(time.monotonic() - began, 1), "PeakMemoryGB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
        "Warnings": _warnings(geometry, brain.method, loaded),
    }
    mask = nib.Nifti1Image(brain.mask.astype(np.uint8), image.affine)
    return EnhancedScan(mean, None if result.std is None else put_back(result.std), put_back(spline), mask, details)


def enhance_volume(data: np.ndarray, model: Model, *, scale: float, device: str = "cpu", num_threads: int = 1, max_memory_gb: float | None = None) -> Enhanced:
    """Run an ensemble over a slices-last volume.

    Parameters
    ----------
    data : ndarray, shape (w, h, d), float32
        Scan in its own units.
    model
        Loaded model.
    scale
        Intensity that the network sees as 1 (`iqtflow.normalisation.intensity_scale`).
    device, num_threads, max_memory_gb
        As for `enhance_image`.

    Returns
    -------
    Enhanced
        Volumes of shape (w, h, k d), float32, in the scan's units; mean and standard deviation are computed member by member
        (Welford 1962), so that no more than two volumes are held.
    """
    torch.set_num_threads(num_threads)
    k, multiple = model.card["k"], model.members[0].min_multiple
    padded, inner = _pad(data / np.float32(scale), multiple)
    limit = _memory_limit_gb(device) if max_memory_gb is None else max_memory_gb
    need = predict_memory_gb(padded.shape, model)
    tile = padded.shape if need <= limit else _tile_shape(padded.shape, model, limit)
    volume = torch.from_numpy(padded)[None, None].to(device)
    mean = m2 = None
    for count, network in enumerate(model.members, start=1):
        output = _run(network, volume, tile, k, device).clamp_(min=0)
        if mean is None:
            mean, m2 = output, torch.zeros_like(output) if len(model.members) > 1 else None
        else:
            delta = output - mean
            mean += delta / count
            m2 += delta * (output - mean)
    crop = (inner[0], inner[1], slice(inner[2].start * k, inner[2].stop * k))
    std = None if m2 is None else torch.sqrt(m2 / (len(model.members) - 1)).cpu().numpy()[crop] * np.float32(scale)
    details = {"Device": device, "Precision": "bfloat16" if device == "cuda" else "float32", "Tiling": "whole volume in one pass" if tile == padded.shape else f"tiles of {tile}, blended",
               "PredictedMemoryGB": round(predict_memory_gb(tile, model), 2)}
    return Enhanced(mean.cpu().numpy()[crop] * np.float32(scale), std, details)


def predict_memory_gb(shape: tuple[int, ...], model: Model) -> float:
    """Memory (GB) that one pass over a padded thick-slice volume takes beside the volume itself."""
    filters = model.card["network"]["kwargs"].get("filters", 16)
    return math.prod(shape) * model.card["k"] * BYTES_PER_VOXEL_AND_CHANNEL * filters / 1e9


def _run(network: torch.nn.Module, volume: torch.Tensor, tile: tuple[int, ...], k: int, device: str) -> torch.Tensor:
    network = network.to(device, memory_format=torch.channels_last_3d)
    with torch.no_grad(), torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
        if tile == tuple(volume.shape[2:]):
            return network(volume)[0, 0].float()
        from monai.inferers import sliding_window_inference

        # MONAI infers the zoom of the slice axis from the first tile's output.
        return sliding_window_inference(volume, tile, 1, network, overlap=0.25, mode="gaussian")[0, 0].float()


def _pad(data: np.ndarray, multiple: tuple[int, int, int]) -> tuple[np.ndarray, tuple[slice, ...]]:
    """Extend by the edge value to multiples that the network takes; also return where the data are."""
    before, after, inner = [], [], []
    for axis, (n, m) in enumerate(zip(data.shape, multiple)):
        low = MARGIN if axis < 2 else 1
        total = math.ceil((n + 2 * low) / m) * m
        before.append(low)
        after.append(total - n - low)
        inner.append(slice(low, low + n))
    return np.pad(data, list(zip(before, after)), mode="edge").astype(np.float32), tuple(inner)


def _tile_shape(shape: tuple[int, ...], model: Model, limit_gb: float) -> tuple[int, ...]:
    """The largest tile within the limit, halving the longest edge in turn, down to the training patch."""
    multiple, k = model.members[0].min_multiple, model.card["k"]
    floor = (32, 32, max(32 // k, multiple[2]))
    tile = list(shape)
    while predict_memory_gb(tuple(tile), model) > limit_gb:
        reducible = [a for a in range(3) if tile[a] > floor[a]]
        if not reducible:
            break
        axis = max(reducible, key=lambda a: tile[a] / floor[a])
        tile[axis] = max(math.ceil(tile[axis] / 2 / multiple[axis]) * multiple[axis], floor[axis])
    return tuple(tile)


def _memory_limit_gb(device: str) -> float:
    if device == "cuda":
        return MEMORY_SHARE * torch.cuda.mem_get_info()[0] / 1e9
    from iqtflow.resources import available_memory_gb

    return MEMORY_SHARE * available_memory_gb()


def _choose_model(geometry: Any, model: str | os.PathLike | None) -> tuple[Path, str | None]:
    if model is not None:
        return find_model(model)
    shipped = [info for info in list_shipped() if info.contrast == "T1w"]
    if not shipped:
        raise InputError("shipped models", found="none", expected="at least one for T1w", next_step="Give a model of your own: --model PATH.")
    k = choose_upsampling(geometry, sorted({info.k for info in shipped})).k
    info = next(info for info in shipped if info.k == k)
    return info.path, info.sha256


def _warnings(geometry: Any, mask_method: str, model: Model) -> list[str]:
    found = []
    k = model.card["k"]
    if abs(math.log2(geometry.ratio / k)) > 0.5:
        found.append(f"slice spacing is {geometry.ratio:.1f} times the in-plane voxel size and the model was trained for {k}: the plane was resampled to fit")
    if mask_method == "head":
        found.append("no brain was found in the scan: intensities were scaled by the whole head, which scalp fat distorts")
    return found
