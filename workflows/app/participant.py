"""The participant level: run the graph of all scans, write the pages, and tell what became of each scan."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from iqtflow.bids.names import (
    can_have_page,
    node_name,
    output_name,
    scan_outputs,
    sidecar_name,
    stem_name,
    with_sidecars,
)
from iqtflow.config import Settings
from iqtflow.reports.run_summary import Outcome, outcome_table
from iqtflow.utils.errors import IQTFlowError, exit_code_of_failures, printable
from iqtflow.workflows.app.collect import check_engines
from iqtflow.workflows.app.graphs import build_participant_graph
from iqtflow.workflows.app.plan import Plan, count_left_out
from iqtflow.workflows.app.stacks import sessions_to_combine
from iqtflow.workflows.execution.run import Failure, describe, find_lost, report_failures, run_graph
from iqtflow.workflows.execution.scheduler import collector_off

#: What is done with a scan, by mode.
VERBS = {"enhance": "enhanced", "train": "prepared", "calibrate": "measured"}


def run_participants(plan: Plan, settings: Settings, *, name: str) -> int:
    """Process the chosen scans of a plan.

    Parameters
    ----------
    plan
        The scans, from `iqtflow.workflows.app.plan.choose_scans`.
    settings
        All settings.
    name
        Name of the top workflow.

    Returns
    -------
    int
        The exit code for what failed; files that were left out do not count.
    """
    chosen, output = plan.chosen, settings.paths.output_dir
    for line in _notes(plan):
        print(line, flush=True)
    others = other_records(plan)
    failures: list[Failure] = []
    if chosen:
        if settings.run.mode != "enhance":
            print(f"iqtflow: tissue maps: {check_engines(chosen, settings)}", flush=True)
        with collector_off():
            graph = build_participant_graph(chosen, settings, name=name, others=others)
            failures = run_graph(graph, settings)
    failed, rest = _by_scan(failures, plan)
    if failures and settings.run.stop_on_first_crash:  # which other scans are complete is not known
        for path, failure in failed.items():
            print(describe(path, failure), flush=True)
        report_failures(rest)
        print("iqtflow: stopped at the first failure; the same command goes on from here", flush=True)
        return exit_code_of_failures(failure.exit_code for failure in failures)
    for combined, scans in sessions_to_combine(chosen, settings):
        lost = find_lost(output, with_sidecars([output_name("combined", combined)]))
        bad = [scan for scan in scans if scan.path in failed]
        if bad:
            why = f"not made, because {bad[0].path} failed"
            print(f"iqtflow: {output_name('combined', combined)}: {why}", flush=True)
        elif lost is not None and not any(
            f"{node_name(combined.name)}_combined." in failure.node for failure in rest
        ):
            rest.append(_as_failure("output", lost))
    for scan in chosen:
        lost = find_lost(output, with_sidecars(scan_outputs(scan, settings)))
        if lost is not None and scan.path not in failed:
            failed[scan.path] = _as_failure("output", lost)
    lost = find_lost(output, [output_name("description")])
    if lost is not None:
        rest.append(_as_failure("output", lost))
    defect: Exception | None = None
    try:
        if settings.run.mode != "calibrate":
            _write_pages(plan, settings, failed, others)
    except IQTFlowError as fault:
        rest.append(_as_failure("pages", fault))
    except Exception as fault:  # first print which scans failed, and why
        defect = fault
    _summarise(plan, settings, failed)
    report_failures(rest)
    if defect is not None:
        raise defect
    index = output / output_name("index")
    if settings.run.mode != "calibrate" and index.is_file():
        print(f"iqtflow: open {index} in a browser", flush=True)
    return exit_code_of_failures(failure.exit_code for failure in [*failures, *failed.values(), *rest])


def other_records(plan: Plan) -> list[dict[str, str]]:
    """Return the records, for pages, of scans that are skipped and of files that are left out.

    A file has no page if its subject's label is not valid in BIDS or too long.
    """
    skipped = [
        {"subject": s.subject, "input": os.fspath(s.path), "status": "skipped", "message": why}
        for s, why in plan.skipped
    ]
    left_out = [
        {
            "subject": left.subject,
            "input": printable(left.path),
            "status": "failed",
            "message": f"left out: {left.reason}",
        }
        for left in plan.left_out
        if can_have_page(left.subject)
    ]
    return [*skipped, *left_out]


def _notes(plan: Plan) -> list[str]:
    scans = [*plan.chosen, *(scan for scan, _ in plan.skipped)]
    return [
        *(f"{scan.path}: note: {warning}" for scan in scans for warning in scan.warnings),
        *(f"{scan.path}: skipped: {why}" for scan, why in plan.skipped),
        *map(str, plan.left_out),
    ]


def _as_failure(part: str, fault: IQTFlowError) -> Failure:
    return Failure(part, str(fault), None, fault.exit_code, crashed=False)


def _by_scan(failures: Sequence[Failure], plan: Plan) -> tuple[dict[Path, Failure], list[Failure]]:
    """Return the first failure of each scan, and the failures of other nodes, such as pages.

    The full name of a failed node contains the name of its scan's sub-workflow.
    """
    names = {node_name(scan.name): scan.path for scan in plan.chosen}
    found: dict[Path, Failure] = {}
    others = []
    for failure in failures:
        owners = [names[part] for part in failure.node.split(".") if part in names]
        if owners:
            found.setdefault(owners[0], failure)
        else:
            others.append(failure)
    return found, others


def _write_pages(
    plan: Plan, settings: Settings, failed: Mapping[Path, Failure], others: Sequence[Mapping[str, str]]
) -> None:
    """Write the index, and the pages of subjects with a skipped or failed scan; the graph has written the
    pages of all other subjects.
    """
    from iqtflow.reports.assemble.index import write_pages

    output, records = settings.paths.output_dir, []
    for scan in plan.chosen:
        failure = failed.get(scan.path)
        if failure is not None:
            log = os.fspath(failure.log or "")
            became = {"status": "failed", "message": failure.message, "log": log}
        elif settings.run.mode == "enhance":
            became = {"status": "enhanced", "output": os.fspath(output / output_name("enhanced", scan))}
        else:
            became = {"status": "prepared", "stem": os.fspath(output / stem_name(scan))}
        records.append({"subject": scan.subject, "input": os.fspath(scan.path), **became})
    for combined, scans in sessions_to_combine(plan.chosen, settings):
        made = output / output_name("combined", combined)
        if made.is_file() and not any(scan.path in failed for scan in scans):
            became = {"status": "enhanced", "output": os.fspath(made)}
            records.append({"subject": combined.subject, "input": os.fspath(combined.path), **became})
    write_pages(output, scans=[*records, *others], viewer_mb=settings.run.page_viewer_mb)


def _summarise(plan: Plan, settings: Settings, failed: Mapping[Path, Failure]) -> None:
    """Print the last lines of a run: a table of all scans, counts, and why scans failed."""
    output, verb = settings.paths.output_dir, VERBS[settings.run.mode]
    shown = {"enhance": "enhanced", "train": "gm", "calibrate": "measurement"}[settings.run.mode]
    outcomes = []
    for scan in plan.chosen:
        if scan.path in failed:
            why = failed[scan.path].message.removeprefix(f"{scan.path}: ")
            outcomes.append(Outcome(scan.name, "failed", why))
        else:
            sidecar = sidecar_name(output / output_name(shown, scan))
            outcomes.append(Outcome(scan.name, verb, sidecar=sidecar))
    table = outcome_table([*outcomes, *(Outcome(scan.name, "skipped", why) for scan, why in plan.skipped)])
    print(f"\n{table}\n" if table else "", flush=True)
    print(
        f"iqtflow: {len(plan.chosen) - len(failed)} {verb}, {len(plan.skipped)} skipped, {len(failed)} "
        f"failed{count_left_out(plan.left_out)}; results in {output}",
        flush=True,
    )
    for path, failure in failed.items():
        print(describe(path, failure), flush=True)
    for left in plan.left_out:
        print(f"  left out: {printable(left.path)}\n    why: {left.reason}", flush=True)
