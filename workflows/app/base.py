"""What the command does with complete settings: run the analysis levels, or write only pages or citation."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import iqtflow
from iqtflow.bids import Listing, Scan, write_dataset_description
from iqtflow.config import Settings, write_settings
from iqtflow.utils.errors import EXIT_OK, EXIT_SUBJECT_FAILED, InputError, UsageError
from iqtflow.utils.files import remove_leftovers
from iqtflow.workflows.app.collect import engine_of, list_inputs
from iqtflow.workflows.app.made_with import describe
from iqtflow.workflows.app.participant import run_participants
from iqtflow.workflows.app.plan import choose_scans
from iqtflow.workflows.execution.run import configure_engine


def run_workflow(settings: Settings, listing: Listing | None = None) -> int:
    """Run the analysis levels that the settings ask for, one after the other.

    Parameters
    ----------
    settings
        Complete settings; paths exist and can be written.
    listing
        The scans of the run; None lists them.

    Returns
    -------
    int
        One of `iqtflow.utils.errors.EXIT_CODES`.

    Raises
    ------
    UsageError
        The data set as a whole cannot be processed.
    """
    run, paths = settings.run, settings.paths
    os.makedirs(paths.work_dir, exist_ok=True)
    made_with = [describe(settings, level) for level in run.levels]
    write_dataset_description(paths.output_dir, source_dir=paths.bids_dir, made_with=made_with)
    write_settings(settings, paths.work_dir / "settings.toml")
    remove_leftovers(paths.output_dir)
    # matplotlib needs a folder that it can write. In a container $HOME often is not.
    os.environ.setdefault("MPLCONFIGDIR", os.fspath(paths.work_dir / "matplotlib"))
    configure_engine(settings)
    code = EXIT_OK
    for level in run.levels:
        # The package version is part of the name: nipype's cache compares inputs, not code.
        version = re.sub(r"[^0-9a-zA-Z]+", "_", iqtflow.__version__)
        name = f"iqtflow_{version}_{run.mode}_{level}"
        if level == "participant":
            plan = choose_scans(listing or list_inputs(settings), settings)
            if plan.chosen:
                _cite(settings, level, plan.chosen)
            failed = run_participants(plan, settings, name=name)
            code = max(code, EXIT_SUBJECT_FAILED if plan.left_out else EXIT_OK)
        else:
            if run.mode == "calibrate":
                from iqtflow.workflows.app.snr_prior import run_group
            elif settings.train.cross_validation is not None:
                from iqtflow.workflows.app.cross_validation import run_group
            else:
                from iqtflow.workflows.app.group import run_group

            _cite(settings, level)
            failed = run_group(settings, name=name)
        code = max(code, failed)
        if failed != EXIT_OK:  # files that were left out do not stop the group level
            break
    return code


def write_boilerplate(settings: Settings, listing: Listing) -> int:
    """Write the citation of a run without running it; return the exit code."""
    write_dataset_description(settings.paths.output_dir, source_dir=settings.paths.bids_dir)
    for level in settings.run.levels:
        scans = choose_scans(listing, settings).chosen if level == "participant" else ()
        print(f"iqtflow: {_cite(settings, level, scans)}", flush=True)
    return EXIT_OK


def write_reports(settings: Settings) -> int:
    """Write all pages of the output folder again, or those of the participants asked for; return the exit
    code.

    Raises
    ------
    UsageError
        The folder holds no results to make pages of, or ``ratings.tsv`` has a line that cannot be used.
    """
    from iqtflow.reports.assemble.index import rebuild, write_index_page
    from iqtflow.reports.assemble.subject import write_subject_page
    from iqtflow.reports.ratings import check_ratings
    from iqtflow.reports.record import find_records

    output, labels = settings.paths.output_dir, settings.run.participant_labels
    viewer_mb = settings.run.page_viewer_mb
    try:
        check_ratings(output)
        records = {label: find_records(output, label) for label in labels}
        missing = [f"sub-{label}" for label, found in records.items() if not found]
        if missing:
            raise InputError(
                output,
                found=f"nothing of {', '.join(missing)}",
                expected="output of an earlier run",
                next_step="Run without --reports-only first.",
            )
        for label, found in records.items():
            write_subject_page(output, label, found, viewer_mb=viewer_mb)
        index = write_index_page(output, labels) if labels else rebuild(output, viewer_mb=viewer_mb)
    except InputError as fault:
        raise UsageError(
            fault.path, found=fault.found, expected=fault.expected, next_step=fault.next_step
        ) from fault
    print(f"iqtflow: pages {index}", flush=True)
    return EXIT_OK


def _cite(settings: Settings, level: str, scans: Sequence[Scan] = ()) -> Path:
    """Write what a level does, and which papers to cite, into the folder of logs."""
    from iqtflow.reports.methods import describe_run, write_citation

    engines = [] if settings.run.mode == "enhance" else [engine_of(s, settings) for s in scans]
    return write_citation(settings.paths.output_dir, describe_run(settings, level, engines))
