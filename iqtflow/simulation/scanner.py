"""A scanner, measured from its scans: kind of noise, slice thickness, in-plane blur, bias field, stripes.

`measure_scanner` measures one scan, `pool_scanner` the scanner from all of its scans.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from nibabel.affines import voxel_sizes

from iqtflow.image.slice_intensity import measure_slice_intensity
from iqtflow.simulation.bias_estimation import measure_bias
from iqtflow.simulation.noise_estimation import NoiseEstimate
from iqtflow.simulation.slice_width import measure_widths

#: Kind of noise by the method of its estimate.
NOISE_KIND = {"air-rayleigh": "rician", "air-gaussian": "gaussian"}
#: Values that are pooled by their median.
POOLED = ("thickness_fraction", "inplane_fwhm_mm", "bias_amplitude", "stripes")
#: Systematic error of the thickness, relative: brains differ, and the profile is not a Gaussian.
THICKNESS_ERROR = 0.05
#: In-plane FWHM that is measured in high-field images of 0.9 mm, on average.
HIGH_FIELD_MM = 1.6
#: Brains differ in their detail: a scanner is blurred if its width is larger than the images' by this factor.
SAME_WIDTH = 1.2
#: Share of the scans from which a value must be known for the scanner's.
LEAST_SHARE = 0.5


@dataclass(frozen=True)
class ScannerMeasure:
    """What one scan tells about its scanner. None: not measurable, and `notes` say why.

    Attributes
    ----------
    noise_distribution
        "rician" or "gaussian".
    thickness_fraction
        Slice thickness (FWHM of the profile) / slice spacing.
    inplane_fwhm_mm
        FWHM in the plane, voxels included.
    bias_amplitude
        Largest absolute logarithm of the bias field.
    stripes
        Relative difference of odd and even slices; 0: none was found.
    notes
        Sentences for the user.
    """

    noise_distribution: str | None = None
    thickness_fraction: float | None = None
    inplane_fwhm_mm: float | None = None
    bias_amplitude: float | None = None
    stripes: float | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> ScannerMeasure:
        """Read the fields of `as_dict`; ValueError, TypeError or KeyError if they are others."""
        kind, notes = fields["noise_distribution"], fields["notes"]
        if kind not in (None, *NOISE_KIND.values()) or not isinstance(notes, list):
            raise ValueError(f"noise_distribution {kind!r}, notes {notes!r}")
        values = {name: None if fields[name] is None else float(fields[name]) for name in POOLED}
        if not all(value is None or 0 <= value < np.inf for value in values.values()):
            raise ValueError(f"a scanner with {values}")
        return cls(kind, **values, notes=tuple(map(str, notes)))

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-ready fields."""
        return {**asdict(self), "notes": list(self.notes)}


def measure_scanner(
    data: np.ndarray,
    wm: np.ndarray,
    mask: np.ndarray,
    affine: np.ndarray,
    *,
    axis: int,
    noise: NoiseEstimate,
) -> ScannerMeasure:
    """Measure what one scan tells about its scanner.

    Parameters
    ----------
    data : ndarray, shape (w, h, d)
        Scan from the scanner, without correction of the bias field.
    wm : ndarray, shape (w, h, d)
        White-matter probability.
    mask : ndarray of bool, shape (w, h, d)
        Brain.
    affine : ndarray, shape (4, 4)
        Voxel indices to world mm.
    axis
        Slice axis.
    noise
        From `iqtflow.simulation.noise_estimation.estimate_noise`.

    Returns
    -------
    ScannerMeasure
    """
    notes = []
    kind = NOISE_KIND.get(noise.method)
    if kind is None:
        notes.append("Kind of noise not measured: the background is unusable.")
    if noise.correlated:
        notes.append("The voxels were interpolated: slice thickness and in-plane resolution are uncertain.")
    widths = measure_widths(data, mask, affine, axis=axis, sigma=noise.sigma)
    notes += widths.notes
    spacing_mm = float(voxel_sizes(affine)[axis])
    bias = measure_bias(data, wm)
    if bias is None:
        notes.append("Bias field not measured: too few voxels of white matter.")
    intensity = measure_slice_intensity(data, mask, axis)
    if intensity.share is None:
        notes.append("Odd and even slices not compared: too few slices.")
    return ScannerMeasure(
        kind,
        None if widths.thickness_mm is None else widths.thickness_mm / spacing_mm,
        widths.inplane_mm,
        bias,
        None if intensity.share is None else intensity.share if intensity.striped else 0.0,
        tuple(notes),
    )


