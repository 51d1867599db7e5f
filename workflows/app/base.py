"""The application: from settings to derivatives and an exit code."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import iqtflow
from iqtflow.bids import LeftOut, Scan, derivative_name, write_dataset_description
from iqtflow.bids.names import sidecar_name
from iqtflow.cli.places import stored_names
from iqtflow.config import Settings, write_settings
from iqtflow.reports.run_summary import Outcome, outcome_table
from iqtflow.utils.errors import EXIT_OK, EXIT_SUBJECT_FAILED, IQTFlowError, exit_code_of_failures, printable
from iqtflow.utils.files import remove_leftovers
from iqtflow.workflows.app.collect import check_engines, engine_of, find_inputs, list_inputs
from iqtflow.workflows.app.plan import choose_scans, count_left_out
from iqtflow.workflows.execution.run import (
    Failure,
    configure_engine,
    describe,
    find_lost,
    report_failures,
    run_graph,
)
from iqtflow.workflows.execution.scheduler import collector_off


def run_workflow(settings: Settings) -> int:
    """Do what the settings ask for.

    Parameters
    ----------
    settings
        Complete settings; paths exist and are writable.

    Returns
    -------
    int
        One of `iqtflow.utils.errors.EXIT_CODES`.

    Raises
    ------
    UsageError
        The data set as a whole cannot be worked with.
    """
    run, paths = settings.run, settings.paths
    os.makedirs(paths.work_dir, exist_ok=True)
    write_dataset_description(paths.output_dir, source_dir=paths.bids_dir)
    write_settings(settings, paths.work_dir / "settings.toml")
    remove_leftovers(paths.output_dir)
    # Where $HOME cannot be written (docker -u, Apptainer) matplotlib warns, and is slow, in every process.
    os.environ.setdefault("MPLCONFIGDIR", os.fspath(paths.work_dir / "matplotlib"))
    logs = configure_engine(settings)
    code = EXIT_OK
    for level in run.levels:
        if level == "group":
            if run.mode == "calibrate":
                from iqtflow.workflows.app.snr_prior import run_group
            else:
                from iqtflow.workflows.app.group import run_group

            _cite(settings, "group")
            failed, left_out = run_group(settings, logs), False
        else:
            failed, left_out = _run_participants(settings, logs)
        code = max(code, failed, EXIT_SUBJECT_FAILED if left_out else EXIT_OK)
        if failed != EXIT_OK:  # a file that was left out is no subject that the group level lacks
            break
    return code


def write_boilerplate(settings: Settings) -> int:
    """Write the citation of a run without running it; returns the exit code.

    Raises
    ------
    UsageError
        As `run_workflow`.
    """
    paths = settings.paths
    write_dataset_description(paths.output_dir, source_dir=paths.bids_dir)
    for level in settings.run.levels:
        scans = choose_scans(find_inputs(settings), settings).chosen if level == "participant" else ()
        print(f"iqtflow: {_cite(settings, level, scans)}", flush=True)
    return EXIT_OK


def _cite(settings: Settings, level: str, scans: Sequence[Scan] = ()) -> Path:
    """Write what a level does, and whom to cite, into the logs."""
    from iqtflow.reports.citation import write_citation
    from iqtflow.reports.methods import describe_run

    engines = [] if settings.run.mode == "enhance" else [engine_of(s, settings) for s in scans]
    return write_citation(settings.paths.output_dir, describe_run(settings, level, engines))


def workflow_prefix(settings: Settings) -> str:
    """Name of the top workflow. The version is part of it: nipype's cache looks at inputs, not at code."""
    return f"iqtflow_{re.sub(r'[^0-9a-zA-Z]+', '_', iqtflow.__version__)}_{settings.run.mode}"


def _run_participants(settings: Settings, logs: os.PathLike) -> tuple[int, bool]:
    """Process the scans; return the exit code of those that failed, and whether files were left out."""
    scans, left_out = list_inputs(settings)
    plan = choose_scans(scans, settings)
    chosen, skipped = plan.chosen, plan.skipped
    for scan in scans:
        for warning in scan.warnings:
            print(f"{scan.path}: note: {warning}", flush=True)
    for scan, why in skipped:
        print(f"{scan.path}: skipped: {why}", flush=True)
    for left in left_out:
        print(left, flush=True)
    if chosen and settings.run.mode != "enhance":
        engine = check_engines(chosen, settings)
        print(f"iqtflow: tissue maps: {engine}", flush=True)
    failures = _run_chosen(settings, logs, chosen, skipped, left_out) if chosen else []
    failed, others = _by_scan(failures, chosen)
    if failures and settings.run.stop_on_first_crash:  # nobody knows of the rest how far it came
        for path, failure in failed.items():
            print(describe(path, failure), flush=True)
        report_failures(others)
        print("iqtflow: stopped at the first failure; the same command goes on from here", flush=True)
        return exit_code_of_failures(failure.exit_code for failure in failures), bool(left_out)
    for scan in chosen:
        lost = find_lost(settings.paths.output_dir, stored_names(scan, settings))
        if lost is not None and scan.path not in failed:
            failed[scan.path] = _as_failure("output", lost)
    lost = find_lost(settings.paths.output_dir, ["dataset_description.json"])
    if lost is not None:
        others.append(_as_failure("output", lost))
    defect: Exception | None = None
    try:
        if settings.run.mode != "calibrate":
            _write_pages(settings, chosen, skipped, failed, left_out)
    except IQTFlowError as fault:
        others.append(_as_failure("pages", fault))
    except Exception as fault:  # whatever happens to pages, who failed and why is told
        defect = fault
    _summarise(settings, chosen, skipped, failed, left_out)
    report_failures(others)
    if defect is not None:
        raise defect
    failures = [*failures, *failed.values(), *others]
    return exit_code_of_failures(failure.exit_code for failure in failures), bool(left_out)


