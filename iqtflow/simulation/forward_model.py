"""Probabilistic decimation simulator (Algorithm 1 of Lin et al., MLMI 2019) in torch.

The same functions are used for one volume on a CPU and for a batch of patches on a GPU. Arrays have the
slices last. Slice profile and down-sampling do not depend on the draw: they are one matrix product for each
subject. Contrast and noise do, and cost little.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from iqtflow.utils.errors import InputError


@dataclass(frozen=True)
class Ratios:
    """Intensity ratios of WM and GM, and standard deviation of the noise, for one drawn pair of SNR."""

    wm: float
    gm: float
    sigma: float


def decimate(volumes: torch.Tensor, matrix: np.ndarray | torch.Tensor) -> torch.Tensor:
    """Blur and down-sample along the last axis.

    Parameters
    ----------
    volumes : tensor, shape (..., D)
        Intensities or tissue probabilities on the thin grid.
    matrix : shape (d, D), or (batch, d, D) for volumes of shape (batch, c, w, h, D)
        From `iqtflow.simulation.slice_profile.decimation_matrix`.

    Returns
    -------
    tensor, shape (..., d)
    """
    matrix = torch.as_tensor(
        np.array(matrix) if isinstance(matrix, np.ndarray) else matrix,
        dtype=volumes.dtype,
        device=volumes.device,
    )
    if matrix.ndim == 3:
        matrix = matrix[:, None, None]
    return volumes @ matrix.transpose(-1, -2)


def contrast_ratios(
    alpha: tuple[float, float], mean_wm: float, mean_gm: float, *, fixed: str = "WM"
) -> Ratios:
    """Intensity ratios and noise level that give tissues the drawn SNR (Algorithm 1, step 5).

    The mean of tissue j must be ``SNR_j sigma``. One scale is free: one tissue keeps its intensity.

    Parameters
    ----------
    alpha
        Drawn (SNR_WM, SNR_GM).
    mean_wm, mean_gm
        Tissue means of the high-field image (`iqtflow.simulation.snr_prior.tissue_mean`).
    fixed
        Tissue that keeps its intensity, "WM" (default) or "GM".

    Returns
    -------
    Ratios

    Raises
    ------
    InputError
        `fixed` is another tissue.
    """
    snr_wm, snr_gm = alpha
    if fixed == "WM":
        return Ratios(1.0, snr_gm / snr_wm * mean_wm / mean_gm, mean_wm / snr_wm)
    if fixed == "GM":
        return Ratios(snr_wm / snr_gm * mean_gm / mean_wm, 1.0, mean_gm / snr_gm)
    raise InputError(
        "tissue held fixed", found=repr(fixed), expected='"WM" or "GM"', next_step="Choose one of the two."
    )


def recontrast(
    intensity: torch.Tensor,
    wm: torch.Tensor,
    gm: torch.Tensor,
    ratio_wm: torch.Tensor | float,
    ratio_gm: torch.Tensor | float,
) -> torch.Tensor:
    """Change the contrast: ``(r_WM M_WM + r_GM M_GM + M_other) Y`` (Algorithm 1, step 6); tensors of one
    shape.
    """
    return intensity * (1 + (ratio_wm - 1) * wm + (ratio_gm - 1) * gm)


def add_noise(
    clean: torch.Tensor,
    sigma: torch.Tensor | float,
    generator: torch.Generator,
    *,
    distribution: str = "gaussian",
) -> torch.Tensor:
    """Add background noise, independent for each voxel (Algorithm 1, step 7).

    Parameters
    ----------
    clean : tensor
        Noise-free image.
    sigma
        Standard deviation, in the image's units (a number, or a tensor that broadcasts).
    generator
        Random generator on the tensor's device.
    distribution
        "gaussian" (the paper's), or "rician": the magnitude of a complex signal with this noise in both
        channels (Gudbjartsson and Patz 1995, doi:10.1002/mrm.1910340618).
    """
    like = {"generator": generator, "device": clean.device, "dtype": clean.dtype}
    real = clean + sigma * torch.randn(clean.shape, **like)
    if distribution == "gaussian":
        return real
    if distribution == "rician":
        return torch.sqrt(real**2 + (sigma * torch.randn(clean.shape, **like)) ** 2)
    raise InputError(
        "noise distribution",
        found=repr(distribution),
        expected='"gaussian" or "rician"',
        next_step="Choose one of the two.",
    )
