"""Batches of training pairs with fresh draws of the simulator: N = infinity in the terms of the paper's Table
2.

A batch is made in two halves. `DrawSampler.batch` (CPU, NumPy) chooses subject, slice axis, patch and the
random parameters; it is a function of the seed and the batch's number alone, so that a resumed training sees
the batches that it would have seen, and that several processes share out one batch. `simulate_batch` (torch,
on the training device) does the arithmetic of Algorithm 1 on the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from iqtflow.config import SNR_SCALE_LIMITS
from iqtflow.image.normalisation import intensity_scale
from iqtflow.simulation.artifacts import Extras, require_range
from iqtflow.simulation.forward_model import add_noise, contrast_ratios, decimate, recontrast
from iqtflow.simulation.slice_profile import decimation_matrix
from iqtflow.simulation.snr_prior import PUBLISHED, SNRPrior
from iqtflow.training.library import PATCH, PatchLibrary
from iqtflow.utils.errors import InputError


@dataclass(frozen=True)
class Degradation:
    """What happens to a high-field patch on its way to low field. The defaults are the paper's setting.

    Attributes
    ----------
    prior
        Distribution of tissue SNR.
    thickness_fraction
        Range of slice thickness over slice spacing; (0.75, 0.75) is the paper's thickness 3k/4 voxels, gap
        k/4.
    snr_scale
        Range of a factor on both tissues' SNR: (0.5, 1) also covers scans with up to twice the noise.
        Contrast is left alone.
    bias_amplitude
        Largest log-amplitude of a smooth multiplicative field on input and target alike (the coil's shading
        is kept, not corrected).
    mirror
        Mirror patches along random axes and swap the two in-plane axes.
    zoom
        Range of a factor on the voxel size of the high-field image, which half of the patches are resampled
        to: brains of other sizes in voxels, and from 1 on sharper voxels than the scanner's.
    spacing_jitter
        Largest relative change of the slice spacing against the plane, for half of the patches, too.
    contrast_jitter
        Largest relative change of grey over white matter beyond what the prior draws.
    stripes
        Largest relative change of intensity of every other slice, for a quarter of the patches: interleaved
        slices that saturate each other.

    Raises
    ------
    InputError
        A range has its higher number first, or a number is beyond what can be simulated.
    """

    prior: SNRPrior = field(default_factory=lambda: PUBLISHED["ibadan-0.36T"])
    thickness_fraction: tuple[float, float] = (0.75, 0.75)
    snr_scale: tuple[float, float] = (1.0, 1.0)
    bias_amplitude: float = 0.0
    mirror: bool = False
    zoom: tuple[float, float] = (1.0, 1.0)
    spacing_jitter: float = 0.0
    contrast_jitter: float = 0.0
    stripes: float = 0.0

    @property
    def widens(self) -> bool:
        """Whether anything is drawn beyond the first five settings."""
        return self.zoom != (1.0, 1.0) or any((self.spacing_jitter, self.contrast_jitter, self.stripes))

    def __post_init__(self) -> None:
        require_range("thickness fraction", self.thickness_fraction, 0.01, 1)
        require_range("SNR scale", self.snr_scale, *SNR_SCALE_LIMITS)
        Extras(bias_amplitude=self.bias_amplitude)  # which knows its limit
        require_range("zoom", self.zoom, 0.25, 4)
        for name in ("spacing_jitter", "contrast_jitter", "stripes"):
            require_range(name.replace("_", " "), (0.0, getattr(self, name)), 0, 1)


class DrawSampler:
    """Chooses what goes into each batch.

    Parameters
    ----------
    libraries
        Patch libraries; each subject is equally likely.
    k
        Up-scaling factor.
    batch_size
        Patches in a batch.
    degradation
        Distribution of the simulator's parameters.
    seed
        Together with a batch's number it decides everything in the batch.
    patch
        Edge of the high-field patch in voxels, a multiple of k; the paper's is 32. Larger ones lie about the
        same places, and within the stored volume where they fit.
    """

    def __init__(
        self,
        libraries: Sequence[PatchLibrary],
        *,
        k: int,
        batch_size: int,
        degradation: Degradation,
        seed: int,
        patch: int = PATCH,
    ) -> None:
        self.sources, self.k, self.batch_size = require_sources(libraries), k, batch_size
        self.degradation, self.seed, self.patch = degradation, seed, require_patch(patch, k)
        self.margin = k * int(np.ceil(8 / k))  # 3 sigma of the thickest profile, in whole slices

    def batch(self, number: int, *, rank: int = 0, world: int = 1) -> dict[str, Any]:
        """Return batch `number`, or of its patches those that process `rank` of `world` takes.

        Returns
        -------
        dict
            ``intensity`` (b, 1, P, P, P + 2 margin), float16, ``tissue`` (b, 2, P, P, P + 2 margin) of WM and
            GM, uint8, as they are stored, ``brain`` (b, 1, P, P, P), uint8, 255 inside; one row of parameters
            for each patch (``matrix``,
            ``ratios``, ``scale``, ``bias``); and what the noise of the whole batch follows from.
        """
        items = [
            self._item(np.random.default_rng([self.seed, number, i]))
            for i in range(rank, self.batch_size, world)
        ]
        out: dict[str, Any] = {
            name: torch.from_numpy(np.stack([item[name] for item in items])) for name in items[0]
        }
        noise = np.random.default_rng([self.seed, number, self.batch_size])
        out.update(noise_seed=int(noise.integers(2**62)), rank=rank, world=world)
        return out

    def _item(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        library = self.sources[rng.integers(len(self.sources))]
        axes = sorted(library.references)
        axis = axes[rng.integers(len(axes))]
        corner = place_patch(library, rng, self.patch)
        d = self.degradation
        # A generator of its own: what is off changes nothing in the others' draws.
        extra = np.random.default_rng(rng.integers(2**62)) if d.widens else None
        zooms = np.ones(3) if extra is None else _draw_zooms(d, extra)
        slab = self._slab(library, corner, axis, zooms)
        if d.mirror:
            swap, *flips = rng.random(4) < 0.5
            axes = [a for a in range(3) if flips[a]]
            slab = [np.flip(part.swapaxes(0, 1) if swap else part, axes) for part in slab]
        alpha = d.prior.sample(rng)
        loudness = rng.uniform(*d.snr_scale)
        grey = 1.0 if extra is None else np.exp(np.log1p(d.contrast_jitter) * extra.uniform(-1, 1))
        ratios = contrast_ratios(
            (alpha[0] * loudness, alpha[1] * loudness * grey), library.mean_wm, library.mean_gm
        )
        thickness = rng.uniform(*d.thickness_fraction) * self.k
        matrix = decimation_matrix(self.patch + 2 * self.margin, self.k, round(thickness, 2))
        first = self.margin // self.k
        bias = rng.uniform(-1, 1, 3) * rng.uniform(0, d.bias_amplitude) if d.bias_amplitude else np.zeros(3)
        matrix = np.array(matrix[first : first + self.patch // self.k])
        if extra is not None and d.stripes and extra.random() < 0.25:
            matrix[extra.integers(2) :: 2] *= np.float32(1 + d.stripes * extra.uniform(-1, 1))
        reference = library.references[axis]
        brain = reference[:, 0] * (1 + (ratios.wm - 1) * reference[:, 1] + (ratios.gm - 1) * reference[:, 2])
        scale = intensity_scale(brain + ratios.sigma * rng.standard_normal(len(brain), dtype=np.float32))
        return {
            "intensity": slab[0][None],
            "tissue": np.stack(slab[1:3]),
            "brain": np.ascontiguousarray(slab[3][None, ..., self.margin : self.margin + self.patch]),
            "matrix": matrix,
            "ratios": np.array([ratios.wm, ratios.gm, ratios.sigma], np.float32),
            "scale": np.array(scale, np.float32),
            "bias": bias.astype(np.float32),
        }

    def _slab(
        self, library: PatchLibrary, corner: np.ndarray, axis: int, zooms: np.ndarray
    ) -> list[np.ndarray]:
        """Cut intensity, WM, GM and brain (P, P, P + 2 margin) about a corner, slices last, as they are
        stored; or resample them to voxels `zooms` times as large, about the same centre.
        """
        low = corner.copy()
        size = np.full(3, self.patch)
        low[axis] -= self.margin
        size[axis] += 2 * self.margin
        volumes = (library.intensity, library.wm, library.gm, library.brain)
        if (zooms == 1).all():
            return [np.moveaxis(cut(volume, low, size), axis, 2) for volume in volumes]
        zooms = np.insert(zooms[:2], axis, zooms[2])
        wide = np.ceil(size * zooms).astype(int) + 6
        room = np.array(library.intensity.shape) - wide
        begin = low + (size - wide) // 2
        begin = np.where(room >= 0, np.clip(begin, 0, room), room // 2)
        matrices = [
            resampling_matrix(int(n), int(m), float(z)) for n, m, z in zip(wide, size, zooms, strict=True)
        ]
        return [np.moveaxis(_resample(cut(v, begin, wide), matrices), axis, 2) for v in volumes]


def _draw_zooms(degradation: Degradation, rng: np.random.Generator) -> np.ndarray:
    """Voxel size over the library's: in the plane (twice), along the slice axis."""
    zoom, jitter = np.log(degradation.zoom), np.log1p(degradation.spacing_jitter)
    drawn, plane, slices = rng.random(), rng.uniform(*zoom), rng.uniform(-jitter, jitter)
    # In steps, so that the matrices are few enough to be kept.
    return np.ones(3) if drawn < 0.5 else np.round(np.exp([plane, plane, plane + slices]) * 50) / 50


