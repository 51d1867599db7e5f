"""The group level of calibration: a prior of the SNR, fitted to all scans that were measured."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from iqtflow.bids.names import output_name
from iqtflow.config import Settings
from iqtflow.utils.errors import EXIT_OK, UsageError
from iqtflow.workflows.app.graphs import sink_node
from iqtflow.workflows.calibrate import init_fit_prior_wf
from iqtflow.workflows.execution.run import find_lost, report_failures, run_graph


def run_group(settings: Settings, *, name: str) -> int:
    """Fit the prior and print it with its notes; return the exit code.

    Parameters
    ----------
    settings
        All settings.
    name
        Name of the top workflow.

    Raises
    ------
    UsageError
        The participant level has measured no scan (of a subject asked for).
    """
    from iqtflow.reports.assemble.calibration import write_calibration_page
    from iqtflow.reports.scanner_table import calibration_tables

    output, run = settings.paths.output_dir, settings.run
    prior, figure = output_name("prior"), output_name("prior_figure")
    measured = find_measurements(output / prior.parent, run.participant_labels, run.session_labels)
    workflow = init_fit_prior_wf(name=name)
    workflow.get_node("inputnode").inputs.measurements = [os.fspath(path) for path in measured]
    for field, path in (("prior", prior), ("figure", figure)):
        sink = sink_node(field, settings, path)
        workflow.connect(workflow.get_node("outputnode"), field, sink, "in_file")
    failures = run_graph(workflow, settings)
    if failures:
        return report_failures(failures)
    lost = find_lost(output, [prior, figure])
    if lost is not None:
        raise lost
    fitted = json.loads((output / prior).read_text(encoding="utf-8"))
    print(calibration_tables(fitted))
    print(f"iqtflow: prior {output / prior}, for --snr-prior; picture {output / figure}", flush=True)
    # Last: a page that cannot be written costs no other result.
    print(f"iqtflow: open {write_calibration_page(output)} in a browser", flush=True)
    return EXIT_OK


def find_measurements(folder: Path, subjects: Sequence[str] = (), sessions: Sequence[str] = ()) -> list[Path]:
    """Return the measurements of subjects and sessions, sorted by name; all of them when none is asked for.

    Raises
    ------
    UsageError
        There is none, or none of a subject or session asked for.
    """
    found, missing = sorted(folder.glob("*_snr.json")), []
    for entity, labels in (("sub", subjects), ("ses", sessions)):
        wanted = {f"{entity}-{label}" for label in labels}
        if wanted and not missing:
            found = [path for path in found if wanted & set(path.name.split("_"))]
            missing = sorted(wanted - {part for path in found for part in path.name.split("_")})
    if missing or not found:
        raise UsageError(
            folder,
            found=f"no measurement of {', '.join(missing)}" if missing else "no measured scan",
            expected="files *_snr.json of the participant level",
            next_step="Run --mode calibrate at participant level on low-field scans first.",
        )
    return found
