"""Batches of training pairs: simulated anew for every batch, or cut from stored simulated scans.

`DrawSampler` simulates each batch anew (N = infinity in Table 2 of Lin et al. 2019). It works in two halves.
`DrawSampler.batch` (CPU, NumPy) draws subject, slice axis, patch and random parameters, and cuts the patches;
on a GPU, `iqtflow.training.device_cuts` cuts them. `simulate_batch` (torch, on the training device) does the
arithmetic of Algorithm 1. `StoredSampler` cuts pairs from N stored simulated scans of each subject.

Every batch depends on the seed and its number only. A resumed training therefore sees the same batches as an
uninterrupted one, and several processes can share one batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from iqtflow.config import TrainSettings, check_fresh
from iqtflow.image.geometry import sample_spline
from iqtflow.image.intensity import intensity_scale
from iqtflow.simulation.forward_model import add_noise, contrast_ratios, decimate, recontrast
from iqtflow.simulation.slice_profile import FWHM_TO_SIGMA, decimation_matrix
from iqtflow.simulation.snr_prior import PUBLISHED, SNRPrior
from iqtflow.training.library import PATCH, PatchLibrary, StoredDraw
from iqtflow.utils.errors import InputError


@dataclass(frozen=True)
class Degradation:
    """Range of the simulator's random parameters, as `iqtflow.config.TrainSettings` describes them.

    Attributes
    ----------
    prior
        Distribution of the tissues' SNR.

    Raises
    ------
    UsageError
        A range has its higher number first, or a number is outside the limits of the simulator.
    """

    prior: SNRPrior = field(default_factory=lambda: PUBLISHED[TrainSettings.snr_prior])
    thickness_fraction: tuple[float, float] = TrainSettings.thickness_fraction
    snr_scale: tuple[float, float] = TrainSettings.snr_scale
    bias_amplitude: float = TrainSettings.bias_amplitude
    mirror: bool = TrainSettings.mirror
    zoom: tuple[float, float] = TrainSettings.zoom
    spacing_jitter: float = TrainSettings.spacing_jitter
    contrast_jitter: float = TrainSettings.contrast_jitter
    stripes: float = TrainSettings.stripes
    coarse_plane: tuple[float, float] = TrainSettings.coarse_plane
    plane_blur: tuple[float, float] = TrainSettings.plane_blur
    noise: str = TrainSettings.noise

    @property
    def changes_plane(self) -> bool:
        """Whether coarse planes or a blur in the plane are on."""
        return self.coarse_plane != (1.0, 1.0) or self.plane_blur != (0.0, 0.0)

    @property
    def widens(self) -> bool:
        """Whether zoom, spacing jitter, contrast jitter, stripes, coarse planes or blur are on."""
        return (
            self.zoom != (1.0, 1.0)
            or self.changes_plane
            or any((self.spacing_jitter, self.contrast_jitter, self.stripes))
        )

    def __post_init__(self) -> None:
        check_fresh(self)


class DrawSampler:
    """Draws the content of each batch; every batch is simulated anew.

    Parameters
    ----------
    libraries
        Patch libraries. Each subject is equally likely.
    k
        Upsampling factor.
    batch_size
        Patches in a batch.
    degradation
        Range of the simulator's parameters.
    seed
        Seed and number of a batch together decide all of it.
    patch
        Edge of the high-field patch in voxels, a multiple of k; 32 in the paper. A larger patch has the same
        centre, and is moved inside the stored volume where it fits.
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
        """Return batch `number`, or the part of it for process `rank` of `world`.

        Returns
        -------
        dict
            ``intensity`` (b, 1, P, P, P + 2 margin), float16; ``tissue`` (b, 2, P, P, P + 2 margin), WM and
            GM, uint8; ``brain`` (b, 1, P, P, P), uint8, 255 inside; one row of parameters for each patch
            (``matrix``, ``ratios``, ``scale``, ``bias``; with coarse planes ``shrink`` and ``enlarge`` of
            `plane_matrices`); and the seed of the noise of the whole batch.
        """
        part = range(rank, self.batch_size, world)
        items = [self._item(np.random.default_rng([self.seed, number, i])) for i in part]
        stacked = {name: np.stack([item[name] for item in items]) for name in items[0]}
        out: dict[str, Any] = {name: torch.from_numpy(values) for name, values in stacked.items()}
        noise = np.random.default_rng([self.seed, number, self.batch_size])
        out.update(noise_seed=int(noise.integers(2**62)), rank=rank, world=world)
        return out

    def _item(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        library = self.sources[rng.integers(len(self.sources))]
        axes = sorted(library.references)
        axis = axes[rng.integers(len(axes))]
        corner = place_patch(library, rng, self.patch)
        d = self.degradation
        # A second generator: switching a wide setting on leaves the other draws as they are.
        extra = np.random.default_rng(rng.integers(2**62)) if d.widens else None
        zooms = np.ones(3) if extra is None else _draw_zooms(d, extra)
        voxels = self._voxels(library, corner, axis, zooms, draw_turn(rng) if d.mirror else None)
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
        plane = {}
        if extra is not None and d.changes_plane:
            coarse = d.coarse_plane != (1.0, 1.0) and extra.random() < 1 / 3
            edge = extra.uniform(*d.coarse_plane) if coarse else 1.0
            blur = extra.uniform(*d.plane_blur) if any(d.plane_blur) else 0.0
            matrices = plane_matrices(self.patch, round(edge, 1), round(blur, 1))
            plane = dict(zip(("shrink", "enlarge"), matrices, strict=True))
        reference = library.references[axis]
        brain = reference[:, 0] * (1 + (ratios.wm - 1) * reference[:, 1] + (ratios.gm - 1) * reference[:, 2])
        scale = intensity_scale(brain + ratios.sigma * rng.standard_normal(len(brain), dtype=np.float32))
        return {
            **voxels,
            **plane,
            "matrix": matrix,
            "ratios": np.array([ratios.wm, ratios.gm, ratios.sigma], np.float32),
            "scale": np.array(scale, np.float32),
            "bias": bias.astype(np.float32),
        }

    def _voxels(
        self,
        library: PatchLibrary,
        corner: np.ndarray,
        axis: int,
        zooms: np.ndarray,
        turn: Sequence[bool] | None,
    ) -> dict[str, np.ndarray]:
        """Cut what `batch` returns of the volumes, for one patch."""
        begin, wide, matrices = self._box(library, corner, axis, zooms)
        slab = [cut(v, begin, wide) for v in (library.intensity, library.wm, library.gm, library.brain)]
        if matrices:
            slab = [_resample(part, matrices) for part in slab]
        slab = turned([np.moveaxis(part, axis, 2) for part in slab], turn)
        return {
            "intensity": slab[0][None],
            "tissue": np.stack(slab[1:3]),
            "brain": np.ascontiguousarray(slab[3][None, ..., self.margin : self.margin + self.patch]),
        }

    def _box(
        self, library: PatchLibrary, corner: np.ndarray, axis: int, zooms: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
        """Lowest corner and size of the part of a volume that a patch with margins needs, and the matrices
        that resample it about the same centre to voxels `zooms` times as large; none for the same voxels.
        """
        low = corner.copy()
        size = np.full(3, self.patch)
        low[axis] -= self.margin
        size[axis] += 2 * self.margin
        if (zooms == 1).all():
            return low, size, []
        zooms = np.insert(zooms[:2], axis, zooms[2])
        wide = np.ceil(size * zooms).astype(int) + 6
        begin = _inside(low + (size - wide) // 2, np.array(library.intensity.shape) - wide)
        matrices = [
            resampling_matrix(int(n), int(m), float(z)) for n, m, z in zip(wide, size, zooms, strict=True)
        ]
        return begin, wide, matrices


class StoredSampler:
    """Cuts pairs of patches from the first N stored simulated scans of each subject.

    Parameters
    ----------
    libraries
        Patch libraries with stored scans. Each subject, each of its scans and each of its patches is equally
        likely.
    k
        Upsampling factor; it must be that of the stored scans.
    n_draws
        N: stored scans that are used of each subject, from the first.
    batch_size, seed, patch
        As for `DrawSampler`.
    mirror
        Mirror pairs along random axes and swap the two in-plane axes.
    prior
        SNR prior that the scans must come from; None accepts any.

    Raises
    ------
    InputError
        A library has too few stored scans, or scans of another factor or prior.
    """

    def __init__(
        self,
        libraries: Sequence[PatchLibrary],
        *,
        k: int,
        n_draws: int,
        batch_size: int,
        seed: int,
        patch: int = PATCH,
        mirror: bool = False,
        prior: SNRPrior | None = None,
    ) -> None:
        self.sources = require_sources(libraries)
        for library in self.sources:
            check_draws(library, k=k, n_draws=n_draws, prior=prior)
        self.k, self.n_draws, self.batch_size, self.seed = k, n_draws, batch_size, seed
        self.patch, self.mirror = require_patch(patch, k), mirror

    def batch(self, number: int, *, rank: int = 0, world: int = 1) -> dict[str, torch.Tensor]:
        """Return batch `number`, or the part of it for process `rank` of `world`.

        Returns
        -------
        dict
            ``low`` (b, 1, P, P, P / k) and ``high`` (b, 1, P, P, P), float16 as stored, and ``scale`` (b),
            the intensity scale of each scan.
        """
        pairs, scales = [], []
        for i in range(rank, self.batch_size, world):
            rng = np.random.default_rng([self.seed, number, i])
            library = self.sources[rng.integers(len(self.sources))]
            draw = library.draws[int(rng.random() * self.n_draws)]  # the places are the same for any N
            pair = cut_pair(library, draw, place_patch(library, rng, self.patch), self.patch)
            scales.append(draw.scale)
            turn = draw_turn(rng) if self.mirror else None
            pairs.append([np.ascontiguousarray(p) for p in turned(pair, turn)])
        return as_batch(pairs, scales)


def as_batch(pairs: Iterable[Sequence[np.ndarray]], scales: Sequence[float]) -> dict[str, torch.Tensor]:
    """Return pairs (low, high) and their intensity scales as a batch for `simulate_batch`."""
    low, high = (torch.from_numpy(np.stack(side))[:, None] for side in zip(*pairs, strict=True))
    return {"low": low, "high": high, "scale": torch.tensor(scales, dtype=torch.float32)}


def check_draws(library: PatchLibrary, *, k: int, n_draws: int, prior: SNRPrior | None = None) -> None:
    """Make sure that a library holds the stored scans that a training needs.

    Raises
    ------
    InputError
        It has too few, or they are of another factor or another SNR prior.
    """
    if len(library.draws) < n_draws or library.origin is None:
        raise InputError(
            library.path,
            found=f"{len(library.draws)} stored draw(s)",
            expected=f"at least {n_draws}",
            next_step=f"Run the participant level with --draws {n_draws}, or train with fewer draws.",
        )
    if library.k != k:
        raise made_otherwise(library, f"draws of k = {library.k}", f"k = {k}")
    for draw in library.draws[:n_draws]:
        require_prior(library, draw.record.get("SNRPrior") or {}, prior)


def require_prior(source: Any, made: dict[str, Any], prior: SNRPrior | None) -> None:
    """Make sure that stored scans come from an SNR prior; older files do not state theirs."""
    if prior is None or not made:
        return
    wanted = [list(prior.mean), [list(row) for row in prior.covariance]]
    found = [made.get("mean"), made.get("covariance")]
    if found != wanted:
        words = f"draws from the SNR prior {made.get('name')} {found}"
        raise made_otherwise(source, words, f"{prior.name} {wanted}")


def made_otherwise(source: Any, found: str, expected: str) -> InputError:
    """Return the error for a library that was made with other settings."""
    again = "Run the participant level again with these settings."
    return InputError(source.path, found=found, expected=expected, next_step=again)


def _draw_zooms(degradation: Degradation, rng: np.random.Generator) -> np.ndarray:
    """Voxel size over the library's: in the plane (twice), along the slice axis."""
    zoom, jitter = np.log(degradation.zoom), np.log1p(degradation.spacing_jitter)
    drawn, plane, slices = rng.random(), rng.uniform(*zoom), rng.uniform(-jitter, jitter)
    # Rounded, so that few resampling matrices are needed and can be kept.
    return np.ones(3) if drawn < 0.5 else np.round(np.exp([plane, plane, plane + slices]) * 50) / 50


@lru_cache(maxsize=4096)
def resampling_matrix(n_in: int, n_out: int, zoom: float) -> np.ndarray:
    """Linear map of `n_in` samples to `n_out` samples that are `zoom` times as far apart, same centre.

    Lanczos kernel of two lobes, as wide as the coarser of the two grids, so that frequencies above the new
    grid's limit are filtered out.

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


@lru_cache(maxsize=256)
def plane_matrices(n: int, edge: float, blur: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Matrices from `n` voxels along an axis of the plane to coarse voxels, and back by cubic B-splines.

    A coarse voxel averages over its edge (Gaussian, FWHM in quadrature), as in
    `iqtflow.image.resampling.resample_inplane`, which brings a real scan with coarse planes to the same grid.

    Parameters
    ----------
    n
        Voxels of the patch.
    edge
        Edge of a coarse voxel, in voxels of the patch; at least 1.
    blur
        Width (FWHM) of a Gaussian blur before, in voxels of the patch.

    Returns
    -------
    shrink, enlarge : ndarray, shape (n, n), float32
        Rows of `shrink` after the last coarse voxel are 0, and so are the columns of `enlarge`. Read-only,
        since they are shared.
    """
    shrink, enlarge = np.zeros((n, n), np.float32), np.zeros((n, n), np.float32)
    if edge == 1:
        np.fill_diagonal(shrink, 1)
        np.fill_diagonal(enlarge, 1)
    else:
        coarse = round(n / edge)
        blurred = ndimage.gaussian_filter1d(
            np.eye(n), np.sqrt(edge**2 - 1) * FWHM_TO_SIGMA, 0, mode="nearest"
        )
        shrink[:coarse] = _sampled(blurred, edge, coarse)
        enlarge[:, :coarse] = _sampled(np.eye(coarse), 1 / edge, n)
    if blur:
        shrink = shrink @ ndimage.gaussian_filter1d(
            np.eye(n, dtype=np.float32), blur * FWHM_TO_SIGMA, 0, mode="nearest"
        )
    for matrix in (shrink, enlarge):
        matrix.setflags(write=False)
    return shrink, enlarge


def _sampled(lines: np.ndarray, step: float, count: int) -> np.ndarray:
    """Sample columns by cubic B-splines at `count` places `step` apart, about their centre."""
    where = (len(lines) - 1) / 2 + step * (np.arange(count) - (count - 1) / 2)
    return sample_spline(lines, 0, where)


def _resample(part: np.ndarray, matrices: Sequence[np.ndarray]) -> np.ndarray:
    """Apply one matrix along each axis; keep the data type and its range."""
    out = part.astype(np.float32)
    for matrix in matrices:  # each product moves the first axis to the end
        out = np.tensordot(out, matrix, axes=(0, 1))
    if part.dtype == np.uint8:
        return np.clip(np.rint(out), 0, 255).astype(np.uint8)
    return np.maximum(out, 0).astype(part.dtype)


def place_patch(library: PatchLibrary, rng: np.random.Generator, patch: int) -> np.ndarray:
    """Draw a patch of the index, shifted by up to 8 voxels; return its corner in the stored volume, (3,).

    A patch of another edge than 32 has the same centre, and is moved inside the volume where it fits.
    """
    corner = library.corners[rng.integers(len(library.corners))] + rng.integers(-PATCH // 4, PATCH // 4, 3)
    if patch != PATCH:
        corner += (PATCH - patch) // 2
        corner = _inside(corner, np.array(library.intensity.shape) - patch)
    return corner


def _inside(corner: np.ndarray, room: np.ndarray) -> np.ndarray:
    """Move a corner into a volume that leaves `room` along each axis; centre it where there is none."""
    return np.where(room >= 0, np.clip(corner, 0, room), room // 2)


def cut(volume: np.ndarray, low: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Cut a box of this size from a volume; zeros outside the volume. A view where the box lies inside."""
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


def align(library: PatchLibrary, draw: StoredDraw, corner: np.ndarray, patch: int) -> np.ndarray:
    """Move a corner (in the stored volume) down to the border of a slice, and inside the scan; return it on
    the image's grid, (3,).
    """
    place = corner + np.array(library.origin)
    k, axis = library.k, draw.axis
    least = -(-library.origin[axis] // k) * k
    end = min(library.origin[axis] + library.intensity.shape[axis], draw.volume.shape[axis] * k)
    most = max((end - patch) // k * k, least)
    place[axis] = np.clip(place[axis] // k * k, least, most)
    return place


def cut_pair(
    library: PatchLibrary, draw: StoredDraw, corner: np.ndarray, patch: int
) -> tuple[np.ndarray, np.ndarray]:
    """Cut a low-field patch (P, P, P / k) and the high-field patch of the same place (P, P, P), slices last,
    as stored.
    """
    place = align(library, draw, corner, patch)
    size = np.full(3, patch)
    high = cut(library.intensity, place - np.array(library.origin), size)
    place[draw.axis] //= library.k
    size[draw.axis] //= library.k
    low = cut(draw.volume, place, size)
    return np.moveaxis(low, draw.axis, 2), np.moveaxis(high, draw.axis, 2)


def draw_turn(rng: np.random.Generator) -> list[bool]:
    """Draw whether to swap the in-plane axes, and to mirror along each of the three axes: each with
    probability 1/2.
    """
    return (rng.random(4) < 0.5).tolist()


def turned(patches: Sequence[np.ndarray], turn: Sequence[bool] | None) -> list[np.ndarray]:
    """Swap and mirror patches, slices last, as `draw_turn` says, all alike; None: as they are."""
    if turn is None:
        return list(patches)
    swap, *flips = turn
    axes = [a for a in range(3) if flips[a]]
    return [np.flip(patch.swapaxes(0, 1) if swap else patch, axes) for patch in patches]


def require_sources(sources: Sequence[Any]) -> list[Any]:
    """Return the sources of patches as a list; InputError when there is none."""
    if not sources:
        raise InputError(
            "patch libraries",
            found="none",
            expected="at least one subject",
            next_step="Run the participant level first.",
        )
    return list(sources)


def require_patch(patch: int, k: int) -> int:
    """Return the edge of the patches; InputError when it is not a multiple of k."""
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
        From one of the samplers, on any device. A batch with ``low`` and ``high`` is only scaled.
    distribution
        Distribution of the noise, see `iqtflow.simulation.forward_model.add_noise`.

    Returns
    -------
    low : tensor, shape (b, 1, P, P, P / k), float32
    high : tensor, shape (b, 1, P, P, P), float32
        Both divided by the intensity scale.
    """
    with torch.autocast(batch["scale"].device.type, enabled=False):  # half precision is for the network only
        scale = batch["scale"].reshape(-1, 1, 1, 1, 1)
        if "low" in batch:
            return batch["low"].float() / scale, batch["high"].float() / scale
        intensity, matrix = batch["intensity"].float(), batch["matrix"]
        patch = intensity.shape[-2]
        margin = (intensity.shape[-1] - patch) // 2
        # Input and target get the same bias field, so that the network learns to keep it.
        intensity *= _bias_field(batch["bias"], intensity.shape[2:])[:, None]
        slab = torch.cat([intensity, batch["tissue"].float() / 255], dim=1)
        thick = decimate(slab, matrix)
        wm, gm, sigma = (batch["ratios"][:, i].reshape(-1, 1, 1, 1) for i in range(3))
        clean = recontrast(thick[:, 0], thick[:, 1], thick[:, 2], wm, gm)
        if "shrink" in batch:
            clean = _in_plane(clean, batch["shrink"])
        generator = torch.Generator(device=intensity.device).manual_seed(batch["noise_seed"])
        rank, world = batch["rank"], batch["world"]
        if world > 1:  # the noise of the whole batch, of which each process takes its part
            clean, sigma = (_spread(values, rank, world) for values in (clean, sigma))
        noisy = add_noise(clean, sigma, generator, distribution=distribution)[rank::world]
        if "enlarge" in batch:
            noisy = _in_plane(noisy, batch["enlarge"])
        high = intensity[..., margin : margin + patch]
        return noisy[:, None] / scale, high / scale


def _in_plane(thick: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    """Apply a matrix (b, P, P) along both axes of the plane of (b, P, P, d)."""
    return torch.einsum("bij,bjkd,blk->bild", matrices, thick, matrices)


def _spread(values: torch.Tensor, rank: int, world: int) -> torch.Tensor:
    """Put the rows of one process at their places in the whole batch."""
    whole = values.new_zeros((world * values.shape[0], *values.shape[1:]))
    whole[rank::world] = values
    return whole


def _bias_field(slopes: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Exponential of a linear ramp (b, w, h, D). A bias field is close to linear over one patch (Sled et al.
    1998).
    """
    field = torch.zeros((slopes.shape[0], *shape), device=slopes.device)
    for axis, n in enumerate(shape):
        along = [-1 if a == axis else 1 for a in range(3)]
        ramp = torch.linspace(-1, 1, n, device=slopes.device).reshape(along)
        field = field + slopes[:, axis].reshape(-1, 1, 1, 1) * ramp
    return torch.exp(field)
