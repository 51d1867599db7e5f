"""A simulated scan of a patch library's subject, in the paper's setting; shared by measurements of models."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from gpu_grid import simulate

from iqtflow.image.intensity import intensity_scale
from iqtflow.models.model_file import Model
from iqtflow.simulation.snr_prior import read_prior
from iqtflow.training.library import PatchLibrary


class Simulated(NamedTuple):
    """A scan, slices last, and what belongs to it.

    Attributes
    ----------
    scan
        Shape (w, h, d).
    scale
        Its intensity scale.
    truth, brain
        The high-field volume and its brain mask, (w, h, k d).
    """

    scan: np.ndarray
    scale: float
    truth: np.ndarray
    brain: np.ndarray


def simulated(library: PatchLibrary, model: Model, axis: int) -> Simulated:
    """Simulate a scan along an axis, with the model's factor and SNR prior."""
    prior = read_prior(model.card["snr_prior"]["name"])
    draw = simulate(library, axis=axis, k=model.k, prior=prior, seed=0)
    scan, truth, brain = (
        np.moveaxis(np.asarray(v), axis, 2) for v in (draw.volume, library.intensity, library.brain)
    )
    thin = scan.shape[2] * model.k
    scan, truth, brain = (
        scan.astype(np.float32),
        truth[:, :, :thin].astype(np.float32),
        brain[:, :, :thin] > 0,
    )
    thick = brain.reshape(*scan.shape, model.k).mean(3) > 0.5
    return Simulated(scan, intensity_scale(scan[thick]), truth, brain)
