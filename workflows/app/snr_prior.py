"""The application's calibration: scans measured one by one (participant level), a prior fitted (group)."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from nipype.pipeline.engine import Workflow

from iqtflow.bids import Scan
from iqtflow.bids.names import measurement_name
from iqtflow.config import Settings
from iqtflow.utils.errors import EXIT_OK, UsageError
from iqtflow.workflows.execution.run import find_lost, report_failures, run_graph

#: Folder under the derivatives, which validators are told to leave alone.
FOLDER = "calibration"
ENDING = "_snr.json"


def build_calibrate_graph(scans: Sequence[Scan], settings: Settings, *, name: str) -> Workflow:
    """Build the graph that measures the tissue SNR of low-field scans and stores it, one JSON file for each.

    Parameters
    ----------
    scans
        Low-field scans.
    settings
        All settings.
    name
        Name of the workflow.
    """
    from iqtflow.image.metadata import skull_stripped
    from iqtflow.workflows.app.collect import engine_of
    from iqtflow.workflows.app.participant import workflow_name
    from iqtflow.workflows.calibrate import init_calibrate_wf
    from iqtflow.workflows.execution.memory import state_memory

    workflow = Workflow(name=name)
    for scan in scans:
        one = init_calibrate_wf(
            name=workflow_name(scan),
            engine=engine_of(scan, settings),
            sampling_mm=settings.segmentation.sampling_mm,
            derivatives_dir=settings.segmentation.derivatives,
            seed=settings.run.seed,
            omp_nthreads=settings.run.omp_nthreads,
        )
        state_memory(one, scan)
        given = one.get_node("inputnode").inputs
        given.in_file, given.sidecar = os.fspath(scan.path), dict(scan.sidecar)
        given.label, given.source = scan.name, scan.uri
        given.skull_stripped = skull_stripped(scan.sidecar)
        one.connect(one.get_node("outputnode"), "snr", _sink(settings, measurement_name(scan)), "in_file")
        workflow.add_nodes([one])
    return workflow


def build_fit_graph(measurements: Sequence[Path], settings: Settings, *, name: str) -> Workflow:
    """Build the graph that fits the prior to measured scans and stores it with its picture.

    Parameters
    ----------
    measurements
        JSON files of the participant level.
    settings
        All settings.
    name
        Name of the workflow.
    """
    from iqtflow.workflows.calibrate import init_fit_prior_wf

    workflow = init_fit_prior_wf(name=name)
    workflow.get_node("inputnode").inputs.measurements = [os.fspath(path) for path in measurements]
    for field, file in (("prior", "prior.json"), ("figure", "prior.png")):
        sink = _sink(settings, Path(FOLDER, file), name=f"sink_{field}")
        workflow.connect(workflow.get_node("outputnode"), field, sink, "in_file")
    return workflow


def run_group(settings: Settings, logs: Path) -> int:
    """Fit the prior, say what it is and what is to be known about it; returns the exit code.

    Raises
    ------
    UsageError
        The participant level has measured no scan (of a subject asked for).
    """
    from iqtflow.workflows.app.base import workflow_prefix

    folder = settings.paths.output_dir / FOLDER
    measurements = find_measurements(folder, settings.run.participant_labels, settings.run.session_labels)
    workflow = build_fit_graph(measurements, settings, name=f"{workflow_prefix(settings)}_group")
    failures = run_graph(workflow, settings, logs)
    if failures:
        return report_failures(failures)
    lost = find_lost(settings.paths.output_dir, [Path(FOLDER, "prior.json"), Path(FOLDER, "prior.png")])
    if lost is not None:
        raise lost
    prior = json.loads((folder / "prior.json").read_text(encoding="utf-8"))
    mean = prior["mean"]
    print(f"iqtflow: prior {folder / 'prior.json'}, for --snr-prior; picture {folder / 'prior.png'}")
    print(f"  mean SNR WM {mean[0]:.1f}, GM {mean[1]:.1f}; {prior['source']}")
    for note in prior["notes"]:
        print(f"  note: {note}", flush=True)
    return EXIT_OK


def find_measurements(folder: Path, subjects: Sequence[str] = (), sessions: Sequence[str] = ()) -> list[Path]:
    """Return the measurements of subjects and sessions, sorted by name; all of them when none is asked for.

    Raises
    ------
    UsageError
        There is none, or none of a subject or session asked for.
    """
    found = sorted(folder.glob(f"*{ENDING}"))
    for entity, labels in (("sub", subjects), ("ses", sessions)):
        wanted = {f"{entity}-{label}" for label in labels}
        if wanted:
            found = [path for path in found if wanted & set(path.name.split("_"))]
            missing = sorted(wanted - {part for path in found for part in path.name.split("_")})
            if missing:
                raise _nothing_measured(folder, f"no measurement of {', '.join(missing)}")
    if not found:
        raise _nothing_measured(folder, "no measured scan")
    return found


def _sink(settings: Settings, path: Path, *, name: str = "sink"):
    from nipype.pipeline.engine import Node

    from iqtflow.interfaces.sink import SinkDerivative

    sink = SinkDerivative(base_directory=os.fspath(settings.paths.output_dir), name=os.fspath(path))
    return Node(sink, name=name, mem_gb=0.3)


def _nothing_measured(folder: Path, found: str) -> UsageError:
    return UsageError(
        folder,
        found=found,
        expected=f"files *{ENDING} of the participant level",
        next_step="Run --mode calibrate at participant level on low-field scans first.",
    )
