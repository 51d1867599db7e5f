"""Amplitude of a scan's bias field, in the unit of the simulator's ``bias_amplitude``."""

from __future__ import annotations

import numpy as np

from iqtflow.simulation.artifacts import BIAS_ORDER, draw_bias

#: Probability from which a voxel counts as white matter alone. Mixed voxels are darker, most of them outside.
CORE = 0.95
#: Amplitude that is found in brains without a bias field (median of 6), since white matter is not uniform.
UNIFORM = 0.11
#: With fewer voxels nothing is measured; more than the second number are not needed.
LEAST_VOXELS, MOST_VOXELS = 1000, 40000
#: Simulated fields that relate the spread in white matter to the amplitude.
N_FIELDS = 100


def measure_bias(data: np.ndarray, wm: np.ndarray) -> float | None:
    """Measure the amplitude of the bias field from the intensity of white matter.

    The simulator's field is fitted to the logarithm of the intensity. Its standard deviation in white matter
    is divided by that of simulated fields of amplitude 1, on average: the amplitude is the largest absolute
    logarithm anywhere in the volume. What white matter alone has is taken off, as a variance.

    Parameters
    ----------
    data : ndarray, shape (w, h, d)
        Scan without correction of the bias field.
    wm : ndarray, shape (w, h, d)
        White-matter probability.

    Returns
    -------
    float or None
        None: too few voxels of white matter.
    """
    where = np.argwhere((wm >= CORE) & (data > 0))
    if len(where) < LEAST_VOXELS:
        return None
    where = where[:: max(len(where) // MOST_VOXELS, 1)]
    waves = _cosines(where, data.shape)
    intensity = np.log(data[tuple(where.T)].astype(float))
    fitted = waves[:, 1:] @ np.linalg.lstsq(waves, intensity, rcond=None)[0][1:]
    rng = np.random.default_rng(0)
    fields = np.array([draw_bias(rng, 1.0) for _ in range(N_FIELDS)])
    grid = np.argwhere(np.ones((9, 9, 9)))
    amplitudes = np.abs(_cosines(grid, (9, 9, 9)) @ fields.T).max(axis=0)
    spreads = np.std(waves[:: max(len(waves) // 2000, 1)] @ fields.T, axis=0)
    found = np.std(fitted) / np.mean(spreads / amplitudes)
    return float(np.sqrt(max(found**2 - UNIFORM**2, 0)))


def _cosines(where: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Cosines of `iqtflow.simulation.artifacts.bias_field` at n voxels, the constant first: shape (n, 27)."""
    product = np.ones((len(where), 1))
    for index, size in zip(where.T, shape, strict=True):
        waves = np.cos(np.pi * np.outer((index + 0.5) / size, np.arange(BIAS_ORDER + 1)))
        product = (product[:, :, None] * waves[:, None, :]).reshape(len(where), -1)
    return product
