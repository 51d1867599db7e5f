"""One positive number per scan that brings its intensities to the networks' scale.

A scan's intensities are arbitrary, and the network has to see the same numbers for the same tissue in
training and in use. The scale is the 80th percentile of the brain: white matter is the brightest tissue of a
T1w brain and fills about 40 % of it, so this is the middle of the white matter's own distribution. It needs
no segmentation, is exactly proportional to the scan's units, and hardly moves when a brain mask takes in a
little skull (a few per cent of bright fat) or dark fluid.
"""

from __future__ import annotations

import numpy as np

from iqtflow.utils.errors import InputError

NAME = "brain-p80"  #: stored with a model; a model trained with another rule is refused
PERCENTILE = 80.0


def intensity_scale(values: np.ndarray) -> float:
    """Return the intensity that the network sees as 1.

    Parameters
    ----------
    values : ndarray, any shape
        Intensities of brain voxels of the thick-slice scan.

    Returns
    -------
    float
        Positive; in the scan's units. Network input is ``scan / scale``, the enhanced volume is ``network
        output * scale``.

    Raises
    ------
    InputError
        There are no brain voxels, or their 80th percentile is not a positive number.
    """
    values = np.asarray(values)
    scale = float(np.percentile(values, PERCENTILE)) if values.size else float("nan")
    if not np.isfinite(scale) or scale <= 0:
        raise InputError(
            "brain intensities",
            found=f"{values.size} brain voxels, 80th percentile {scale:g}",
            expected="a positive 80th percentile over the brain",
            next_step="Check the scan and its brain mask; intensities must be magnitudes (>= 0).",
        )
    return scale
