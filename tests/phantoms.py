"""A synthetic high-field brain with known tissue maps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

WM_INTENSITY, GM_INTENSITY, CSF_INTENSITY = 1000.0, 700.0, 250.0


@dataclass(frozen=True)
class Brain:
    """Intensities and tissue probabilities on one grid; `mask` holds the brain."""

    intensity: np.ndarray
    wm: np.ndarray
    gm: np.ndarray
    mask: np.ndarray


def make_brain(shape: tuple[int, int, int] = (80, 88, 80), *, seed: int = 0) -> Brain:
    """Return nested, wavy ellipsoids of WM, GM and CSF with soft borders and a few per cent of texture."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    wave = ndimage.gaussian_filter(rng.standard_normal(shape), 5)
    radius = np.sqrt(sum(a**2 for a in axes)) + 0.1 * wave / wave.std()
    wm = ndimage.gaussian_filter((radius < 0.55).astype(np.float32), 0.7)
    brain = ndimage.gaussian_filter((radius < 0.8).astype(np.float32), 0.7)
    csf = (
        brain * ndimage.gaussian_filter((radius < 0.15).astype(np.float32), 0.7)
        + np.clip(brain - (radius < 0.74), 0, 1) * 0.5
    )
    wm = np.clip(wm - csf, 0, 1) * brain
    gm = np.clip(brain - wm - csf, 0, 1)
    csf = np.clip(brain - wm - gm, 0, 1)
    texture = 1 + 0.03 * ndimage.gaussian_filter(rng.standard_normal(shape), 1.5) / 0.1
    intensity = (WM_INTENSITY * wm + GM_INTENSITY * gm + CSF_INTENSITY * csf) * np.clip(texture, 0.5, 1.5)
    mask = brain > 0.5
    return Brain(
        (intensity * mask).astype(np.float32),
        (wm * mask).astype(np.float32),
        (gm * mask).astype(np.float32),
        mask,
    )


def make_tissue(shape: tuple[int, int, int], voxel_mm: float = 1.0, *, seed: int = 0) -> np.ndarray:
    """Return an ellipsoid in air whose inside has the spectrum of tissue, with noise of 2 %: float32."""
    rng = np.random.default_rng(seed)
    frequency = sum(f**2 for f in np.meshgrid(*(np.fft.fftfreq(n, voxel_mm) for n in shape), indexing="ij"))
    tissue = np.fft.ifftn(np.fft.fftn(rng.normal(size=shape)) / (frequency + 0.06**2)).real
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    inside = sum(axis**2 for axis in axes) < 0.9
    return np.where(inside, 100 + 20 * tissue / tissue.std() + 2 * rng.normal(size=shape), 0).astype(
        "float32"
    )
