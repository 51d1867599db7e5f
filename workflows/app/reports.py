"""Pages from what earlier runs have left, without a graph."""

from __future__ import annotations

from iqtflow.config import Settings
from iqtflow.utils.errors import EXIT_OK, InputError, UsageError


def write_reports(settings: Settings) -> int:
    """Write all pages of the output folder anew, or those of the participants asked for; returns the exit
    code.

    Raises
    ------
    UsageError
        There is nothing to make pages of.
    """
    from iqtflow.reports.assemble.index import write_index_page
    from iqtflow.reports.assemble.rebuild import find_records, rebuild
    from iqtflow.reports.assemble.subject import write_subject_page

    output, labels = settings.paths.output_dir, settings.run.participant_labels
    try:
        if labels:
            records = {label: find_records(output, label) for label in labels}
            missing = [f"sub-{label}" for label, found in records.items() if not found]
            if missing:
                raise UsageError(
                    output,
                    found=f"nothing of {', '.join(missing)}",
                    expected="output of an earlier run",
                    next_step="Run without --reports-only first.",
                )
            for label, found in records.items():
                write_subject_page(output, label, found)
            index = write_index_page(output, labels)
        else:
            index = rebuild(output)
    except UsageError:
        raise
    except InputError as fault:
        raise UsageError(
            fault.path, found=fault.found, expected=fault.expected, next_step=fault.next_step
        ) from fault
    print(f"iqtflow: pages {index}", flush=True)
    return EXIT_OK
