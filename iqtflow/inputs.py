"""The scans that the settings of a run ask for."""

from __future__ import annotations

from collections.abc import Iterable

from iqtflow.bids import Scan, find_scans
from iqtflow.config import Settings


def find_inputs(settings: Settings, subjects: Iterable[str] | None = None) -> list[Scan]:
    """Find the scans of a run.

    Parameters
    ----------
    settings
        All settings.
    subjects
        Labels that are wanted in the place of those in the settings.

    Raises
    ------
    UsageError
        As `iqtflow.bids.find_scans`, or the filter file cannot be worked with.
    """
    from iqtflow.bids.index import read_filters

    run, inputs = settings.run, settings.inputs
    contrast = settings.enhance.contrast if run.mode == "enhance" else "T1w"
    return find_scans(
        settings.paths.bids_dir,
        subjects=run.participant_labels if subjects is None else subjects,
        sessions=run.session_labels,
        suffix=contrast,
        filters=read_filters(inputs.filter_file, contrast) if inputs.filter_file else None,
        database_dir=inputs.database_dir,
    )
