"""The scans that settings ask for, what is wrong with them as BIDS, and what makes their tissue maps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from iqtflow.bids import Listing, Scan, list_scans
from iqtflow.config import Settings
from iqtflow.segmentation.select import EngineChoice, check_engine, engine_for

#: What the command line has found, for the run right after it.
_kept: dict[tuple, Listing] = {}


def keep_inputs(settings: Settings) -> Listing:
    """List the scans of a run, and keep them for the next call of `list_inputs` with such settings: a large
    data set takes seconds to look through.
    """
    _kept.clear()  # what an earlier command in this process has kept is not to be believed
    listing = list_inputs(settings)
    _kept[_key(settings)] = listing
    return listing


def find_inputs(settings: Settings, subjects: Iterable[str] | None = None) -> list[Scan]:
    """Find the scans of a run: `list_inputs` without what it leaves out."""
    return list_inputs(settings, subjects).scans


def list_inputs(settings: Settings, subjects: Iterable[str] | None = None) -> Listing:
    """List the scans of a run, and the files that look like scans and cannot be processed.

    Parameters
    ----------
    settings
        All settings.
    subjects
        Labels that are wanted in the place of those in the settings.

    Raises
    ------
    UsageError
        As `iqtflow.bids.list_scans`, or the filter file cannot be worked with.
    """
    from iqtflow.bids.index import read_filters

    if subjects is None and (kept := _kept.pop(_key(settings), None)) is not None:
        return kept
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


def _key(settings: Settings) -> tuple:
    run = settings.run
    labels = (run.participant_labels, run.session_labels)
    return settings.paths.bids_dir, run.mode, labels, settings.enhance.contrast, settings.inputs


def engine_of(scan: Scan, settings: Settings) -> EngineChoice:
    """Choose what makes the tissue maps of a scan, as `iqtflow.segmentation.select.engine_for`."""
    return engine_for(scan.path, settings.segmentation, name=scan.name)


def check_engines(scans: Sequence[Scan], settings: Settings) -> str:
    """Make sure that there is an engine for scans, and describe it, as
    `iqtflow.segmentation.select.check_engine`.
    """
    paths = [scan.path for scan in scans]
    return check_engine(paths, settings.segmentation, names=[scan.name for scan in scans])


def look_over(settings: Settings, listing: Listing) -> None:
    """Say in a few lines what is wrong with the data set as BIDS, and what the run does with such files.

    Raises
    ------
    UsageError
        What describes it as a whole cannot be read: it may be anything.
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
