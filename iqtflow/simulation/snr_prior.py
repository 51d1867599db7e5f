"""The prior of tissue SNR at low field: a two-dimensional normal distribution of (white matter, grey matter).

SNR of white and grey matter are strongly correlated, since both depend on the noise of the coil. They are
therefore drawn together.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from iqtflow.config import SNR_LIMITS, TrainSettings
from iqtflow.utils.errors import InputError
from iqtflow.utils.files import read_text


@dataclass(frozen=True)
class SNRPrior:
    """Normal distribution of tissue SNR, ``N(mean, covariance)``, in the order (WM, GM).

    Attributes
    ----------
    name
        Name in sidecars and model cards.
    mean
        Mean SNR of (WM, GM).
    covariance
        2 x 2 covariance, row by row. All zeros means a fixed SNR.
    source
        Source of the numbers.
    """

    name: str
    mean: tuple[float, ...]  # of two; shapes are checked below, since they come from files
    covariance: tuple[tuple[float, ...], ...]
    source: str = ""

    def __post_init__(self) -> None:
        mean, covariance = np.asarray(self.mean, float), np.asarray(self.covariance, float)
        if mean.shape != (2,) or not np.all((mean >= SNR_LIMITS[0]) & (mean <= SNR_LIMITS[1])):
            limits = f"{SNR_LIMITS[0]:g} to {SNR_LIMITS[1]:g}"
            raise _bad(self.name, f"mean {self.mean}", f"two positive numbers, (WM, GM), from {limits}")
        if (
            covariance.shape != (2, 2)
            or not np.all(np.abs(covariance) <= SNR_LIMITS[1] ** 2)
            or not np.allclose(covariance, covariance.T)
        ):
            raise _bad(self.name, f"covariance {self.covariance}", "a symmetric 2 x 2 matrix")
        if np.any(covariance) and np.linalg.eigvalsh(covariance).min() <= 0:
            found = f"covariance {self.covariance} with a non-positive eigenvalue"
            raise _bad(self.name, found, "a positive definite 2 x 2 matrix")

    def sample(self, rng: np.random.Generator) -> tuple[float, float]:
        """Draw one (SNR_WM, SNR_GM), again until both are positive (Algorithm 1, step 4)."""
        if not np.any(self.covariance):
            return self.mean[0], self.mean[1]
        factor = np.linalg.cholesky(np.asarray(self.covariance, float))
        while True:
            alpha = np.asarray(self.mean, float) + factor @ rng.standard_normal(2)
            if np.all(alpha > 0):
                return float(alpha[0]), float(alpha[1])

    def outline(self, probability: float = 0.95) -> np.ndarray:
        """Return the ellipse that contains a share of the draws, for a plot: (2, 181), SNR of WM and GM."""
        values, vectors = np.linalg.eigh(np.asarray(self.covariance, float))
        turn = np.linspace(0, 2 * np.pi, 181)
        circle = _radius(probability) * np.stack([np.cos(turn), np.sin(turn)])
        return np.asarray(self.mean, float)[:, None] + vectors @ (
            np.sqrt(np.clip(values, 0, None))[:, None] * circle
        )

    def holds(self, snr: np.ndarray, probability: float = 0.95) -> np.ndarray:
        """Return whether each of n draws, shape (n, 2), is inside the ellipse of `outline`."""
        away = np.atleast_2d(np.asarray(snr, float)) - np.asarray(self.mean, float)
        if not np.any(self.covariance):
            return (np.abs(away) < 1e-9).all(axis=1)
        distance = np.einsum("ni,ij,nj->n", away, np.linalg.inv(np.asarray(self.covariance, float)), away)
        return distance <= _radius(probability) ** 2

    def as_dict(self) -> dict[str, Any]:
        """Return the prior as JSON-ready fields for `read_prior`."""
        return {
            "name": self.name,
            "tissues": ["WM", "GM"],
            "mean": list(self.mean),
            "covariance": [list(row) for row in self.covariance],
            "source": self.source,
        }


_PAPER = "Lin et al., MLMI 2019"

#: Priors known by name. ``ibadan-0.36T`` is the reference scanner's (28 children); ``fixed-61-53`` the
#: paper's fixed-SNR experiment.
PUBLISHED = {
    prior.name: prior
    for prior in (
        SNRPrior("ibadan-0.36T", (64.50, 54.14), ((78.47, 71.50), (71.50, 73.91)), f"{_PAPER}, section 3.3"),
        SNRPrior("fixed-61-53", (61.0, 53.0), ((0.0, 0.0), (0.0, 0.0)), f"{_PAPER}, section 3.2"),
    )
}
DEFAULT_PRIOR = TrainSettings.snr_prior


def read_prior(name_or_path: str | os.PathLike) -> SNRPrior:
    """Return a published prior by name, or read one from a JSON file with ``mean`` and ``covariance`` in the
    order (WM, GM).

    Raises
    ------
    InputError
        There is no published prior of this name and no such file, or its numbers are not a distribution.

    Examples
    --------
    >>> prior = read_prior("ibadan-0.36T")
    >>> prior.mean
    (64.5, 54.14)
    >>> [round(snr, 1) for snr in prior.sample(np.random.default_rng(0))]
    [65.6, 54.8]
    """
    key = os.fspath(name_or_path)
    if key in PUBLISHED:
        return PUBLISHED[key]
    known = ", ".join(PUBLISHED)
    form = "JSON with mean (2 numbers) and covariance (2 x 2), order WM, GM"
    try:
        fields = json.loads(read_text(key))
        if not isinstance(fields, dict):
            raise _bad(key, f"a {type(fields).__name__} at the top", form)
        missing = [name for name in ("mean", "covariance") if name not in fields]
        if missing:
            raise _bad(key, f"no {' and no '.join(missing)}", form)
        mean = tuple(_number(v) for v in fields["mean"])
        covariance = tuple(tuple(_number(v) for v in row) for row in fields["covariance"])
        tissues = list(fields.get("tissues", ["WM", "GM"]))
    except FileNotFoundError as fault:
        found = "no such file and no prior of this name"
        raise _bad(key, found, f"one of {known}, or a JSON file") from fault
    except (OSError, ValueError, TypeError, OverflowError, RecursionError) as fault:
        raise _bad(key, f"what cannot be read ({' '.join(str(fault).split())})", form) from fault
    if tissues != ["WM", "GM"]:
        raise _bad(key, f"tissues {tissues}", 'tissues ["WM", "GM"]')
    return SNRPrior(str(fields.get("name", Path(key).stem)), mean, covariance, str(fields.get("source", "")))


def tissue_mean(intensity: np.ndarray, probability: np.ndarray, *, tissue: str) -> float:
    """Probability-weighted mean intensity of a tissue, ``sum(M Y) / sum(M)``: eq. (4) times the noise's
    standard deviation.

    Raises
    ------
    InputError
        The tissue map is empty, or the mean is not positive.
    """
    if probability.flags.f_contiguous:  # as read from NIfTI: sums run along memory
        intensity, probability = np.asarray(intensity).T, probability.T
    intensity, probability = np.asarray(intensity, np.float32), np.asarray(probability, np.float32)
    # Each line of voxels in single precision, the lines in double: exact to rounding, without a copy. A
    # matrix product would sum in an order that depends on the number of threads.
    total = float(probability.sum(axis=-1).sum(dtype=np.float64))
    weighted = float(np.einsum("...i,...i->...", probability, intensity).sum(dtype=np.float64))
    mean = weighted / total if total > 1 else float("nan")
    if not mean > 0:
        raise InputError(
            f"{tissue} probability map",
            found=f"{total:g} voxels of {tissue} with mean intensity {mean:g}",
            expected=f"a {tissue} map with a positive mean intensity under it",
            next_step="Check that map and image belong together and that the segmentation is plausible.",
        )
    return mean


def _radius(probability: float) -> float:
    """Mahalanobis distance that contains this share of a two-dimensional normal distribution."""
    return float(np.sqrt(-2 * np.log(1 - probability)))


def _number(value: Any) -> float:
    """Convert a number from JSON; TypeError for true, false and texts."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{json.dumps(value)} in the place of a number")
    return float(value)


def _bad(name: str, found: str, expected: str) -> InputError:
    return InputError(
        f"SNR prior {name}",
        found=found,
        expected=expected,
        next_step="Correct the prior, or use a published one by name.",
    )
