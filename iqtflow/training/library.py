"""The patch library of one subject: its volumes, stored once, and an index of patches with enough brain.

Patches are not stored as copies. Overlapping patches of the paper's grid repeat every voxel eight times or
more. A memory-mapped volume and a list of corners give the same patches from an eighth of the disk space, for
any slice axis and any number of draws.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from iqtflow.config import TrainSettings
from iqtflow.image.geometry import bounding_box
from iqtflow.image.intensity import intensity_scale
from iqtflow.simulation.slice_profile import decimation_matrix
from iqtflow.simulation.snr_prior import tissue_mean
from iqtflow.utils.errors import InputError
from iqtflow.utils.files import require_regular, write_atomically

FORMAT = 1
PATCH = 32  #: edge of a high-field patch, in voxels (section 3.1)
REFERENCE_VOXELS = 4096  #: brain voxels stored for each slice axis, to compute a draw's intensity scale


@dataclass(frozen=True)
class GridSettings:
    """Where patches are taken (section 3.1; the defaults are the paper's).

    Attributes
    ----------
    step
        Distance between patch corners along the three array axes, in high-field voxels.
    background_limit
        Patches with a larger share of background voxels are left out.
    """

    step: tuple[int, int, int] = TrainSettings.patch_step
    background_limit: float = TrainSettings.background_limit


@dataclass(frozen=True)
class StoredDraw:
    """A simulated low-field scan of the whole volume.

    Attributes
    ----------
    volume : ndarray
        Thick-slice scan on the grid of the whole high-field image, not of the crop. In any unit for writing;
        float16, divided by the library's `unit`, after reading.
    axis
        Slice axis.
    scale
        Intensity that becomes 1 for the networks (`iqtflow.image.intensity`), in the volume's unit; computed
        in writing.
    record
        The simulator's sidecar.
    """

    volume: np.ndarray
    axis: int
    scale: float = float("nan")
    record: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PatchLibrary:
    """A subject's volumes and patch index, memory-mapped.

    Attributes
    ----------
    intensity : ndarray, shape (w, h, D), float16
        High-field image divided by `unit`, cropped to the brain plus a margin.
    wm, gm : ndarray, shape (w, h, D), uint8
        Tissue probability times 255.
    brain : ndarray, shape (w, h, D), uint8
        255 in the brain, 0 outside; in libraries of older versions 255 where there is tissue.
    corners : ndarray, shape (n, 3), int32
        Lowest corners of the patches.
    references : dict of axis -> ndarray, shape (m, 3), float32
        Intensity over `unit`, WM and GM probability of brain voxels on the thick-slice grid along that axis.
    mean_wm, mean_gm
        Tissue means over `unit`.
    unit
        Intensity that the volumes were divided by.
    subject
        Participant label, without "sub-".
    k
        Upsampling factor of the stored draws and of the references.
    origin
        First voxel of the crop on the grid of the image; None in libraries of older versions.
    draws
        Stored simulated scans, in their order.
    path, size
        The file, and its size in bytes.
    fingerprint
        Digest of the header, the corners and the references.
    """

    intensity: np.ndarray
    wm: np.ndarray
    gm: np.ndarray
    brain: np.ndarray
    corners: np.ndarray
    references: dict[int, np.ndarray]
    mean_wm: float
    mean_gm: float
    unit: float
    subject: str
    k: int
    origin: tuple[int, int, int] | None
    draws: tuple[StoredDraw, ...]
    path: Path
    size: int
    fingerprint: str

    @property
    def n_patches(self) -> int:
        """Number of patches in the index."""
        return len(self.corners)


def write_library(
    path: str | os.PathLike,
    *,
    subject: str,
    intensity: np.ndarray,
    wm: np.ndarray,
    gm: np.ndarray,
    mask: np.ndarray,
    slice_axes: tuple[int, ...],
    k: int,
    grid: GridSettings | None = None,
    seed: int = 0,
    draws: Sequence[StoredDraw] = (),
) -> int:
    """Write the patch library of one subject.

    Parameters
    ----------
    path
        A ``.safetensors`` file; it has this name only when it is complete.
    subject
        Participant label.
    intensity, wm, gm : ndarray, shape (w, h, D)
        High-field image (any unit) and tissue probabilities in [0, 1].
    mask : ndarray, shape (w, h, D), bool
        Brain mask.
    slice_axes
        Array axes along which thick slices may be simulated.
    k
        Upsampling factor for which the intensity scale is measured.
    grid
        Where patches are taken.
    seed
        Seed of the choice of reference voxels.
    draws
        Simulated scans to store (N draws in the paper); fresh draws need none.

    Returns
    -------
    int
        Number of patches in the index.

    Raises
    ------
    InputError
        Shapes differ, a tissue is empty, no patch has enough brain, or a draw is on another grid.
    """
    grid = grid or GridSettings()
    if len({intensity.shape, wm.shape, gm.shape, mask.shape}) != 1:
        raise InputError(
            path,
            found=f"shapes {intensity.shape}, {wm.shape}, {gm.shape}, {mask.shape}",
            expected="image, maps and mask on one grid",
            next_step="Resample the maps to the image.",
        )
    mean_wm, mean_gm = tissue_mean(intensity, wm, tissue="WM"), tissue_mean(intensity, gm, tissue="GM")
    box = bounding_box(mask, PATCH // 2)
    unit = mean_wm
    arrays = {
        "intensity": np.clip(intensity[box] / unit, 0, 1000).astype(np.float16),
        "wm": np.rint(np.clip(wm[box], 0, 1) * 255).astype(np.uint8),
        "gm": np.rint(np.clip(gm[box], 0, 1) * 255).astype(np.uint8),
        "brain": mask[box].astype(np.uint8) * 255,
    }
    records = []
    for i, draw in enumerate(draws, start=1):
        scale = _draw_scale(path, draw, mask, k)
        arrays[f"draw{i:02d}"] = np.clip(draw.volume / unit, -1000, 1000).astype(np.float16)
        records.append({"axis": draw.axis, "scale": scale / unit, "record": dict(draw.record)})
    mask = mask[box]
    corners = foreground_corners(mask, grid)
    if not len(corners):
        raise InputError(
            path,
            found=f"no patch with at least {100 * (1 - grid.background_limit):.0f} % brain",
            expected="a brain larger than one patch",
            next_step=f"Check the brain mask and the voxel size (patches are {PATCH} voxels wide).",
        )
    arrays["corners"] = corners
    rng = np.random.default_rng([seed, 0x5CA1E])
    for axis in slice_axes:
        arrays[f"reference{axis}"] = _reference_voxels(arrays, mask, axis, k, rng)
    header = {
        "format": FORMAT,
        "subject": subject,
        "mean_wm": mean_wm / unit,
        "mean_gm": mean_gm / unit,
        "unit": unit,
        "slice_axes": list(slice_axes),
        "k": k,
        "grid": asdict(grid),
        "seed": seed,
        "origin": [part.start for part in box],
        "draws": records,
    }
    content = save(
        {name: np.ascontiguousarray(a) for name, a in arrays.items()},
        metadata={"iqtflow": json.dumps(header, sort_keys=True)},
    )
    write_atomically(path, lambda stream: stream.write(content))
    return len(corners)


def read_library(path: str | os.PathLike) -> PatchLibrary:
    """Open a patch library; volumes are memory-mapped.

    Raises
    ------
    InputError
        The file is missing, cut short, or not a patch library of this format.
    """
    try:
        return _open_library(path)
    # A damaged header may raise any of these.
    except (
        *(OSError, SafetensorError, ValueError, LookupError, TypeError, AttributeError),
        *(ArithmeticError, RecursionError),
    ) as fault:
        raise InputError(
            path,
            found=f"{type(fault).__name__}: {fault}",
            expected="a readable patch library",
            next_step="Run the participant level again to write it anew.",
        ) from fault


def _open_library(path: str | os.PathLike) -> PatchLibrary:
    require_regular(path)
    with safe_open(os.fspath(path), framework="numpy") as file:
        header = json.loads((file.metadata() or {}).get("iqtflow", "{}"))
        names = set(file.keys())
        if header.get("format") != FORMAT or not {"intensity", "wm", "gm", "corners"} <= names:
            raise InputError(
                path,
                found=f"format {header.get('format')} with {sorted(names)}",
                expected=f"a patch library of format {FORMAT}",
                next_step="Run the participant level again to write it anew.",
            )
        slices = {name: file.get_slice(name) for name in names}
        layout = {name: (one.get_dtype(), tuple(one.get_shape())) for name, one in slices.items()}
        small = {
            name: file.get_tensor(name)
            for name in sorted(names)
            if name == "corners" or name.startswith("reference")
        }
    volumes = {
        name: _memory_map(path, name, layout) for name in ("intensity", "wm", "gm", "brain") if name in names
    }
    if "brain" not in volumes:
        volumes["brain"] = np.where(volumes["wm"] | volumes["gm"], np.uint8(255), np.uint8(0))
    references = {
        int(name.removeprefix("reference")): a.astype(np.float32)
        for name, a in small.items()
        if name.startswith("reference")
    }
    draws = tuple(
        StoredDraw(
            _memory_map(path, f"draw{i:02d}", layout), draw["axis"], float(draw["scale"]), draw["record"]
        )
        for i, draw in enumerate(header.get("draws", ()), start=1)
    )
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for array in small.values():
        digest.update(array.tobytes())
    return PatchLibrary(
        **volumes,
        corners=small["corners"],
        references=references,
        mean_wm=header["mean_wm"],
        mean_gm=header["mean_gm"],
        unit=header["unit"],
        subject=header["subject"],
        k=header["k"],
        origin=tuple(header["origin"]) if "origin" in header else None,
        draws=draws,
        path=Path(path).absolute(),
        size=Path(path).stat().st_size,
        fingerprint=digest.hexdigest()[:16],
    )


def foreground_corners(mask: np.ndarray, grid: GridSettings) -> np.ndarray:
    """Return the corners of the grid's patches with enough foreground (the 80 % rule of section 3.1).

    Parameters
    ----------
    mask : ndarray, shape (w, h, D), bool
    grid
        Steps and background limit.

    Returns
    -------
    ndarray, shape (n, 3), int32
        In the order of the grid. Along each axis a last patch at the far border is added.
    """
    # Integers, because a float32 running sum is wrong from 2**24 voxels on.
    count, starts = mask.astype(np.int64), []
    for axis, (n, step) in enumerate(zip(mask.shape, grid.step, strict=True)):
        first = np.unique([*range(0, max(n - PATCH, 0) + 1, step), max(n - PATCH, 0)])
        sums = np.insert(count.cumsum(axis), 0, 0, axis)
        count = sums.take(np.minimum(first + PATCH, n), axis) - sums.take(first, axis)
        starts.append(first)
    kept = np.nonzero(count >= (1 - grid.background_limit) * PATCH**3)
    return np.stack([first[i] for first, i in zip(starts, kept, strict=True)], axis=1).astype(np.int32)


def _draw_scale(path: str | os.PathLike, draw: StoredDraw, mask: np.ndarray, k: int) -> float:
    """Intensity scale of a simulated scan, from its brain voxels."""
    expected = [n // k if a == draw.axis else n for a, n in enumerate(mask.shape)]
    if list(draw.volume.shape) != expected:
        raise InputError(
            path,
            found=f"a simulated scan of shape {draw.volume.shape}",
            expected=f"shape {tuple(expected)}: the image's, in slabs of {k} along axis {draw.axis}",
            next_step="Simulate it from this image, with this factor.",
        )
    thick = _thick_mask(mask, draw.axis, k)[0]
    return intensity_scale(np.moveaxis(draw.volume, draw.axis, 2)[thick])


def _reference_voxels(
    arrays: dict[str, np.ndarray], mask: np.ndarray, axis: int, k: int, rng: np.random.Generator
) -> np.ndarray:
    """Thick-slice values (intensity, WM, GM) of random brain voxels."""
    thick, matrix = _thick_mask(mask, axis, k)
    chosen = np.argwhere(thick)
    chosen = chosen[rng.permutation(len(chosen))[:REFERENCE_VOXELS]]
    columns = []
    for name, unit in (("intensity", 1.0), ("wm", 255.0), ("gm", 255.0)):
        lines = np.moveaxis(arrays[name], axis, 2)[chosen[:, 0], chosen[:, 1]].astype(np.float32) / unit
        columns.append(np.einsum("nd,nd->n", lines, matrix[chosen[:, 2]]))
    return np.stack(columns, axis=1).astype(np.float32)


def _thick_mask(mask: np.ndarray, axis: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a mask on the thick-slice grid, slices last, and the decimation matrix."""
    matrix = decimation_matrix(mask.shape[axis], k, 0.75 * k)
    # Not `@` with the axis moved: without contiguous rows it takes ten times as long.
    return np.tensordot(mask.astype(np.float32), matrix, (axis, 1)) > 0.5, matrix


def _memory_map(
    path: str | os.PathLike, name: str, layout: dict[str, tuple[str, tuple[int, ...]]]
) -> np.ndarray:
    """Map one tensor of a safetensors file (8 bytes of header length, a JSON header, then the tensors at the
    stated offsets).
    """
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        begin = json.loads(file.read(length))[name]["data_offsets"][0]
    dtype = {"F16": np.float16, "U8": np.uint8}[layout[name][0]]
    return np.memmap(path, dtype=dtype, mode="r", offset=8 + length + begin, shape=layout[name][1])
