"""The scans of a run: which they are, their headers, faults of the data set, and what makes tissue maps."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from iqtflow.bids import Listing, Scan, list_scans
from iqtflow.config import AXES, Settings
from iqtflow.segmentation.select import EngineChoice, check_engine, engine_for

if TYPE_CHECKING:
    import nibabel as nib

    from iqtflow.image.geometry import SliceGeometry
    from iqtflow.image.resolution import Resolution


def list_inputs(settings: Settings, subjects: Iterable[str] | None = None) -> Listing:
    """List the scans of a run, and the files that look like scans and cannot be processed.

    Parameters
    ----------
    settings
        All settings.
    subjects
        Labels of subjects; None takes those of the settings.

    Returns
    -------
    Listing
        Scans, and files that are left out.

    Raises
    ------
    UsageError
        There are no scans (see `iqtflow.bids.list_scans`), or the filter file is not valid.
    """
    from iqtflow.bids.index import read_filters

    run, inputs = settings.run, settings.inputs
    contrast = settings.enhance.contrast if run.mode == "enhance" else "T1w"
    return list_scans(
        settings.paths.bids_dir,
        subjects=run.participant_labels if subjects is None else subjects,
        sessions=run.session_labels,
        suffix=contrast,
        filters=read_filters(inputs.filter_file, contrast) if inputs.filter_file else None,
        database_dir=inputs.database_dir,
    )


def peek(path: str | os.PathLike) -> nib.Nifti1Image:
    """Return an image whose header is read and checked, and whose voxels are not. Do not change it.

    The header is read once, and again when the file has changed: planning needs it several times.

    Raises
    ------
    InputError
        The header is not valid; see `iqtflow.image.validate.check_scan`.
    """
    try:
        changed = os.stat(path).st_mtime_ns
    except OSError:
        changed = 0  # `peek_nifti` reports it
    return _peek(os.fspath(path), changed)


@lru_cache(maxsize=100_000)
def _peek(path: str, _: int) -> nib.Nifti1Image:
    from iqtflow.image.nifti_file import peek_nifti  # with numpy, for which the parser need not wait

    return peek_nifti(path)


def geometry_of(scan: Scan, settings: Settings) -> SliceGeometry:
    """Return the slices of a scan; with ``--acquired-spacing``, those that it is brought back to.

    Raises
    ------
    InputError
        As `peek`, or such slices do not fit the scan.

    :meta private:
    """
    from iqtflow.image.acquired_slices import choose_axis, slice_grid
    from iqtflow.image.geometry import find_slice_geometry

    image, choice = peek(scan.path), settings.enhance
    if settings.run.mode == "enhance" and choice.acquired_spacing is not None:
        stated = choice.acquired_axis
        axis = AXES.index(stated) if stated else choose_axis(scan.path, None, resolution_of(scan.path))
        image = slice_grid(image, choice.acquired_spacing, axis)
    return find_slice_geometry(image, scan.sidecar)


def resolution_of(path: str | os.PathLike) -> Resolution:
    """Measure the effective resolution of a scan; once, and again when the file has changed.

    Raises
    ------
    InputError
        As `iqtflow.image.validate.check_scan`.
    """
    return _resolution_of(os.fspath(path), os.stat(path).st_mtime_ns)


@lru_cache(maxsize=100_000)
def _resolution_of(path: str, _: int) -> Resolution:
    import numpy as np

    from iqtflow.image.resolution import measure_resolution
    from iqtflow.image.validate import check_scan

    image = check_scan(path)
    return measure_resolution(np.asarray(image.dataobj), image.affine)


def engine_of(scan: Scan, settings: Settings) -> EngineChoice:
    """Choose what makes the tissue maps of a scan, as `iqtflow.segmentation.select.engine_for`."""
    return engine_for(scan.path, settings.segmentation, name=scan.name)


def check_engines(scans: Sequence[Scan], settings: Settings) -> str:
    """Check that there is an engine for scans, and describe it, as
    `iqtflow.segmentation.select.check_engine`.
    """
    paths = [scan.path for scan in scans]
    return check_engine(paths, settings.segmentation, names=[scan.name for scan in scans])


def look_over(settings: Settings, listing: Listing) -> None:
    """Print what is not valid BIDS in the data set, and what the run does with such files.

    Raises
    ------
    UsageError
        ``dataset_description.json`` cannot be read.
    """
    from iqtflow.bids.hcp import is_hcp
    from iqtflow.bids.validation import summarise, validate

    bids_dir = settings.paths.bids_dir
    if is_hcp(bids_dir):
        return
    labels = settings.run.participant_labels
    faults, notes = validate(bids_dir, labels)
    for line in [*notes, *summarise(faults, bids_dir, labels, listing)]:
        print(f"iqtflow: {line}", flush=True)