@lru_cache(maxsize=4096)
def resampling_matrix(n_in: int, n_out: int, zoom: float) -> np.ndarray:
    """Linear map of `n_in` samples to `n_out` samples `zoom` times as far apart, about the same centre.

    Lanczos' kernel of two lobes, as wide as the coarser of the two grids: what the new grid cannot hold is
    filtered out.

    Returns
    -------
    ndarray, shape (n_out, n_in), float32
        Rows sum to 1. Read-only, since it is shared.
    """
    at = (n_in - 1) / 2 + (np.arange(n_out) - (n_out - 1) / 2) * zoom
    x = (np.arange(n_in) - at[:, None]) / max(zoom, 1.0)
    weights = np.where(np.abs(x) < 2, np.sinc(x) * np.sinc(x / 2), 0)
    weights = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    weights.setflags(write=False)
    return weights


def _resample(part: np.ndarray, matrices: Sequence[np.ndarray]) -> np.ndarray:
    """Apply one matrix along each axis, and keep the type and its range."""
    out = part.astype(np.float32)
    for matrix in matrices:  # each turn moves the first axis to the end
        out = np.tensordot(out, matrix, axes=(0, 1))
    if part.dtype == np.uint8:
        return np.clip(np.rint(out), 0, 255).astype(np.uint8)
    return np.maximum(out, 0).astype(part.dtype)


