"""Batches of training pairs from stored draws: N realisations of each subject, as in the paper's Table 2.

`StoredSampler` cuts pairs out of the memory-mapped volumes of patch libraries; `iqtflow.training.pairs`
reads them
from the paper's explicit library. Like `iqtflow.training.samplers.DrawSampler`, both make a batch from the
seed and its number alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from iqtflow.simulation.snr_prior import SNRPrior
from iqtflow.training.library import PATCH, PatchLibrary, StoredDraw
from iqtflow.training.samplers import cut, place_patch, require_patch, require_sources
from iqtflow.utils.errors import InputError


class StoredSampler:
    """Chooses pairs of patches from the first N stored draws.

    Parameters
    ----------
    libraries
        Patch libraries with stored draws; each subject, draw and patch of a subject's index is equally
        likely.
    k
        Up-scaling factor, which has to be that of the draws.
    n_draws
        N: how many of each subject's draws are used, from the first.
    batch_size
        Pairs in a batch.
    seed
        Together with a batch's number it decides everything in the batch.
    patch
        Edge of the high-field patch in voxels.
    mirror
        Mirror pairs along random axes and swap the two in-plane axes.
    prior
        Distribution that the draws have to come from; None takes any.

    Raises
    ------
    InputError
        A library has too few draws, or others than these.
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
        for library in require_sources(libraries):
            check_draws(library, k=k, n_draws=n_draws, prior=prior)
        self.sources, self.k, self.n_draws = list(libraries), k, n_draws
        self.batch_size, self.seed = batch_size, seed
        self.patch, self.mirror = require_patch(patch, k), mirror

    def batch(self, number: int, *, rank: int = 0, world: int = 1) -> dict[str, torch.Tensor]:
        """Return batch `number`, or of its pairs those that process `rank` of `world` takes.

        Returns
        -------
        dict
            ``low`` (b, 1, P, P, P / k) and ``high`` (b, 1, P, P, P), float16 as they are stored, and
            ``scale`` (b), the draws' intensity scales.
        """
        pairs, scales = [], []
        for i in range(rank, self.batch_size, world):
            rng = np.random.default_rng([self.seed, number, i])
            library = self.sources[rng.integers(len(self.sources))]
            draw = library.draws[int(rng.random() * self.n_draws)]  # the places are the same for any N
            pair = cut_pair(library, draw, place_patch(library, rng, self.patch), self.patch)
            scales.append(draw.scale)
            pairs.append(mirror_pair(pair, rng) if self.mirror else pair)
        low, high = (np.stack(side)[:, None] for side in zip(*pairs, strict=True))
        scale = torch.tensor(scales, dtype=torch.float32)
        return {"low": torch.from_numpy(low), "high": torch.from_numpy(high), "scale": scale}


def check_draws(library: PatchLibrary, *, k: int, n_draws: int, prior: SNRPrior | None = None) -> None:
    """Make sure that a library holds the draws that are asked for.

    Raises
    ------
    InputError
        It has too few, or they are of another factor or another prior.
    """
    again = "Run the participant level again with these settings."
    if len(library.draws) < n_draws or library.origin is None:
        raise InputError(
            library.path,
            found=f"{len(library.draws)} stored draw(s)",
            expected=f"at least {n_draws}",
            next_step=f"Run the participant level with --draws {n_draws}, or train with fewer draws.",
        )
    if library.k != k:
        raise InputError(
            library.path, found=f"draws of k = {library.k}", expected=f"k = {k}", next_step=again
        )
    wanted = None if prior is None else [list(prior.mean), [list(row) for row in prior.covariance]]
    for draw in library.draws[:n_draws]:
        made = draw.record.get("SNRPrior") or {}
        if wanted is not None and made and [made["mean"], made["covariance"]] != wanted:
            raise InputError(
                library.path,
                found=f"draws from the SNR prior {made.get('name')} {made['mean']}, {made['covariance']}",
                expected=f"{prior.name} {wanted[0]}, {wanted[1]}",
                next_step=again,
            )


def align(library: PatchLibrary, draw: StoredDraw, corner: np.ndarray, patch: int) -> np.ndarray:
    """Move a corner (in the stored volume) to the nearest slab border below, and inside what was scanned;
    return it on the image's grid.
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
    """Cut a low-field patch (P, P, P / k) and the high-field one of the same place (P, P, P), slices last, as
    they are stored.
    """
    place = align(library, draw, corner, patch)
    size = np.full(3, patch)
    high = cut(library.intensity, place - np.array(library.origin), size)
    place[draw.axis] //= library.k
    size[draw.axis] //= library.k
    low = cut(draw.volume, place, size)
    return np.moveaxis(low, draw.axis, 2), np.moveaxis(high, draw.axis, 2)


def mirror_pair(
    pair: tuple[np.ndarray, np.ndarray], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Swap the in-plane axes of both patches of a pair, and mirror them along each axis, each with
    probability 1/2.
    """
    swap, *flips = rng.random(4) < 0.5
    axes = tuple(a for a in range(3) if flips[a])
    low, high = (np.ascontiguousarray(np.flip(side.swapaxes(0, 1) if swap else side, axes)) for side in pair)
    return low, high
