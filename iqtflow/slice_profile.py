"""The slice profile: which thin slices a thick one is made of (Algorithm 1 of Lin et al., MLMI 2019, steps 1 and 2)."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from iqtflow.errors import InputError

FWHM_TO_SIGMA = 1 / np.sqrt(8 * np.log(2))


@lru_cache(maxsize=256)
def decimation_matrix(n_thin: int, k: int, thickness_voxels: float, offset_voxels: float = 0.0) -> np.ndarray:
    """Slice profile and down-sampling along the slice axis, as a matrix (Algorithm 1, steps 1 and 2).

    Thick slice ``i`` is a Gaussian-weighted mean of thin slices about the slab's centre ``k i + (k - 1) / 2``, FWHM = slice thickness.
    Weights outside the field of view are left out and the others scaled up, so that each row sums to 1: constants and tissue probabilities
    keep their sums at the borders.

    Parameters
    ----------
    n_thin
        Number of thin slices; ``n_thin // k`` thick ones result, the remainder at the end is not covered.
    k
        Slice spacing in thin voxels.
    thickness_voxels
        Slice thickness in thin voxels (FWHM of the profile).
    offset_voxels
        Shift of all slice centres, in thin voxels; 0 is slab-centred.

    Returns
    -------
    ndarray, shape (n_thin // k, n_thin), float32
        Read-only, since it is shared.

    Raises
    ------
    InputError
        The volume is thinner than one slice, or the thickness is not within (0, k].
    """
    if n_thin < k:
        raise InputError("volume", found=f"{n_thin} thin slices", expected=f"at least k = {k}", next_step="Use a smaller factor or a larger volume.")
    if not 0 < thickness_voxels <= k * (1 + 1e-6):
        raise InputError("slice thickness", found=f"{thickness_voxels:g} thin voxels", expected=f"more than 0 and at most the spacing ({k})",
                         next_step="Make thickness + gap equal to the slice spacing.")
    centres = k * np.arange(n_thin // k) + (k - 1) / 2 + offset_voxels
    distance = np.arange(n_thin) - centres[:, None]
    weights = np.exp(-0.5 * (distance / (thickness_voxels * FWHM_TO_SIGMA)) ** 2)
    weights /= weights.sum(axis=1, keepdims=True)
    weights = weights.astype(np.float32)
    weights.setflags(write=False)
    return weights
