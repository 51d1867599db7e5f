"""Batches of training pairs with fresh draws of the simulator: N = infinity in the terms of the paper's Table
2.

A batch is made in two halves. `DrawSampler.batch` (CPU, NumPy) chooses subject, slice axis, patch and the
random parameters; it is a function of the seed and the batch's number alone, so that a resumed training sees
the batches that it would have seen. `simulate_batch` (torch, on the training device) does the arithmetic of
Algorithm 1 on the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from iqtflow.decimation import add_noise, contrast_ratios, decimate, recontrast
from iqtflow.errors import InputError
from iqtflow.normalisation import intensity_scale
from iqtflow.patches import PATCH, PatchLibrary
from iqtflow.slice_profile import decimation_matrix
from iqtflow.snr import PUBLISHED, SNRPrior


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
    """

    prior: SNRPrior = field(default_factory=lambda: PUBLISHED["ibadan-0.36T"])
    thickness_fraction: tuple[float, float] = (0.75, 0.75)
    snr_scale: tuple[float, float] = (1.0, 1.0)
    bias_amplitude: float = 0.0
    mirror: bool = False


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
    """

    def __init__(
        self,
        libraries: Sequence[PatchLibrary],
        *,
        k: int,
        batch_size: int,
        degradation: Degradation,
        seed: int,
    ) -> None:
        if not libraries:
            raise InputError(
                "patch libraries",
                found="none",
                expected="at least one subject",
                next_step="Run the participant level first.",
            )
        self.libraries, self.k, self.batch_size, self.degradation, self.seed = (
            list(libraries),
            k,
            batch_size,
            degradation,
            seed,
        )
        self.margin = k * int(np.ceil(8 / k))  # 3 sigma of the thickest profile, in whole slices

    def batch(self, number: int) -> dict[str, torch.Tensor]:
        """Return batch `number`: slabs (b, 3, 32, 32, 32 + 2 margin) of intensity, WM and GM, and one row of
        parameters for each patch.
        """
        rng = np.random.default_rng([self.seed, number])
        items = [self._item(rng) for _ in range(self.batch_size)]
        out = {name: torch.from_numpy(np.stack([item[name] for item in items])) for name in items[0]}
        out["noise_seed"] = torch.tensor(int(rng.integers(2**62)))
        return out

    def _item(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        library = self.libraries[rng.integers(len(self.libraries))]
        axes = sorted(library.references)
        axis = axes[rng.integers(len(axes))]
        corner = library.corners[rng.integers(len(library.corners))] + rng.integers(
            -PATCH // 4, PATCH // 4, 3
        )
        slab = self._slab(library, corner, axis)
        d = self.degradation
        if d.mirror:
            slab = slab.swapaxes(1, 2) if rng.random() < 0.5 else slab
            for a in (1, 2, 3):
                slab = np.flip(slab, a) if rng.random() < 0.5 else slab
        alpha = d.prior.sample(rng)
        loudness = rng.uniform(*d.snr_scale)
        ratios = contrast_ratios((alpha[0] * loudness, alpha[1] * loudness), library.mean_wm, library.mean_gm)
        thickness = rng.uniform(*d.thickness_fraction) * self.k
        matrix = decimation_matrix(slab.shape[3], self.k, round(thickness, 2))
        first = self.margin // self.k
        bias = rng.uniform(-1, 1, 3) * rng.uniform(0, d.bias_amplitude) if d.bias_amplitude else np.zeros(3)
        reference = library.references[axis]
        brain = reference[:, 0] * (1 + (ratios.wm - 1) * reference[:, 1] + (ratios.gm - 1) * reference[:, 2])
        scale = intensity_scale(brain + ratios.sigma * rng.standard_normal(len(brain), dtype=np.float32))
        return {
            "slab": np.ascontiguousarray(slab),
            "matrix": np.array(matrix[first : first + PATCH // self.k]),
            "ratios": np.array([ratios.wm, ratios.gm, ratios.sigma], np.float32),
            "scale": np.array(scale, np.float32),
            "bias": bias.astype(np.float32),
        }

    def _slab(self, library: PatchLibrary, corner: np.ndarray, axis: int) -> np.ndarray:
        """Cut (3, 32, 32, 32 + 2 margin) about a corner, slices last; zeros beyond the stored volume."""
        low = corner.copy()
        size = np.full(3, PATCH)
        low[axis] -= self.margin
        size[axis] += 2 * self.margin
        inside, target = [], []
        for a, n in enumerate(library.intensity.shape):
            begin, end = max(low[a], 0), min(low[a] + size[a], n)
            inside.append(slice(begin, end))
            target.append(slice(begin - low[a], end - low[a]))
        out = np.zeros((3, *size), np.float32)
        for channel, (volume, unit) in enumerate(
            ((library.intensity, 1), (library.wm, 255), (library.gm, 255))
        ):
            out[(channel, *target)] = volume[tuple(inside)].astype(np.float32) / unit
        return np.moveaxis(out, axis + 1, 3)


def simulate_batch(
    batch: dict[str, torch.Tensor], *, distribution: str = "gaussian"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn a sampled batch into network input and target (Algorithm 1, on the batch's device).

    Parameters
    ----------
    batch
        From `DrawSampler.batch`, on any device.
    distribution
        Of the noise, see `iqtflow.decimation.add_noise`.

    Returns
    -------
    low : tensor, shape (b, 1, 32, 32, 32 / k)
    high : tensor, shape (b, 1, 32, 32, 32)
        Both over the draw's intensity scale.
    """
    slab, matrix = batch["slab"], batch["matrix"]
    margin = (slab.shape[-1] - PATCH) // 2
    slab = torch.cat([slab[:, :1] * _bias_field(batch["bias"], slab.shape[2:])[:, None], slab[:, 1:]], dim=1)
    thick = decimate(slab, matrix)
    wm, gm, sigma = (batch["ratios"][:, i].reshape(-1, 1, 1, 1) for i in range(3))
    clean = recontrast(thick[:, 0], thick[:, 1], thick[:, 2], wm, gm)
    generator = torch.Generator(device=slab.device).manual_seed(int(batch["noise_seed"]))
    noisy = add_noise(clean, sigma, generator, distribution=distribution)
    scale = batch["scale"].reshape(-1, 1, 1, 1)
    high = slab[:, 0, :, :, margin : margin + PATCH]
    return (noisy / scale)[:, None], (high / scale)[:, None]


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
