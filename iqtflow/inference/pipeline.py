"""Enhancement of one scan: from a thick-slice image to the enhanced volume in the same place.

Find the slice axis, put it last, resample the plane to the model's ratio, find the brain, scale intensities,
run the networks, scale back, put the axes back. Geometry, normalisation and brain mask are those of training.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.spatialimages import SpatialImage
from scipy import ndimage

import iqtflow
from iqtflow.bids.names import sidecar_name
from iqtflow.config import SETTINGS, EnhanceSettings
from iqtflow.image.acquired_slices import advise, as_acquired
from iqtflow.image.geometry import (
    AXIS_NAMES,
    SliceGeometry,
    Upsampling,
    cubic_upsample,
    find_slice_geometry,
    require_ratio,
    slices_last,
    thin_affine,
)
from iqtflow.image.intensity import empty_slices, intensity_scale, interpolate_slices
from iqtflow.image.metadata import drop_invalid_fields, read_fields
from iqtflow.image.orientation import ReorientedScan
from iqtflow.image.resampling import resample_inplane
from iqtflow.image.slice_intensity import describe_slices, equalise_slices, measure_slice_intensity
from iqtflow.image.validate import check_scan
from iqtflow.inference.data_consistency import compare_with_scan
from iqtflow.inference.ood import compare, find_reference, measure_scan
from iqtflow.inference.output_grid import OutputGrid
from iqtflow.inference.predict import enhance_volume
from iqtflow.inference.stacks import CombinedScan, enhance_and_combine
from iqtflow.inference.uncertainty import as_sidecar
from iqtflow.inference.white_matter import correct_white_matter
from iqtflow.models.card import PAPER_PATCH
from iqtflow.models.model_file import load_model
from iqtflow.models.zoo import choose_model, contrast_of
from iqtflow.segmentation.brainmask import BrainMask, find_brain_mask
from iqtflow.utils.errors import InputError
from iqtflow.utils.gpus import DEVICES, resolve_device
from iqtflow.utils.system import available_cpus, peak_memory_gb

#: Meaning of the values of an enhanced volume.
INTENSITIES = (
    "In the input scan's own arbitrary units: white matter keeps its intensity, values below 0 are set to 0. "
    "WhiteMatter gives the ratio of scan to enhanced volume, and the factor that was applied for it."
)
#: A scan with a larger share of brain voxels below 0 is not a magnitude image.
NEGATIVE_SHARE = 0.01


@dataclass(frozen=True)
class EnhancedScan:
    """Result of `enhance_image`.

    Attributes
    ----------
    mean
        Enhanced volume, in the scan's axis order, world space and units.
    std
        Standard deviation of the error on the same grid, in the scan's units
        (`iqtflow.inference.uncertainty`); None if the model gives none.
    spline
        Cubic B-spline interpolation of the scan on the same grid.
    mask
        Brain mask on the scan's own grid.
    residual
        Scan minus the scan that the enhanced volume predicts, in standard deviations of the noise, on the
        scan's own grid (`iqtflow.inference.audit`).
    details
        Fields of the BIDS sidecar.
    """

    mean: nib.Nifti1Image
    std: nib.Nifti1Image | None
    spline: nib.Nifti1Image
    mask: nib.Nifti1Image
    residual: nib.Nifti1Image
    details: dict[str, Any]


class NothingToGain(InputError):
    """The scan is near-isotropic. A run over a data set skips it; a command or node for this scan fails."""


def enhance(
    img: str | os.PathLike | SpatialImage,
    model: str | os.PathLike | None = None,
    *,
    return_std: bool = False,
    device: str = "auto",
    contrast: str | None = None,
    sidecar: Mapping[str, Any] | None = None,
    skull_stripped: bool | None = None,
    force: bool = False,
    slice_intensity: str = "auto",
    num_threads: int | None = None,
    max_memory_gb: float | None = None,
    data_consistency: bool = False,
    voxel_size: float | str = EnhanceSettings.voxel_size,
    acquired_spacing: float | None = EnhanceSettings.acquired_spacing,
    acquired_axis: str | None = EnhanceSettings.acquired_axis,
    stacks: Sequence[str | os.PathLike | SpatialImage] = (),
    report: Callable[[str], None] | None = None,
) -> nib.Nifti1Image | tuple[nib.Nifti1Image, nib.Nifti1Image | None]:
    """Enhance a low-field scan with thick slices to a high-field-like volume with thin slices.

    The result is the same as that of the command ``iqtflow-enhance`` with the same options.

    Parameters
    ----------
    img
        Three-dimensional scan, slices along any axis: a ``.nii`` or ``.nii.gz`` file, or a nibabel image.
    model
        A model file, or the name of a shipped model. None: the shipped model for the ratio of slice
        spacing to in-plane voxel size (`iqtflow.image.geometry.choose_upsampling`).
    return_std
        Also return the standard deviation of the error (`iqtflow.inference.uncertainty`).
    device
        "cpu", "cuda", or "auto": CUDA if it works, else the CPU.
    contrast
        BIDS suffix, such as "T1w"; None: from the name of the file, else "T1w". The model must have been
        trained on this contrast.
    sidecar
        BIDS metadata of the scan, such as ``SliceThickness`` in mm.
    skull_stripped
        Whether the scan shows the brain only; None: `sidecar` or the voxels decide.
    force
        Enhance a near-isotropic scan, too, and one whose slices are too far apart for its plane
        (`iqtflow.image.geometry.LARGEST_RATIO`).
    slice_intensity
        "auto": if odd and even slices differ significantly, correct it by one gain for each; "keep": change
        nothing.
    num_threads
        CPU threads; None: one for each processor.
    max_memory_gb
        Memory that the networks may use, in GB; None: a share of the free memory.
    data_consistency
        Correct the enhanced volume so that it reproduces the slices of the scan within their noise.
    voxel_size
        "native": the plane of the scan stays, and there are k thin slices for each slice. A number: cubic
        voxels of this edge in mm, 0.7 to 1.5.
    acquired_spacing, acquired_axis
        For a scan that was interpolated before: distance of its slices in mm as they were acquired, and their
        array axis "x", "y" or "z" (None: the axis with the coarsest measured resolution). The scan is brought
        back to these slices (`iqtflow.image.acquired_slices`).
    stacks
        Other scans of the same head, session and contrast, with slices along other axes or repeated. Each is
        enhanced, and one volume is made of all (`iqtflow.inference.stacks`). Their metadata are read from the
        JSON files beside them.
    report
        Function that receives lines of text on the progress.

    Returns
    -------
    enhanced : nibabel.Nifti1Image, float32
        Enhanced volume in the scan's world space, orientation and units; k times as many slices, or cubic
        voxels.
    std : nibabel.Nifti1Image or None
        With `return_std` only: standard deviation of the error on the same grid, in the same units. None for
        a model that gives none.

    Raises
    ------
    InputError
        The scan cannot be used, is near-isotropic or was interpolated from thick slices, the model cannot be
        read, there is no model for the contrast, or none of `stacks` can be combined with the scan.
    UsageError
        `device` is "cuda" and there is no GPU that works.

    Examples
    --------
    >>> import iqtflow
    >>> enhanced = iqtflow.enhance("sub-01_T1w.nii.gz")  # doctest: +SKIP
    >>> enhanced, std = iqtflow.enhance("sub-01_T1w.nii.gz", return_std=True)  # doctest: +SKIP
    """
    for name, wrong, value, expected in (
        (
            "img",
            not isinstance(img, (str, os.PathLike, SpatialImage)),
            type(img),
            "a path or a nibabel image",
        ),
        (
            "stacks",
            not isinstance(stacks, (list, tuple))
            or not all(isinstance(one, (str, os.PathLike, SpatialImage)) for one in stacks),
            stacks,
            "a list of paths or nibabel images",
        ),
        ("device", device not in DEVICES, device, f"one of {', '.join(DEVICES)}"),
        (
            "slice_intensity",
            slice_intensity not in SETTINGS["enhance"]["slice_intensity"].choices,
            slice_intensity,
            f"one of {', '.join(SETTINGS['enhance']['slice_intensity'].choices)}",
        ),
        ("skull_stripped", skull_stripped not in (True, False, None), skull_stripped, "True, False or None"),
    ):
        if wrong:
            raise InputError(name, found=f"{value!r}", expected=expected, next_step="Correct this argument.")
    options: dict[str, Any] = {
        "sidecar": sidecar,
        "model": model,
        "contrast": contrast or ("T1w" if isinstance(img, SpatialImage) else contrast_of(img)),
        "device": resolve_device(device).name,
        "num_threads": num_threads or available_cpus(),
        "skull_stripped": skull_stripped,
        "force": force,
        "slice_intensity": slice_intensity,
        "max_memory_gb": max_memory_gb,
        "data_consistency": data_consistency,
        "voxel_size": voxel_size,
        "acquired_spacing": acquired_spacing,
        "acquired_axis": acquired_axis,
        "report": report,
    }
    result = enhance_all([img, *stacks], options) if stacks else _enhance_any(img, options)[1]
    return (result.mean, result.std) if return_std else result.mean


def enhance_all(
    scans: Sequence[str | os.PathLike | SpatialImage], options: Mapping[str, Any]
) -> CombinedScan:
    """Enhance several scans of one head, and make one volume of them.

    Parameters
    ----------
    scans
        Files or images; the first one gives axes, world space and units.
    options
        Of `enhance_image`; ``sidecar`` is that of the first scan, ``voxel_size`` that of the combined volume.

    Raises
    ------
    InputError
        As `iqtflow.inference.stacks.enhance_and_combine`; a file is missing, or there is a spacing to bring
        scans back to.
    """
    if options["acquired_spacing"] is not None:
        raise InputError(
            "--acquired-spacing (acquired_spacing)",
            found=f"{options['acquired_spacing']!r} with several scans to combine",
            expected="scans as they were acquired",
            next_step="Combine without it, or enhance the interpolated scan alone.",
        )
    for scan in scans:  # before the first one is enhanced, which takes minutes
        if not isinstance(scan, SpatialImage) and not os.path.exists(scan):
            check_scan(scan)
    names, sidecars = [], []
    for number, scan in enumerate(scans, start=1):
        name = (
            scan.get_filename() if isinstance(scan, SpatialImage) else os.fspath(scan)
        ) or f"image {number}"
        beside = sidecar_name(Path(name))
        given = options["sidecar"] if number == 1 else None
        if given is None and beside.is_file():
            given = drop_invalid_fields(read_fields(beside), beside)[0]
        names.append(name)
        sidecars.append(given or {})
    edge = options["voxel_size"]

    def one(number: int) -> tuple[nib.Nifti1Image, EnhancedScan]:
        # On the network's own grid, so that each volume is interpolated once.
        own = {**options, "sidecar": sidecars[number], "voxel_size": "native"}
        return _enhance_any(scans[number], own)

    voxel_mm = None if isinstance(edge, str) else edge
    return enhance_and_combine(names, sidecars, one, voxel_mm=voxel_mm, report=options["report"])


def _enhance_any(
    scan: str | os.PathLike | SpatialImage, options: Mapping[str, Any]
) -> tuple[nib.Nifti1Image, EnhancedScan]:
    """Enhance a file or an image; also return it, checked."""
    if isinstance(scan, SpatialImage):
        return _enhance_in_memory(scan, options)
    checked = check_scan(scan)
    return checked, enhance_image(checked, **options)


def _enhance_in_memory(
    image: SpatialImage, options: Mapping[str, Any]
) -> tuple[nib.Nifti1Image, EnhancedScan]:
    """Enhance an image, after the same checks as for a file."""
    with TemporaryDirectory() as folder:
        path = os.path.join(folder, "scan.nii")
        nib.save(nib.Nifti1Image.from_image(image), path)
        try:
            checked = check_scan(path)
            return checked, enhance_image(checked, **options)
        except InputError as fault:
            if str(fault.path) != path:
                raise
            fault.path = image.get_filename() or "image in memory"
            raise type(fault)(**vars(fault)) from None


def enhance_image(
    image: nib.Nifti1Image,
    *,
    sidecar: Mapping[str, Any] | None = None,
    model: str | os.PathLike | None = None,
    contrast: str = "T1w",
    device: str = "cpu",
    precision: str | None = None,
    num_threads: int = 1,
    skull_stripped: bool | None = None,
    force: bool = False,
    max_memory_gb: float | None = None,
    tiling: str = "auto",
    slice_intensity: str = "auto",
    mirror: bool = False,
    keep_white_matter: bool = True,
    data_consistency: bool = False,
    voxel_size: float | str = EnhanceSettings.voxel_size,
    acquired_spacing: float | None = EnhanceSettings.acquired_spacing,
    acquired_axis: str | None = EnhanceSettings.acquired_axis,
    report: Callable[[str], None] | None = None,
) -> EnhancedScan:
    """Enhance a thick-slice scan.

    Parameters
    ----------
    image
        Three-dimensional scan (`iqtflow.image.validate.check_scan`); slices along any axis, any orientation.
    sidecar
        BIDS metadata of the scan.
    model, contrast
        As for `iqtflow.models.zoo.choose_model`.
    device, precision, num_threads, max_memory_gb, tiling
        See `iqtflow.inference.predict.enhance_volume`.
    slice_intensity
        "auto": correct odd and even slices of different intensity (`iqtflow.image.slice_intensity`); "keep":
        measure only.
    mirror
        Average each network's output with that of the left-right mirrored scan.
    keep_white_matter
        Scale the enhanced volume if its white matter differs from the scan's by more than on the model's
        evaluation scans (`iqtflow.inference.white_matter`).
    data_consistency
        Correct the enhanced volume so that it reproduces the slices of the scan within their noise
        (`iqtflow.inference.forward.make_consistent`).
    voxel_size
        "native": the plane of the scan is kept. A number: cubic voxels of this edge in mm. If the plane is
        coarser, it is resampled to them before the network; every other axis is resampled after the network,
        by cubic B-splines. So no axis is interpolated twice, unless the ratio is too far from the model's
        factor (`iqtflow.image.geometry.Upsampling.far`). The centre of the field of view stays in place.
    acquired_spacing, acquired_axis
        Bring an interpolated scan back to its slices first (`iqtflow.image.acquired_slices.back_to_slices`).
        Mask and residual are on the grid of these slices.
    skull_stripped
        Whether the scan shows the brain only; None: the sidecar decides, else the voxels.
    force
        Enhance a near-isotropic scan, too, and one whose slices are too far apart for its plane
        (`iqtflow.image.geometry.LARGEST_RATIO`).
    report
        Function that receives two lines before the networks run: device, model and slices; tiling and memory.

    Returns
    -------
    EnhancedScan

    Raises
    ------
    NothingToGain
        The scan is near-isotropic and `force` is False.
    InputError
        The scan was interpolated from thick slices and `acquired_spacing` is not given, or does not fit.
        There is no model for the scan, its slices are too far apart and `force` is False, its intensities
        cannot be used, or `voxel_size` is not allowed.
    """
    began = time.monotonic()
    voxel_size = _read_voxel_size(voxel_size)
    sidecar, notes = drop_invalid_fields(sidecar or {}, "sidecar")
    image, resolution, acquired = as_acquired(image, acquired_spacing, acquired_axis, force=force)
    interpolated = None if acquired else advise(resolution)
    geometry = find_slice_geometry(image, sidecar)
    if geometry.near_isotropic and not force:
        if interpolated:
            raise InputError(
                image.get_filename() or "scan",
                found=interpolated[0],
                expected="thick slices as acquired",
                next_step=interpolated[1],
            )
        raise NothingToGain(
            image.get_filename() or "scan",
            found=f"slices {geometry.spacing_mm:.3g} mm apart, {_by(geometry.inplane_mm)} mm in plane",
            expected="thick slices",
            next_step="There is nothing to gain along the slice axis, and nothing is written. Use --force "
            "(force=True) to enhance it anyway.",
        )
    if not force:
        require_ratio(geometry, voxel_size, image.get_filename() or "scan")
    path, upsampling = choose_model(geometry, model, contrast, voxel_size)
    networks = load_model(path)
    card = networks.card
    if report is not None:
        report(
            f"device {device}; model {card.name} (k = {card.k}, {card.n_members} network(s), "
            f"SHA-256 {networks.sha256[:12]}); slices along {AXIS_NAMES[geometry.axis]}, {geometry.source}"
        )

    laid = ReorientedScan(image, geometry.axis)
    if skull_stripped is None:
        skull_stripped = sidecar.get("SkullStripped")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        brain = find_brain_mask(
            laid.data, laid.affine, skull_stripped=skull_stripped, num_threads=num_threads
        )
    stripes = measure_slice_intensity(laid.data, brain.mask, laid.axis)
    corrected = stripes.striped and slice_intensity == "auto"
    if corrected:
        laid.data = equalise_slices(laid.data, laid.axis, stripes)
    scale = intensity_scale(laid.data[brain.mask])
    support = _support(laid.data, brain, laid.axis)
    # An empty slice is interpolated for the network, and set to 0 in the result.
    missing = empty_slices(laid.data, laid.axis)
    laid.data = interpolate_slices(laid.data, laid.axis, missing)

    slices, own = slices_last(laid.data, laid.affine, laid.axis)
    data, affine = slices, own
    tissue, _ = slices_last(brain.mask, laid.affine, laid.axis)
    if upsampling.inplane_mm is not None:
        data, affine = resample_inplane(slices, own, upsampling.inplane_mm)
        tissue = resample_inplane(tissue, own, upsampling.inplane_mm)[0] > 0.5
    left_right = 2 if laid.axis == 0 else 0  # in RAS orientation, after slices are put last
    result = enhance_volume(
        data,
        networks,
        scale=scale,
        device=device,
        precision=precision,
        num_threads=num_threads,
        max_memory_gb=max_memory_gb,
        tiling=tiling,
        mirror_axis=left_right if mirror else None,
        tissue=tissue,
        report=report,
    )

    reference = find_reference(card)
    usual = reference.get("white_matter_ratio") if reference is not None and keep_white_matter else None
    white = correct_white_matter(data, result.mean, tissue, usual)
    factor = np.float32(white.factor)
    error = None if result.std is None else result.std * factor
    thin = thin_affine(affine, upsampling.k)
    output = OutputGrid(laid, own, thin, result.mean.shape, voxel_size)
    if missing:
        tissue = tissue & ~np.isin(np.arange(data.shape[2]), missing)
    output.erase_outside(support, missing)
    compared = compare_with_scan(
        data,
        result.mean * factor,
        tissue,
        affine=affine,
        laid=laid,
        geometry=geometry,
        card=card,
        predicted_error=error,
        correct=data_consistency,
    )
    mean = output.image(compared.estimate)
    std = None if error is None else output.image(error)
    # Straight from the slices: neither is this one interpolated twice.
    spline = (
        output.image(np.clip(cubic_upsample(data, upsampling.k), 0, None))
        if output.native
        else output.image(slices, own)
    )
    notes += [str(w.message) for w in caught if issubclass(w.category, RuntimeWarning)]
    familiarity = None
    if reference is not None:
        values = measure_scan(
            laid.data,
            brain.mask,
            axis=laid.axis,
            voxel_mm=voxel_sizes(laid.affine).tolist(),
            k=card.k,
            pixel_mm=upsampling.inplane_mm,
        )
        familiarity = compare(values, reference, brain_found=brain.method != "head")
    details = {
        "SkullStripped": brain.skull_stripped,
        "UpsamplingFactor": upsampling.k,
        "SliceAxis": AXIS_NAMES[geometry.axis],
        "Units": "arbitrary",
        "IntensityDescription": INTENSITIES,
        "VoxelSizeMm": [round(float(v), 4) for v in voxel_sizes(mean.affine)],
        "EffectiveResolutionMm": resolution.as_sidecar(),
        "AcquiredSpacing": None if acquired is None else acquired.as_sidecar(),
        "OutputGrid": output.as_sidecar(upsampling),
        "Geometry": {
            "SpacingMm": round(geometry.spacing_mm, 4),
            "ThicknessMm": round(geometry.thickness_mm, 4),
            "GapMm": round(geometry.gap_mm, 4),
            "InplaneMm": [round(v, 4) for v in geometry.inplane_mm],
            "Ratio": round(geometry.ratio, 3),
            "Source": geometry.source,
        },
        "Upsampling": {
            "Note": upsampling.note,
            "Ratio": round(upsampling.ratio, 3),
            "ResampledToMm": upsampling.inplane_mm,
        },
        "Model": {
            "Name": card.name,
            "SHA256": networks.sha256,
            "Members": card.n_members,
            "Contrast": card.contrast,
        },
        "BrainMask": {"Method": brain.method},
        "Uncertainty": None
        if result.std is None
        else as_sidecar(card, card.uncertainty(mirror=mirror), mirror=mirror),
        "SliceIntensity": stripes.as_sidecar(corrected=corrected),
        "IntensityScale": scale,
        "WhiteMatter": white.as_sidecar(),
        "OutOfDistribution": None if familiarity is None else familiarity.as_sidecar(),
        "DataConsistency": compared.fields,
        **result.details,
        "Seconds": round(time.monotonic() - began, 1),
        "PeakMemoryGB": round(peak_memory_gb(), 2),
        "PackageVersion": iqtflow.__version__,
        "Warnings": [
            *([familiarity.sentence()] if familiarity is not None and familiarity.unfamiliar else []),
            *image.extra.get("notes", ()),
            *(acquired.notes if acquired else ()),
            *([f"This is {interpolated[0]}. {interpolated[1]}"] if interpolated else []),
            *notes,
            *describe_slices(stripes, corrected=corrected),
            *geometry.notes,
            *result.warnings,
            *_warnings(data, laid.data[brain.mask], geometry, upsampling),
        ],
    }
    mask = laid.put_back(brain.mask.astype(np.uint8), laid.affine)
    return EnhancedScan(mean, std, spline, mask, compared.residual, details)


def _support(scan: np.ndarray, brain: BrainMask, axis: int) -> np.ndarray | None:
    """Region that a skull-stripped scan shows, and three voxels around it, slices last; None for other scans.

    The enhanced volume is set to 0 outside of it, so that it stays skull-stripped. The margin leaves room for
    the brain's edge within a thick slice, and for the ringing of the spline.
    """
    if brain.method != "nonzero":
        return None
    shown = ndimage.binary_dilation(brain.mask | (scan != 0), np.ones((3, 3, 3)), iterations=3)
    return slices_last(shown, np.eye(4), axis)[0]


def _warnings(
    data: np.ndarray, brain: np.ndarray, geometry: SliceGeometry, upsampling: Upsampling
) -> list[str]:
    """Return sentences about the scan that a user of the enhanced volume must know."""
    found, n_slices, wanted = [], data.shape[2], PAPER_PATCH // upsampling.k
    if upsampling.far and upsampling.inplane_mm is not None:
        found.append(
            f"Slice spacing is {upsampling.ratio:.1f} times the in-plane voxel size and the model was "
            f"trained for {upsampling.k}: the plane was resampled from {_by(geometry.inplane_mm)} to "
            f"{_by((upsampling.inplane_mm,) * 2)} mm."
        )
    if n_slices < wanted:
        found.append(f"The scan has {n_slices} slices, fewer than the {wanted} of a training patch.")
    share = float(np.mean(brain < 0))
    if share > NEGATIVE_SHARE:
        found.append(
            f"{share:.0%} of the brain's voxels are below 0; models are trained on magnitude images (>= 0)."
        )
    return found


def _read_voxel_size(value: float | str) -> float | str:
    item = SETTINGS["enhance"]["voxel_size"]
    try:
        return item.convert(value)
    except ValueError:
        raise InputError(
            "voxel_size", found=f"{value!r}", expected=item.expected_one, next_step="Correct this argument."
        ) from None


def _by(sizes: tuple[float, float]) -> str:
    return f"{sizes[0]:.3g} x {sizes[1]:.3g}"
