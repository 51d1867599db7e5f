"""Simulated low-field scans of a whole volume (Algorithm 1 of Lin et al., MLMI 2019): any slice axis, any
orientation, any spacing.

`prepare_subject` does once for each subject what does not depend on the draw: slice profile, down-sampling,
tissue means. `realise` makes a scan for each draw, at a small part of the cost. Both work in one canonical
orientation, so that the same anatomy gets the same noise in any orientation of the array.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from nibabel.affines import voxel_sizes
from nibabel.orientations import (
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)

from iqtflow.image.geometry import slices_back, slices_last, thick_affine
from iqtflow.simulation.artifacts import Extras, bias_field, blur_in_plane, draw_bias
from iqtflow.simulation.forward_model import Ratios, add_noise, contrast_ratios, recontrast
from iqtflow.simulation.slice_profile import apply_profile, profile_matrix
from iqtflow.simulation.snr_prior import SNRPrior, tissue_mean
from iqtflow.utils.errors import InputError

#: Orientation in which random numbers are drawn: that of most NIfTI files.
CANONICAL = ("L", "A", "S")
#: Probabilities may be outside [0, 1] by this much, since resampling overshoots a little.
PROBABILITY_TOLERANCE = 0.02


@dataclass(frozen=True)
class SliceStack:
    """Layout of the slices of a scan.

    Attributes
    ----------
    axis
        Slice axis: array axis 0, 1 or 2.
    spacing_mm
        Distance between the centres of neighbouring slices.
    thickness_mm
        Slice thickness, the FWHM of the profile; the rest of the spacing is gap.
    """

    axis: int
    spacing_mm: float
    thickness_mm: float

    @property
    def gap_mm(self) -> float:
        """Gap between two slices, in mm."""
        return self.spacing_mm - self.thickness_mm


@dataclass(frozen=True)
class Draw:
    """All random numbers of one scan.

    Attributes
    ----------
    snr
        (SNR_WM, SNR_GM), the paper's alpha.
    noise_seed
        Seed of the noise.
    fwhm_mm
        Full width at half maximum of the slice profile; the slice thickness without jitter.
    offset_mm
        Shift of all slices, positive towards left, anterior or superior.
    inplane_fwhm_mm
        Full width at half maximum of the blur in the plane.
    bias
        Coefficients of the bias field (`iqtflow.simulation.artifacts.draw_bias`) along left, anterior,
        superior; empty for none.
    """

    snr: tuple[float, float]
    noise_seed: int
    fwhm_mm: float
    offset_mm: float = 0.0
    inplane_fwhm_mm: float = 0.0
    bias: tuple[float, ...] = ()


@dataclass(frozen=True)
class ThickSubject:
    """The part of a simulation that is the same for all draws of a subject.

    Attributes
    ----------
    intensity, wm, gm : tensor, shape (w, h, d), float32
        Thick-slice volumes in the canonical orientation, slices last.
    mean_wm, mean_gm
        Tissue means of the high-field image, the numerators of eq. (4).
    affine : ndarray, shape (4, 4)
        Voxel to world (mm) of the thick-slice scan, in the axes of the input.
    axis
        Slice axis of the input.
    inplane_mm
        Voxel size along w and h.
    order
        Canonical axis of each axis of the tensors.
    turn : ndarray, shape (3, 2)
        nibabel orientation transform from canonical axes back to the input's.
    """

    intensity: torch.Tensor
    wm: torch.Tensor
    gm: torch.Tensor
    mean_wm: float
    mean_gm: float
    affine: np.ndarray
    axis: int
    inplane_mm: tuple[float, float]
    order: tuple[int, int, int]
    turn: np.ndarray


def plan_slices(
    edge_mm: float,
    *,
    axis: int,
    k: int | None = None,
    thickness_mm: float | None = None,
    gap_mm: float | None = None,
) -> SliceStack:
    """Return the layout of slices from factor, thickness and gap, of which some may be None.

    Parameters
    ----------
    edge_mm
        Thin voxel edge along the slice axis.
    axis
        Slice axis.
    k
        Slice spacing over `edge_mm`. None: the spacing is ``thickness_mm + gap_mm``, not necessarily a
        multiple of the edge; 4 if one of these is None.
    thickness_mm
        Slice thickness; None: 3/4 of the spacing, as in the paper, or spacing minus gap.
    gap_mm
        Gap; None: the rest of the spacing.

    Returns
    -------
    SliceStack

    Raises
    ------
    InputError
        Thickness and gap do not add up to the spacing, the gap is negative, or the thickness is not positive.
    """
    if k is None and thickness_mm is not None and gap_mm is not None:
        spacing = thickness_mm + gap_mm
    else:
        spacing = (4 if k is None else k) * edge_mm
    if thickness_mm is None:
        thickness_mm = 0.75 * spacing if gap_mm is None else spacing - gap_mm
    if gap_mm is None:
        gap_mm = spacing - thickness_mm
    tolerance = 0.01 * edge_mm
    found = f"thickness {thickness_mm:g} mm + gap {gap_mm:g} mm"
    if abs(thickness_mm + gap_mm - spacing) > tolerance:
        raise InputError(
            "slices",
            found=found,
            expected=f"their sum to be k x voxel edge = {spacing:g} mm",
            next_step="Change thickness, gap or k; leave k out to let thickness + gap decide.",
        )
    if not thickness_mm > 0 or gap_mm < -tolerance:
        raise InputError(
            "slices",
            found=found,
            expected=f"a thickness above 0 and at most the spacing ({spacing:g} mm), and a gap of at least 0",
            next_step="Choose thinner slices or a larger spacing: slices that overlap are not simulated.",
        )
    return SliceStack(axis, float(spacing), float(min(thickness_mm, spacing)))


def draw_scan(prior: SNRPrior, extras: Extras, stack: SliceStack, *, seed: int) -> Draw:
    """Draw all random numbers of one scan (Algorithm 1, step 4, and the extras).

    Each extra has its own random stream, so that switching one on does not change SNR, noise and the others.

    Parameters
    ----------
    prior
        Distribution of tissue SNR.
    extras
        Largest imperfections.
    stack
        Nominal layout of the slices.
    seed
        The same seed gives the same draw.

    Returns
    -------
    Draw

    Raises
    ------
    InputError
        The largest slice offset is more than half the spacing.
    """
    if extras.slice_offset_mm > stack.spacing_mm / 2:
        raise InputError(
            "slice offset",
            found=f"{extras.slice_offset_mm:g} mm",
            expected=f"at most half the spacing ({stack.spacing_mm / 2:g} mm)",
            next_step="Choose a smaller offset: a larger one is another slice.",
        )

    def stream(number: int) -> np.random.Generator:
        return np.random.default_rng([seed, number])

    widening = np.log1p(extras.fwhm_jitter) * stream(1).uniform(-1, 1)
    return Draw(
        snr=prior.sample(stream(0)),
        noise_seed=seed,
        fwhm_mm=float(stack.thickness_mm * np.exp(widening)),
        offset_mm=float(extras.slice_offset_mm * stream(2).uniform(-1, 1)),
        inplane_fwhm_mm=float(
            extras.inplane_fwhm_least_mm
            + max(extras.inplane_fwhm_mm - extras.inplane_fwhm_least_mm, 0) * stream(3).uniform()
        ),
        bias=draw_bias(stream(4), extras.bias_amplitude),
    )


def prepare_subject(
    intensity: np.ndarray,
    maps: Iterable[np.ndarray],
    affine: np.ndarray,
    stack: SliceStack,
    *,
    fwhm_mm: float | None = None,
    offset_mm: float = 0.0,
) -> ThickSubject:
    """Compute the part that is the same for all draws of a subject (Algorithm 1, steps 1 to 3).

    Parameters
    ----------
    intensity : ndarray, shape (w, h, D), float32
        High-field image.
    maps
        Probability maps of WM and GM, shape (w, h, D). They are used one after the other, so that a generator
        needs only one in memory.
    affine : ndarray, shape (4, 4)
        Voxel to world of the high-field image.
    stack
        Layout of the slices. As many whole slices as fit are made, from the first voxel of the array on.
    fwhm_mm
        Full width at half maximum of the slice profile; None: the thickness.
    offset_mm
        As in `Draw`.

    Returns
    -------
    ThickSubject

    Raises
    ------
    InputError
        A map is empty, on another grid or not of probabilities, or the volume is thinner than one slice.
    """
    affine = np.asarray(affine, dtype=float)
    edge = float(voxel_sizes(affine)[stack.axis])
    ratio = stack.spacing_mm / edge
    if abs(ratio - round(ratio)) < 1e-4:  # headers keep voxel sizes in single precision
        ratio = round(ratio)
    orientation = io_orientation(affine)
    canonical = axcodes2ornt(CANONICAL)
    forward = ornt_transform(orientation, canonical)
    offset = offset_mm / edge * forward[stack.axis, 1]
    fwhm = (stack.thickness_mm if fwhm_mm is None else fwhm_mm) / edge
    matrix = profile_matrix(intensity.shape[stack.axis], ratio, fwhm, offset)

    axis = int(forward[stack.axis, 0])
    order = (*(a for a in range(3) if a != axis), axis)
    turn = ornt_transform(canonical, orientation)
    in_plane = [intensity.shape[int(np.flatnonzero(forward[:, 0] == a)[0])] for a in order[:2]]

    def thicken(volume: np.ndarray) -> torch.Tensor:
        thick = np.empty((*in_plane, len(matrix)), np.float32)
        as_input = apply_orientation(slices_back(thick, np.eye(4), axis)[0], turn)  # a view
        apply_profile(volume, stack.axis, matrix, out=as_input)
        return torch.from_numpy(thick)

    thick, means = [thicken(intensity)], []
    iterator = iter(maps)
    for tissue in ("WM", "GM"):
        probability = next(iterator)
        _check_map(probability, intensity, tissue)
        means.append(tissue_mean(intensity, probability, tissue=tissue))
        thick.append(thicken(probability))
        del probability  # before the next one is read
    canonical_affine = affine @ inv_ornt_aff(forward, intensity.shape)
    sizes = voxel_sizes(canonical_affine)
    return ThickSubject(
        *thick,  # type: ignore[misc]
        *means,
        affine=_thick(affine, stack.axis, ratio, offset),
        axis=stack.axis,
        inplane_mm=(float(sizes[order[0]]), float(sizes[order[1]])),
        order=(order[0], order[1], order[2]),
        turn=turn,
    )


def realise(
    subject: ThickSubject, draw: Draw, *, fixed: str = "WM", distribution: str = "gaussian"
) -> np.ndarray:
    """Make one low-field scan (Algorithm 1, steps 5 to 7).

    Bias field and in-plane blur change the signal, not the noise, which comes from coil and amplifier.

    Parameters
    ----------
    subject
        From `prepare_subject`, for this draw's profile and offset.
    draw
        From `draw_scan`.
    fixed
        Tissue that keeps its intensity, "WM" or "GM".
    distribution
        Distribution of the noise, see `iqtflow.simulation.forward_model.add_noise`.

    Returns
    -------
    ndarray, float32
        The scan in the input's axes; its affine is ``subject.affine``.
    """
    ratios = ratios_of(subject, draw, fixed=fixed)
    clean = recontrast(subject.intensity, subject.wm, subject.gm, ratios.wm, ratios.gm)
    if draw.bias:
        clean *= torch.from_numpy(bias_field(draw.bias, tuple(clean.shape), subject.order))
    if draw.inplane_fwhm_mm:
        clean = torch.from_numpy(blur_in_plane(clean.numpy(), draw.inplane_fwhm_mm, subject.inplane_mm))
    generator = torch.Generator().manual_seed(draw.noise_seed)
    noisy = add_noise(clean, ratios.sigma, generator, distribution=distribution).numpy()
    turned = slices_back(noisy, np.eye(4), subject.order[2])[0]
    return apply_orientation(turned, subject.turn)


def ratios_of(subject: ThickSubject, draw: Draw, *, fixed: str = "WM") -> Ratios:
    """Return intensity ratios and noise of a draw (Algorithm 1, step 5)."""
    return contrast_ratios(draw.snr, subject.mean_wm, subject.mean_gm, fixed=fixed)


def _thick(affine: np.ndarray, axis: int, ratio: float, offset_voxels: float) -> np.ndarray:
    empty = np.empty((1, 1, 1))
    last = thick_affine(slices_last(empty, affine, axis)[1], ratio)
    last[:3, 3] += last[:3, 2] / ratio * offset_voxels
    return slices_back(empty, last, axis)[1]


def _check_map(probability: np.ndarray, intensity: np.ndarray, tissue: str) -> None:
    if probability.shape != intensity.shape:
        raise InputError(
            f"{tissue} probability map",
            found=f"shape {probability.shape}",
            expected=f"the image's grid, shape {intensity.shape}",
            next_step="Resample it to the image's grid.",
        )
    low, high = float(probability.min()), float(probability.max())
    if low < -PROBABILITY_TOLERANCE or high > 1 + PROBABILITY_TOLERANCE:
        raise InputError(
            f"{tissue} probability map",
            found=f"values from {low:g} to {high:g}",
            expected="probabilities, from 0 to 1",
            next_step="Divide the map by its scale (100 or 255 are common), or give the right file.",
        )
