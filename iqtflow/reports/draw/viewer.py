"""Volumes for the viewer of a page.

A page that is opened as a file must not read other files, but may run scripts beside it. So each volume is an
8-bit NIfTI file, compressed, as text in a script.
"""

from __future__ import annotations

import base64
import gzip
from collections.abc import Callable
from dataclasses import dataclass, field

import nibabel as nib
import numpy as np

from iqtflow.reports.draw.slices import Scene
from iqtflow.reports.draw.volumes import Volumes

#: Steps of the sampling that are tried until the files are small enough: 1 is full resolution.
STEPS = (1, 2, 3)
MARGIN_MM = 6.0  #: around the head
#: Above this share of the window a voxel belongs to the head.
HEAD = 0.12
#: The residual is shown up to so many standard deviations of the noise.
RESIDUAL_TOP = 10.0
LEVEL = 4  #: of compression; higher levels take much longer and save little, because noise stays


@dataclass(frozen=True)
class ViewerLayer:
    """One volume for the viewer: word for scripts, name for readers, file, and how it is shown."""

    key: str
    tag: str
    file: str
    low: float
    high: float
    unit: str = ""
    over: bool = False
    negative: bool = False
    blocks: bool = False


@dataclass
class Viewer:
    """The volumes of one scan: layers in the order of the page, size, step of the sampling, and files."""

    layers: list[ViewerLayer]
    megabytes: float
    step: int
    files: dict[str, bytes] = field(default_factory=dict)


def make_viewer(
    scene: Scene, residual: tuple[np.ndarray, np.ndarray] | None, *, max_megabytes: float
) -> Viewer | None:
    """Return the volumes of a scan for the viewer of its page.

    Parameters
    ----------
    scene
        The volumes, and the upper end of the scale of the uncertainty.
    residual
        Difference from the acquired slices, in standard deviations of the noise, and its affine; or None.
    max_megabytes
        Most megabytes (10⁶ bytes) of all files. Only every second or third voxel is kept if they are larger.

    Returns
    -------
    Viewer or None
        None if the files would be too large even then.
    """
    for step in STEPS:
        viewer = _draw(scene, residual, step, max_megabytes)
        if viewer is not None:
            return viewer
    return None


def _draw(
    scene: Scene, residual: tuple[np.ndarray, np.ndarray] | None, step: int, max_megabytes: float
) -> Viewer | None:
    """Return the volumes at one step, or None as soon as they are too large."""
    volumes = scene.volumes
    box = head_box(volumes)
    low, high = volumes.window
    thin = (slice(None, None, step),) * 3

    def on_fine_grid(data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        affine = volumes.affine @ np.diag([step, step, step, 1.0])
        affine[:3, 3] = volumes.affine[:3, 3] + volumes.affine[:3, :3] @ [part.start for part in box]
        return data[box][thin], affine

    def on_own_grid(volume: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        return _cropped(volume, volumes, box)

    parts: list[tuple[ViewerLayer, Callable[[], tuple[np.ndarray, np.ndarray]]]] = []

    def add(key: str, tag: str, span: tuple[float, float], volume, **how) -> None:
        parts.append((ViewerLayer(key, tag, f"{scene.stem}_viewer-{key}.js", *span, **how), volume))

    if volumes.acquired is not None:
        add("acquired", "Acquired", (low, high), lambda: on_own_grid(volumes.acquired), blocks=True)
    add("spline", "Spline", (low, high), lambda: on_fine_grid(volumes.before))
    add("iqt", "Enhanced", (low, high), lambda: on_fine_grid(volumes.after))
    if scene.excess is not None:
        top, unit = scene.excess_top, "above the usual"
        add("std", "Uncertainty", (0.0, top), lambda: on_fine_grid(scene.excess), over=True, unit=unit)
    if residual is not None:
        span, how = (-RESIDUAL_TOP, RESIDUAL_TOP), {"over": True, "negative": True, "blocks": True}
        add("residual", "Residual", span, lambda: on_own_grid(residual), unit="SD of the noise", **how)
    files: dict[str, bytes] = {}
    for layer, volume in parts:
        files[layer.file] = _script(scene.stem, layer, *volume())
        if sum(map(len, files.values())) > 1e6 * max_megabytes:
            return None
    return Viewer([layer for layer, _ in parts], sum(map(len, files.values())) / 1e6, step, files)


def head_box(volumes: Volumes) -> tuple[slice, slice, slice]:
    """Return the part of the enhanced volume that holds the head, of whole slices of the scan."""
    low, high = volumes.window
    head = (volumes.before > low + HEAD * (high - low)) | volumes.mask
    box = []
    for axis in range(3):
        share = head.mean(axis=tuple(a for a in range(3) if a != axis))
        inside = np.flatnonzero(share > 0.02 * share.max())
        n, margin = head.shape[axis], round(MARGIN_MM / volumes.sizes_mm[axis])
        start, stop = max(int(inside[0]) - margin, 0), min(int(inside[-1]) + 1 + margin, n)
        if axis == volumes.slice_axis and volumes.acquired is not None:
            k = max(n // volumes.acquired[0].shape[axis], 1)
            start, stop = start // k * k, min(-(-stop // k) * k, n)
        box.append(slice(start, stop))
    return box[0], box[1], box[2]


def _cropped(
    volume: tuple[np.ndarray, np.ndarray], volumes: Volumes, box: tuple[slice, slice, slice]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the part of a volume on another grid that covers the same box."""
    data, affine = volume
    to_own = np.linalg.inv(affine) @ volumes.affine
    corners = np.array(np.meshgrid(*([part.start - 0.5, part.stop - 0.5] for part in box))).reshape(3, -1)
    edges = (to_own[:3, :3] @ corners + to_own[:3, 3:]) + 0.5
    first = np.clip(np.floor(edges.min(axis=1) + 1e-3), 0, None).astype(int)
    last = np.minimum(np.ceil(edges.max(axis=1) - 1e-3).astype(int), data.shape)
    own = affine.copy()
    own[:3, 3] += affine[:3, :3] @ first
    return data[tuple(slice(a, b) for a, b in zip(first, last, strict=True))], own


def _script(stem: str, layer: ViewerLayer, data: np.ndarray, affine: np.ndarray) -> bytes:
    """Return a volume as a script that hands it to the page."""
    # Fat is brighter than the window; 255 stands for a value above it, so that it stays visible.
    top = layer.high if layer.over else layer.low + 1.5 * (layer.high - layer.low)
    scale = (top - layer.low) / 255
    stored = np.round(np.clip((data - layer.low) / scale, 0, 255)).astype(np.uint8)
    image = nib.Nifti1Image(stored, affine)
    image.header.set_slope_inter(scale, layer.low)
    image.header.set_xyzt_units("mm")
    packed = base64.b64encode(gzip.compress(image.to_bytes(), LEVEL, mtime=0))
    return b'iqtflowVolume("%s", "%s", "%s");\n' % (stem.encode(), layer.key.encode(), packed)