def pool_scanner(scans: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a scanner's values from those of its scans (`ScannerMeasure.as_dict`).

    Each value is the median, with the standard deviation ("spread") and number ("n") of the scans that have
    it; None if fewer than half of the scans have it. ``range`` of the thickness, for the simulator: the 95 %
    confidence interval of the median, and at least 5 % to each side. ``blur_mm`` of the in-plane width: the
    blur that gives it to a high-field image. ``largest`` of the bias field: twice the median, since the
    simulator draws amplitudes evenly between 0 and its setting.

    Returns
    -------
    dict
        JSON-ready: "n_scans", "noise_distribution", the values of `POOLED` and "notes".
    """
    pooled: dict[str, Any] = {"n_scans": len(scans)}
    kinds = Counter(scan["noise_distribution"] for scan in scans)
    kind, count = kinds.most_common(1)[0] if kinds else (None, 0)
    pooled["noise_distribution"] = kind if count > LEAST_SHARE * len(scans) else None
    for name in POOLED:
        values = [float(scan[name]) for scan in scans if scan[name] is not None]
        if not values or len(values) < LEAST_SHARE * len(scans):
            pooled[name] = None
            continue
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
        pooled[name] = {"median": float(np.median(values)), "spread": spread, "n": len(values)}
    if (thickness := pooled["thickness_fraction"]) is not None:
        median = thickness["median"]
        half = max(THICKNESS_ERROR * median, 2.5 * (thickness["spread"] or 0) / np.sqrt(thickness["n"]))
        thickness["range"] = [float(min(max(median + sign * half, 0.2), 1.0)) for sign in (-1, 1)]
    if (plane := pooled["inplane_fwhm_mm"]) is not None:
        plane["blur_mm"] = float(np.sqrt(max(plane["median"] ** 2 - HIGH_FIELD_MM**2, 0)))
    if (bias := pooled["bias_amplitude"]) is not None:
        bias["largest"] = 2 * bias["median"]
    told = Counter(note for scan in scans for note in scan["notes"])
    pooled["notes"] = [f"{note} ({n} of {len(scans)} scans)" for note, n in told.most_common()]
    return pooled


def own_width(data: np.ndarray, mask: np.ndarray, affine: np.ndarray, *, axis: int, k: int) -> float | None:
    """Measure the width in the plane of a high-field image, as that of a scan: in slices of k voxels.

    Parameters
    ----------
    data, mask : ndarray, shape (w, h, D)
        High-field image, and its brain.
    affine : ndarray, shape (4, 4)
        Voxel indices to world mm.
    axis
        Axis that the slices are made along.
    k
        Voxels in a slice.

    Returns
    -------
    float or None
        FWHM in mm; None: not measurable.
    """
    n = data.shape[axis] // k * k
    parts = [np.take(data, range(first, n, k), axis=axis) for first in range(k)]
    inside = [np.take(mask, range(first, n, k), axis=axis) for first in range(k)]
    thick = np.array(affine, dtype=float)
    thick[:3, axis] *= k
    mean = np.stack(parts).mean(axis=0, dtype=np.float32)
    return measure_widths(mean, np.all(inside, axis=0), thick, axis=axis, sigma=0.0).inplane_mm


def missing_blur(scanner_mm: float | None, own_mm: Sequence[float]) -> float:
    """Return the blur (FWHM, mm) that makes high-field images as wide as a scanner's; 0 if hardly any.

    Parameters
    ----------
    scanner_mm
        Width in the plane of the scanner; None: not measurable.
    own_mm
        Widths of the high-field images.
    """
    if scanner_mm is None or not own_mm or scanner_mm < SAME_WIDTH * float(np.median(own_mm)):
        return 0.0
    return float(np.sqrt(scanner_mm**2 - float(np.median(own_mm)) ** 2))