def place_patch(library: PatchLibrary, rng: np.random.Generator, patch: int) -> np.ndarray:
    """Choose a patch of the index, moved by up to a quarter of 32 voxels; return its corner in the stored
    volume, shape (3,).

    A patch of another edge lies about the same centre, and is moved inside the volume if it fits there.
    """
    corner = library.corners[rng.integers(len(library.corners))] + rng.integers(-PATCH // 4, PATCH // 4, 3)
    if patch != PATCH:
        corner += (PATCH - patch) // 2
        room = np.array(library.intensity.shape) - patch
        corner = np.where(room >= 0, np.clip(corner, 0, room), room // 2)
    return corner


def cut(volume: np.ndarray, low: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Cut a box of this size from a volume; zeros beyond the volume. A view where it lies within."""
    inside, target = [], []
    for begin, length, n in zip(low, size, volume.shape, strict=True):
        first, last = max(begin, 0), max(min(begin + length, n), 0)
        inside.append(slice(first, last))
        target.append(slice(first - begin, max(last, first) - begin))
    part = np.asarray(volume)[tuple(inside)]
    if part.shape == tuple(size):
        return part
    out = np.zeros(size, volume.dtype)
    out[tuple(target)] = part
    return out


def require_sources(sources: Sequence[Any]) -> list[Any]:
    """Return the sources of patches as a list; InputError when there are none."""
    if not sources:
        raise InputError(
            "patch libraries",
            found="none",
            expected="at least one subject",
            next_step="Run the participant level first.",
        )
    return list(sources)


def require_patch(patch: int, k: int) -> int:
    """Return the edge of the patches; InputError when slices do not fill it."""
    if patch < 1 or patch % k:
        raise InputError(
            "patch size",
            found=f"{patch} voxels",
            expected=f"a multiple of k = {k}",
            next_step="Choose another size; 48 suits all factors.",
        )
    return patch


def simulate_batch(
    batch: dict[str, Any], *, distribution: str = "gaussian"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn a sampled batch into network input and target (Algorithm 1, on the batch's device).

    Parameters
    ----------
    batch
        From `DrawSampler.batch`, on any device; or with ``low`` and ``high``, pairs that need no more.
    distribution
        Of the noise, see `iqtflow.simulation.forward_model.add_noise`.

    Returns
    -------
    low : tensor, shape (b, 1, P, P, P / k), float32
    high : tensor, shape (b, 1, P, P, P), float32
        Both over the draw's intensity scale.
    """
    with torch.autocast(batch["scale"].device.type, enabled=False):  # half precision is for the network
        return _simulate(batch, distribution)


def _simulate(batch: dict[str, Any], distribution: str) -> tuple[torch.Tensor, torch.Tensor]:
    scale = batch["scale"].reshape(-1, 1, 1, 1, 1)
    if "low" in batch:
        return batch["low"].float() / scale, batch["high"].float() / scale
    intensity, matrix = batch["intensity"].float(), batch["matrix"]
    patch = intensity.shape[-2]
    margin = (intensity.shape[-1] - patch) // 2
    intensity *= _bias_field(batch["bias"], intensity.shape[2:])[:, None]
    slab = torch.cat([intensity, batch["tissue"].float() / 255], dim=1)
    thick = decimate(slab, matrix)
    wm, gm, sigma = (batch["ratios"][:, i].reshape(-1, 1, 1, 1) for i in range(3))
    clean = recontrast(thick[:, 0], thick[:, 1], thick[:, 2], wm, gm)
    generator = torch.Generator(device=intensity.device).manual_seed(batch["noise_seed"])
    rank, world = batch["rank"], batch["world"]
    if world > 1:  # the noise is that of the whole batch, whoever makes which part of it
        clean, sigma = (_spread(values, rank, world) for values in (clean, sigma))
    noisy = add_noise(clean, sigma, generator, distribution=distribution)[rank::world]
    high = intensity[..., margin : margin + patch]
    return noisy[:, None] / scale, high / scale


def _spread(values: torch.Tensor, rank: int, world: int) -> torch.Tensor:
    """Put one process's rows where they are in the whole batch."""
    whole = values.new_zeros((world * values.shape[0], *values.shape[1:]))
    whole[rank::world] = values
    return whole


def _bias_field(slopes: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Exponential of a linear ramp (b, w, h, D): over one patch a coil's shading is as good as linear (Sled
    et al. 1998).
    """
    field = torch.zeros((slopes.shape[0], *shape), device=slopes.device)
    for axis, n in enumerate(shape):
        ramp = torch.linspace(-1, 1, n, device=slopes.device).reshape(
            [-1 if a == axis else 1 for a in range(3)]
        )
        field = field + slopes[:, axis].reshape(-1, 1, 1, 1) * ramp
    return torch.exp(field)
