"""Random imperfections that the paper's simulator does not have; all are off by default.

The paper's slices have one profile and no bias field; slices of a real scanner differ. Each imperfection is
one parameter:

=====================  =====================================================================================
``fwhm_jitter``        The slice profile is wider or narrower than the stated thickness. Billot et al. [1]_
                       multiply the blurring kernel by a random factor for the same reason.
``slice_offset_mm``    The stack of slices is shifted by less than a slice, since slices of two scans do not
                       match. Iglesias et al. [2]_ place slices at random, too.
``inplane_fwhm_mm``    Gaussian blur in the plane: the acquired matrix is smaller than the reconstructed
                       one [2]_.
``bias_amplitude``     Bias field of the coils: smooth, multiplicative, log-normal as in Sled et al. [3]_, low
                       spatial frequencies as in Van Leemput et al. [4]_.
=====================  =====================================================================================

References
----------
.. [1] B. Billot et al., "SynthSeg: Segmentation of brain MRI scans of any contrast and resolution without
   retraining", Medical Image Analysis 86:102789, 2023, doi:10.1016/j.media.2023.102789
.. [2] J. E. Iglesias et al., "Joint super-resolution and synthesis of 1 mm isotropic MP-RAGE volumes from
   clinical MRI exams with scans of different orientation, resolution and contrast", NeuroImage 237:118206,
   2021, doi:10.1016/j.neuroimage.2021.118206
.. [3] J. G. Sled, A. P. Zijdenbos, A. C. Evans, "A nonparametric method for automatic correction of
   intensity nonuniformity in MRI data", IEEE TMI 17(1):87-97, 1998, doi:10.1109/42.668698
.. [4] K. Van Leemput et al., "Automated model-based bias field correction of MR images of the brain", IEEE
   TMI 18(10):885-896, 1999, doi:10.1109/42.811268
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from scipy import ndimage

from iqtflow.config import IMPERFECTIONS
from iqtflow.simulation.slice_profile import FWHM_TO_SIGMA
from iqtflow.utils.errors import InputError

#: The bias field is a sum of cosines of 0 to this many half periods along each axis.
BIAS_ORDER = 2


@dataclass(frozen=True)
class Extras:
    """Largest imperfections; all zeros is the paper's simulator.

    Attributes
    ----------
    fwhm_jitter
        The profile's width is multiplied by a factor between ``1 / (1 + j)`` and ``1 + j``, uniform in its
        logarithm.
    slice_offset_mm
        Largest shift of the slices to either side, uniform; at most half a spacing. The affine is shifted,
        too.
    inplane_fwhm_mm
        Largest width of the in-plane blur, uniform from the least. The voxel grid does not change.
    inplane_fwhm_least_mm
        Smallest width of the in-plane blur.
    bias_amplitude
        Largest absolute logarithm of the bias field, uniform from 0.

    Raises
    ------
    InputError
        An attribute is negative, not finite, or beyond `iqtflow.config.IMPERFECTIONS`.
    """

    fwhm_jitter: float = 0.0
    slice_offset_mm: float = 0.0
    inplane_fwhm_mm: float = 0.0
    bias_amplitude: float = 0.0
    inplane_fwhm_least_mm: float = 0.0

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            most = IMPERFECTIONS[item.name]
            if not 0 <= value <= most:
                raise InputError(
                    item.name.replace("_", " "),
                    found=f"{value:g}",
                    expected=f"a number from 0 (off) to {most:g}; with more, no head is visible",
                    next_step="Correct the value.",
                )


def draw_bias(rng: np.random.Generator, largest: float) -> tuple[float, ...]:
    """Draw a bias field: the coefficients of its logarithm, for `bias_field`.

    Parameters
    ----------
    rng
        Random generator.
    largest
        Largest log-amplitude; the drawn one is uniform in (0, largest).

    Returns
    -------
    tuple of ``(BIAS_ORDER + 1)**3`` floats
        Empty if `largest` is 0.
    """
    if not largest:
        return ()
    n = BIAS_ORDER + 1
    # High frequencies are weaker, since fields of coils are smooth.
    falloff = 1.0 / (1 + np.add.outer(np.add.outer(np.arange(n), np.arange(n)), np.arange(n)))
    coefficients = rng.uniform(-1, 1, (n, n, n)) * falloff
    coefficients[0, 0, 0] = 0  # the mean is no part of the bias field
    peak = np.abs(_evaluate(coefficients, (33, 33, 33))).max()
    return tuple((coefficients * rng.uniform(0, largest) / peak).ravel().tolist())


def bias_field(
    coefficients: Sequence[float], shape: tuple[int, int, int], order: Sequence[int] = (0, 1, 2)
) -> np.ndarray:
    """Return the bias field of a volume.

    Parameters
    ----------
    coefficients
        From `draw_bias`.
    shape
        Shape of the volume, its axes permuted by `order`.
    order
        For each axis of the volume, its number among the axes of the coefficients.

    Returns
    -------
    ndarray, `shape`, float32
        Positive; its logarithm has mean 0 over the volume.
    """
    n = BIAS_ORDER + 1
    cube = np.transpose(np.asarray(coefficients, float).reshape(n, n, n), order)
    return np.exp(_evaluate(cube, shape))


def blur_in_plane(volume: np.ndarray, fwhm_mm: float, inplane_mm: tuple[float, float]) -> np.ndarray:
    """Blur a slices-last volume in the plane by a Gaussian; edge values continue outside the border.

    Parameters
    ----------
    volume : ndarray, shape (w, h, d), float32
        Thick-slice volume.
    fwhm_mm
        Full width at half maximum; 0: no blur.
    inplane_mm
        Voxel size along the first two axes.

    Returns
    -------
    ndarray, shape (w, h, d), float32
    """
    if not fwhm_mm:
        return volume
    for axis, edge in enumerate(inplane_mm):
        sigma = fwhm_mm * FWHM_TO_SIGMA / edge
        volume = ndimage.gaussian_filter1d(volume, sigma, axis=axis, mode="nearest", output=np.float32)
    return volume


def _evaluate(coefficients: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Sum of cosines, one axis at a time."""
    out = coefficients.astype(np.float32)
    for size in shape:
        basis = np.cos(np.pi * np.outer(np.arange(BIAS_ORDER + 1), (np.arange(size) + 0.5) / size))
        # Each product moves the first axis to the end; after three products the axes are in order.
        out = np.tensordot(out, basis.astype(np.float32), axes=(0, 0))
    return out
