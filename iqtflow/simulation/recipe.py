"""The sidecar of a simulated scan, from which the same voxels can be made again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from iqtflow.image.geometry import AXIS_NAMES
from iqtflow.simulation.artifacts import BIAS_ORDER
from iqtflow.simulation.forward_model import Ratios
from iqtflow.simulation.simulate import Draw, SliceStack
from iqtflow.utils.errors import InputError
from iqtflow.utils.files import read_text


@dataclass(frozen=True)
class Recipe:
    """A simulation without its input images.

    Attributes
    ----------
    stack
        Layout of the slices.
    draw
        All random numbers.
    fixed
        Tissue that keeps its intensity, "WM" or "GM".
    distribution
        Distribution of the noise, "gaussian" or "rician".
    """

    stack: SliceStack
    draw: Draw
    fixed: str = "WM"
    distribution: str = "gaussian"


def describe(
    recipe: Recipe,
    *,
    ratio: float,
    ratios: Ratios,
    prior: Mapping[str, Any],
    extras: Mapping[str, float],
    digests: Mapping[str, str],
) -> dict[str, Any]:
    """Return the fields of the sidecar of a simulated scan.

    Parameters
    ----------
    recipe
        Layout of the slices, random numbers, and settings of the simulation.
    ratio
        Slice spacing over the thin voxel edge.
    ratios
        Intensity ratios and noise of the drawn SNR.
    prior, extras
        SNR prior and largest imperfections (`SNRPrior.as_dict`, `Extras` as a dict).
    digests
        `digest` of the image ("image") and its maps ("wm", "gm").

    Returns
    -------
    dict
        BIDS fields first; `recall` reads the field "Simulation", exact to the last bit.
    """
    stack, draw = recipe.stack, recipe.draw
    return {
        "SliceThickness": round(stack.thickness_mm, 6),
        "SpacingBetweenSlices": round(stack.spacing_mm, 6),
        "SliceGap": round(stack.gap_mm, 6),
        "SliceAxis": AXIS_NAMES[stack.axis],
        "UpsamplingFactor": round(ratio) if abs(ratio - round(ratio)) < 1e-4 else round(ratio, 6),
        "SNR": {"WM": draw.snr[0], "GM": draw.snr[1]},
        "NoiseStandardDeviation": ratios.sigma,
        "IntensityRatio": {"WM": ratios.wm, "GM": ratios.gm},
        "FixedTissue": recipe.fixed,
        "NoiseDistribution": recipe.distribution,
        "SNRPrior": dict(prior),
        "Extras": dict(extras),
        "Seed": draw.noise_seed,
        "Simulation": {
            **asdict(stack),
            **asdict(draw),
            "fixed": recipe.fixed,
            "distribution": recipe.distribution,
            "sha256": dict(digests),
        },
    }


def read_fields(path: str | os.PathLike) -> dict[str, Any]:
    """Read the sidecar of a simulated scan.

    Raises
    ------
    InputError
        The file cannot be read, or is not the sidecar of a simulated scan.
    """
    try:
        fields = json.loads(read_text(path))
        found = f"the fields {', '.join(sorted(fields))}"
        if isinstance(fields["Simulation"], dict):
            return fields
    except KeyError:
        pass
    except (OSError, ValueError, TypeError, RecursionError) as fault:
        found = f"{type(fault).__name__}: {fault}"
    raise InputError(
        path,
        found=found,
        expected='a sidecar that iqtflow-simulate wrote, with the field "Simulation"',
        next_step="Give the JSON file beside a simulated scan.",
    )


def recall(path: str | os.PathLike) -> tuple[Recipe, dict[str, str]]:
    """Read the recipe of a simulated scan, and the digests of its image and maps.

    Raises
    ------
    InputError
        As `read_fields`, or a value of the recipe is missing or has the wrong type.
    """
    values = read_fields(path)["Simulation"]
    try:
        stack = SliceStack(int(values["axis"]), float(values["spacing_mm"]), float(values["thickness_mm"]))
        snr_wm, snr_gm = (float(value) for value in values["snr"])
        bias = tuple(float(value) for value in values["bias"])
        draw = Draw(
            snr=(snr_wm, snr_gm),
            noise_seed=int(values["noise_seed"]),
            **{name: float(values[name]) for name in ("fwhm_mm", "offset_mm", "inplane_fwhm_mm")},
            bias=bias,
        )
        recipe = Recipe(stack, draw, str(values["fixed"]), str(values["distribution"]))
        digests = {name: str(values["sha256"][name]) for name in ("image", "wm", "gm")}
        if stack.axis not in (0, 1, 2) or len(bias) not in (0, (BIAS_ORDER + 1) ** 3):
            raise ValueError(f"axis {stack.axis}, {len(bias)} coefficients of the bias field")
    except (KeyError, TypeError, ValueError, OverflowError) as fault:
        raise InputError(
            path,
            found=f"{type(fault).__name__}: {fault}",
            expected='a complete "Simulation"',
            next_step="Use the sidecar as it was written.",
        ) from fault
    return recipe, digests


def digest(data: np.ndarray) -> str:
    """SHA-256 of a volume's shape and voxels (as float32), whatever the file's compression."""
    total = hashlib.sha256(repr(data.shape).encode())
    # NIfTI's order in memory, so that nothing is copied.
    total.update(np.ascontiguousarray(data.T, dtype="<f4").data)
    return total.hexdigest()