def _as_failure(part: str, fault: IQTFlowError) -> Failure:
    return Failure(part, str(fault), None, fault.exit_code, crashed=False)


def _run_chosen(
    settings: Settings,
    logs: os.PathLike,
    chosen: Sequence[Scan],
    skipped: Sequence[tuple[Scan, str]],
    left_out: Sequence[LeftOut],
) -> list[Failure]:
    """Build the graph of the chosen scans and run it."""
    from iqtflow.workflows.app.participant import build_enhance_graph, build_prepare_graph
    from iqtflow.workflows.app.snr_prior import build_calibrate_graph

    _cite(settings, "participant", chosen)
    name = f"{workflow_prefix(settings)}_participant"
    with collector_off():
        if settings.run.mode == "enhance":
            graph = build_enhance_graph(chosen, settings, name=name, skipped=skipped, left_out=left_out)
        elif settings.run.mode == "calibrate":
            graph = build_calibrate_graph(chosen, settings, name=name)
        else:
            graph = build_prepare_graph(chosen, settings, name=name, skipped=skipped, left_out=left_out)
        return run_graph(graph, settings, logs)


def _by_scan(
    failures: Sequence[Failure], scans: Sequence[Scan]
) -> tuple[dict[os.PathLike, Failure], list[Failure]]:
    """The first failure of each scan, and failures that are no scan's (a page's, say); a failed node's full
    name holds its scan's sub-workflow.
    """
    from iqtflow.workflows.app.participant import workflow_name

    names = {workflow_name(scan): scan.path for scan in scans}
    found: dict[os.PathLike, Failure] = {}
    others = []
    for failure in failures:
        owners = [names[part] for part in failure.node.split(".") if part in names]
        if owners:
            found.setdefault(owners[0], failure)
        else:
            others.append(failure)
    return found, others


def _write_pages(
    settings: Settings,
    chosen: Sequence[Scan],
    skipped: Sequence[tuple[Scan, str]],
    failed: dict[os.PathLike, Failure],
    left_out: Sequence[LeftOut],
) -> None:
    """Pages of subjects with a skipped or failed scan (the graph writes those of subjects whose scans all
    went well), and the index.
    """
    from iqtflow.interfaces.report import write_pages
    from iqtflow.workflows.app.participant import left_out_records, skipped_records

    write_pages(
        settings.paths.output_dir,
        scans=[
            *(
                {
                    "subject": s.subject,
                    "input": os.fspath(s.path),
                    "status": "failed",
                    "message": failed[s.path].message,
                    "log": "" if failed[s.path].log is None else os.fspath(failed[s.path].log),
                }
                if s.path in failed
                else {"subject": s.subject, "input": os.fspath(s.path), **stored_record(s, settings)}
                for s in chosen
            ),
            *skipped_records(skipped),
            *left_out_records(left_out),
        ],
    )


def stored_record(scan: Scan, settings: Settings) -> dict[str, str]:
    """Where the results of a scan that went well are stored, as its page is told."""
    output = os.fspath(settings.paths.output_dir / derivative_name(scan, desc="iqt"))
    if settings.run.mode == "enhance":
        return {"status": "enhanced", "output": output}
    return {"status": "prepared", "stem": output.rpartition("_desc-iqt")[0]}


def _outcomes(
    settings: Settings,
    chosen: Sequence[Scan],
    skipped: Sequence[tuple[Scan, str]],
    failed: dict[os.PathLike, Failure],
    *,
    verb: str,
) -> list[Outcome]:
    """What became of each scan, for the table that ends the run."""
    made = {"enhance": {"desc": "iqt"}, "train": {"label": "GM", "suffix": "probseg"}}.get(settings.run.mode)

    def sidecar(scan: Scan) -> Path | None:
        if made is None:
            return None
        return sidecar_name(settings.paths.output_dir / derivative_name(scan, **made))

    return [
        *(
            Outcome(s.name, "failed", failed[s.path].message.removeprefix(f"{s.path}: "))
            if s.path in failed
            else Outcome(s.name, verb, sidecar=sidecar(s))
            for s in chosen
        ),
        *(Outcome(s.name, "skipped", why) for s, why in skipped),
    ]


def _summarise(
    settings: Settings,
    chosen: Sequence[Scan],
    skipped: Sequence[tuple[Scan, str]],
    failed: dict[os.PathLike, Failure],
    left_out: Sequence[LeftOut],
) -> None:
    """The last lines on the terminal: what was done, and who failed, why, and where the log is."""
    done = len(chosen) - len(failed)
    verb = {"enhance": "enhanced", "train": "prepared", "calibrate": "measured"}[settings.run.mode]
    table = outcome_table(_outcomes(settings, chosen, skipped, failed, verb=verb))
    print(f"\n{table}\n" if table else "", flush=True)
    print(
        f"iqtflow: {done} {verb}, {len(skipped)} skipped, {len(failed)} failed{count_left_out(left_out)}; "
        f"results in {settings.paths.output_dir}",
        flush=True,
    )
    for path, failure in failed.items():
        print(describe(path, failure), flush=True)
    for left in left_out:
        print(f"  left out: {printable(left.path)}\n    why: {left.reason}", flush=True)
