"""Several scans of one head, each enhanced, made into one volume.

The scans are of one session and contrast: with slices along different axes, or repeated. Each enhanced volume
is registered to the first (`iqtflow.inference.rigid`), judged, sampled once on a grid of cubic voxels, and
combined (`iqtflow.inference.fusion`). A scan that does not fit is left out. The result is compared with the
slices of every scan (`iqtflow.inference.audit`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from scipy import ndimage

import iqtflow
from iqtflow.image.geometry import SliceGeometry, find_slice_geometry, slices_last, thin_affine
from iqtflow.image.orientation import ReorientedScan, placed_like
from iqtflow.image.resampling import isotropic_grid
from iqtflow.inference.data_consistency import compare_with_scan
from iqtflow.inference.fusion import Aligned, fuse
from iqtflow.inference.rigid import Alignment, Brain, register, resample
from iqtflow.inference.stack_fit import LeftOut, as_fields, describe_fit, find_warnings, why_apart, why_unfit
from iqtflow.utils.errors import InputError
from iqtflow.utils.system import peak_memory_gb

#: Voxel edges (mm) of the combined volume: the finest in-plane voxel of the first scan, within these limits.
FINEST_MM, COARSEST_MM = 0.7, 1.5
#: Why a scan is left out that has other slices than its file.
INTERPOLATED = (
    "Found a volume that was brought back to its slices (--acquired-spacing); expected a scan as it was "
    "acquired. Combine scans without this option."
)
#: Why a scan is left out that holds nothing new.
SAME_SCAN = "It has the same voxels as {}; expected another scan. Give each scan once."
#: Fields of the first scan's sidecar that stand in that of the combined volume, too.
CARRIED = (
    *("SkullStripped", "UpsamplingFactor", "SliceAxis", "Units", "IntensityDescription", "Geometry"),
    *("Upsampling", "Model", "BrainMask", "Uncertainty", "SliceIntensity", "IntensityScale"),
    *("WhiteMatter", "OutOfDistribution"),
)


@dataclass(frozen=True)
class Stack:
    """A scan and its enhanced volume.

    Attributes
    ----------
    name
        Of the scan, for messages and the record.
    scan
        From `iqtflow.image.validate.check_scan`.
    mean, std
        Enhanced volume and predicted error on one grid; the second may be None.
    mask
        Brain mask on the grid of the scan.
    sidecar
        BIDS metadata of the scan.
    details
        Fields of the sidecar of the enhanced volume.
    """

    name: str
    scan: nib.Nifti1Image
    mean: nib.Nifti1Image
    std: nib.Nifti1Image | None
    mask: nib.Nifti1Image
    sidecar: Mapping[str, Any]
    details: Mapping[str, Any]


@dataclass(frozen=True)
class CombinedScan:
    """Result of `combine_stacks`.

    Attributes
    ----------
    mean
        Combined volume, in the axes, the world space and the units of the first scan; cubic voxels.
    std
        Its predicted error (standard deviation); None if a model gives none.
    single
        The enhanced volume of one scan on the same grid, for comparison: the one with the smallest predicted
        error.
    mask
        Brain mask on the grid of the first scan.
    residual
        First scan minus the scan that the combined volume predicts, in standard deviations of the noise.
    details
        Fields of the BIDS sidecar; ``Stacks`` has one entry for each scan.
    """

    mean: nib.Nifti1Image
    std: nib.Nifti1Image | None
    single: nib.Nifti1Image
    mask: nib.Nifti1Image
    residual: nib.Nifti1Image
    details: dict[str, Any]


def combine_stacks(
    stacks: Sequence[Stack],
    *,
    left_out: Iterable[LeftOut] = (),
    voxel_mm: float | None = None,
    report: Callable[[str], None] | None = None,
) -> CombinedScan:
    """Make one volume of several enhanced scans of one head.

    Parameters
    ----------
    stacks
        The first one gives axes, world space and units.
    left_out
        Scans that could not be enhanced, for the record.
    voxel_mm
        Voxel edge in mm; None: the finest in-plane voxel of the first scan, from 0.7 to 1.5 mm.
    report
        Function that receives one line for each scan.

    Returns
    -------
    CombinedScan
        Same input, same bits.

    Raises
    ------
    InputError
        No scan fits to the first one.
    """
    began = time.monotonic()
    if not _has_own_slices(stacks[0]):
        raise InputError(
            stacks[0].name,
            found="a volume that was brought back to its slices (--acquired-spacing)",
            expected="a scan as it was acquired",
            next_step="Leave out --acquired-spacing, or do not combine this scan.",
        )
    first, rest = _Placed(stacks[0]), stacks[1:]
    first_brain = enhanced_brain(stacks[0])  # once for all registrations
    used, missing = [first], list(left_out)
    for stack in rest:
        twin = next((one.stack.name for one in used if _same_scan(one.stack, stack)), None)
        placed, why = (None, SAME_SCAN.format(twin)) if twin else _fit(first, first_brain, stack)
        if report is not None:
            report(describe_fit(stack.name, None if placed is None else placed.alignment, why))
        if placed is None or why:
            missing.append(LeftOut(stack.name, why, None if placed is None else placed.alignment))
        else:
            used.append(placed)
    if len(used) < 2:
        raise InputError(
            first.stack.name,
            found="no other scan to combine it with: " + " ".join(f"{m.name}: {m.reason}" for m in missing),
            expected="at least two scans of one head, of one session and contrast",
            next_step="Use the enhanced volume of the single scan, or give other scans.",
        )
    grid, shape, edge = combined_grid(first.stack.scan, voxel_mm)
    aligned = [one.on_grid(grid, shape) for one in used]
    brain = first.brain_on(grid, shape)
    fused = fuse(aligned, brain, edge_mm=edge)
    error = fused.error
    volume = fused.volume
    if all(one.stack.details.get("SkullStripped") for one in used):
        support = np.zeros(shape, bool)
        for one in aligned:
            support |= one.volume > 0
        volume = np.where(support, volume, np.float32(0))
    audits = [one.audit(volume, error, grid) for one in used]

    def finish(data: np.ndarray) -> nib.Nifti1Image:
        return placed_like(np.ascontiguousarray(data, np.float32), grid, first.stack.scan)

    mean = finish(volume)
    records = [
        one.record(share, audit.fields) for one, share, audit in zip(used, fused.shares, audits, strict=True)
    ]
    records += [
        {"Scan": m.name, "Used": False, "Reason": m.reason, **as_fields(m.alignment)} for m in missing
    ]
    details = {
        **{name: first.stack.details.get(name) for name in CARRIED},
        "VoxelSizeMm": [round(float(v), 4) for v in voxel_sizes(mean.affine)],
        "DataConsistency": audits[0].fields,
        "Stacks": records,
        "ErrorCorrelation": None if fused.correlation is None else round(fused.correlation, 3),
        "ErrorScale": None if fused.scale is None else round(fused.scale, 3),
        "Seconds": round(time.monotonic() - began, 1),
        "PeakMemoryGB": round(peak_memory_gb(), 2),
        "PackageVersion": iqtflow.__version__,
        "Warnings": [*find_warnings(records), *first.stack.details.get("Warnings", ())],
    }
    return CombinedScan(
        mean,
        None if error is None else finish(error),
        finish(_best(aligned, brain).volume),
        first.stack.mask,
        audits[0].residual,
        details,
    )


def enhance_and_combine(
    names: Sequence[str],
    sidecars: Sequence[Mapping[str, Any]],
    enhance: Callable[[int], tuple[nib.Nifti1Image, Any]],
    **options: Any,
) -> CombinedScan:
    """Enhance scans one after the other, and combine them.

    Parameters
    ----------
    names, sidecars
        Name and BIDS metadata of each scan.
    enhance
        Returns for the number of a scan the scan and its `iqtflow.inference.pipeline.EnhancedScan`.
    **options
        Of `combine_stacks`.

    Raises
    ------
    InputError
        The first scan cannot be enhanced, or no other scan can be combined with it. Any other scan that
        cannot be enhanced is left out.
    """
    stacks: list[Stack] = []
    left_out = []
    for number, (name, sidecar) in enumerate(zip(names, sidecars, strict=True)):
        apart = why_apart(names[0], sidecars[0], name, sidecar)
        if apart:
            left_out.append(LeftOut(name, apart))
            continue
        try:
            scan, made = enhance(number)
        except InputError as fault:
            if number == 0:
                raise
            left_out.append(
                LeftOut(name, f"found {fault.found}; expected {fault.expected}. {fault.next_step}")
            )
            continue
        stacks.append(Stack(name, scan, made.mean, made.std, made.mask, sidecar, made.details))
    report = options.get("report")
    for one in left_out if report else ():
        report(describe_fit(one.name, None, one.reason))
    return combine_stacks(stacks, left_out=left_out, **options)


def combined_grid(
    scan: nib.Nifti1Image, voxel_mm: float | None = None
) -> tuple[np.ndarray, tuple[int, ...], float]:
    """Return affine, shape and voxel edge (mm) of the combined volume.

    It has the axes of the first scan, and cubic voxels. The centre of the field of view stays in place.
    """
    edge = voxel_mm or float(np.clip(voxel_sizes(scan.affine).min(), FINEST_MM, COARSEST_MM))
    shape, affine = isotropic_grid(scan.shape[:3], scan.affine, edge)
    return affine, shape, edge


def enhanced_brain(stack: Stack) -> Brain:
    """Return the enhanced brain of a scan for the registration; axes nearest to RAS."""
    mean, mask = ReorientedScan(stack.mean, 0), ReorientedScan(stack.mask, 0)
    # A voxel more at each border: thin slices reach half a slice beyond the centre of the last one.
    padded = mask.affine.copy()
    padded[:3, 3] -= padded[:3, :3].sum(axis=1)
    step = np.linalg.inv(padded) @ mean.affine
    inside = resample(np.pad(mask.data, 1), step, mean.data.shape, order=0) > 0.5
    return Brain(mean.data, inside, mean.affine)


def _same_scan(one: Stack, other: Stack) -> bool:
    """Return whether two scans are copies."""
    return one.scan.shape == other.scan.shape and np.array_equal(one.scan.dataobj, other.scan.dataobj)


def _has_own_slices(stack: Stack) -> bool:
    """Return whether a scan was enhanced on its own grid."""
    return stack.mask.shape[:3] == stack.scan.shape[:3]


def _best(scans: Sequence[Aligned], brain: np.ndarray) -> Aligned:
    """Return the scan with the smallest predicted error; without one, that with the thinnest slices."""
    if any(scan.error is None for scan in scans):
        return min(scans, key=lambda scan: scan.spacing_mm)
    return min(scans, key=lambda scan: float(np.mean(scan.error[brain] ** 2)))


class _Placed:
    """A stack, and where it lies: `alignment` leads from the first scan to it."""

    def __init__(self, stack: Stack, alignment: Alignment | None = None) -> None:
        self.stack, self.alignment = stack, alignment
        self.matrix = np.eye(4) if alignment is None else alignment.matrix
        self.gain = np.float32(1 if alignment is None else alignment.gain)
        self.geometry: SliceGeometry = find_slice_geometry(stack.scan, stack.sidecar)

    def sample(self, image: nib.Nifti1Image, grid: np.ndarray, shape: tuple, *, order: int = 3) -> np.ndarray:
        """Sample an image once on the combined grid, in the units of the first scan."""
        data = np.asarray(image.dataobj, np.float32)
        finer = voxel_sizes(grid)[0] / voxel_sizes(image.affine)
        if finer.max() > 1.1:  # else fine detail would be folded into coarse detail
            data = ndimage.gaussian_filter(
                data, np.sqrt(np.maximum(finer**2 - 1, 0)) / np.sqrt(8 * np.log(2))
            )
        return self.gain * resample(
            data, np.linalg.inv(image.affine) @ self.matrix @ grid, shape, order=order
        )

    def on_grid(self, grid: np.ndarray, shape: tuple) -> Aligned:
        stack, scan = self.stack, self.stack.scan
        volume = np.maximum(self.sample(stack.mean, grid, shape), 0)
        error = None if stack.std is None else np.maximum(self.sample(stack.std, grid, shape, order=1), 0)
        to_scan = np.linalg.inv(scan.affine) @ self.matrix @ grid
        # The first and the last slice reach half a spacing beyond their centres.
        edges = np.pad(np.ones(scan.shape[:3], np.float32), 1, mode="edge")
        inner = to_scan.copy()
        inner[:3, 3] += 1
        shown = resample(edges, inner, shape, order=0) > 0
        direction = (np.linalg.inv(grid) @ np.linalg.inv(self.matrix) @ scan.affine)[:3, self.geometry.axis]
        return Aligned(volume, error, shown, self.geometry.spacing_mm, direction / np.linalg.norm(direction))

    def brain_on(self, grid: np.ndarray, shape: tuple) -> np.ndarray:
        return self.sample(self.stack.mask, grid, shape, order=1) > 0.5 * self.gain

    def audit(self, volume: np.ndarray, error: np.ndarray | None, grid: np.ndarray):
        """Compare the combined volume with the slices of this scan."""
        laid = ReorientedScan(self.stack.scan, self.geometry.axis)
        mask = ReorientedScan(self.stack.mask, self.geometry.axis)
        data, affine = slices_last(laid.data, laid.affine, laid.axis)
        inside, _ = slices_last(mask.data > 0, mask.affine, mask.axis)
        k = max(round(self.geometry.spacing_mm / float(voxel_sizes(grid)[0])), 1)
        step = np.linalg.inv(grid) @ np.linalg.inv(self.matrix) @ thin_affine(affine, k)
        shape = (*data.shape[:2], k * data.shape[2])
        estimate = np.maximum(resample(volume, step, shape), 0) / self.gain
        predicted = None if error is None else resample(error, step, shape, order=1) / self.gain
        return compare_with_scan(
            data,
            estimate,
            inside,
            affine=affine,
            laid=laid,
            geometry=self.geometry,
            predicted_error=predicted,
        )

    def record(self, share: float, audit: Mapping[str, Any]) -> dict[str, Any]:
        """Return the entry of the sidecar's field ``Stacks``."""
        found, details = self.alignment, self.stack.details
        return {
            "Scan": self.stack.name,
            "Used": True,
            "SliceAxis": details.get("SliceAxis"),
            "SpacingMm": round(self.geometry.spacing_mm, 4),
            "ThicknessMm": round(self.geometry.thickness_mm, 4),
            "Weight": round(share, 3),
            **as_fields(found),
            "Model": details.get("Model"),
            "DataConsistency": dict(audit),
        }


def _fit(first: _Placed, brain: Brain, stack: Stack) -> tuple[_Placed | None, str]:
    """Register a stack to the first one, whose brain is given; also return why it cannot be used, if so."""
    if not _has_own_slices(stack):
        return None, INTERPOLATED
    why = why_apart(first.stack.name, first.stack.sidecar, stack.name, stack.sidecar)
    if why:
        return None, why
    found = register(brain, enhanced_brain(stack))
    return _Placed(stack, found), why_unfit(found)
