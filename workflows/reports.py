"""Pages from what earlier runs have left, without a graph."""

from __future__ import annotations

import os

from iqtflow.config import Settings
from iqtflow.errors import EXIT_OK, UsageError
from iqtflow.inputs import find_inputs


def write_reports(settings: Settings) -> int:
    """Write the pages of a run's mode and levels anew; returns the exit code.

    Raises
    ------
    UsageError
        The mode and level have no pages, or nothing to make one from.
    """
    mode, levels = settings.run.mode, settings.run.levels
    pages = []
    if mode != "calibrate" and "participant" in levels:
        pages.append(_participants(settings))
    if mode == "train" and "group" in levels:
        pages.append(_trained(settings))
    if not pages:
        raise UsageError(
            "--reports-only",
            found=f"--mode {mode} at {' and '.join(levels)} level",
            expected="enhance at participant level, or train: nothing else has pages",
            next_step="Leave it out, or choose one of these.",
        )
    print(f"iqtflow: pages {', '.join(map(os.fspath, pages))}", flush=True)
    return EXIT_OK


def _participants(settings: Settings) -> os.PathLike:
    from iqtflow.workflows.base import stored_record
    from iqtflow.workflows.plan import choose_scans, main_output

    from iqtflow.report import write_index_page, write_subject_page
    from iqtflow.report.records import complete_record
    from iqtflow.report.summaries import read_summary

    output = settings.paths.output_dir
    plan = choose_scans(find_inputs(settings), settings)
    subjects: dict[str, list[dict]] = {}
    for scan in plan.chosen:
        shown = read_summary(output, scan.subject).get("scans", [])
        earlier = next((s for s in shown if s["volumes"].get("input") == os.fspath(scan.path)), {})
        record = {"input": os.fspath(scan.path), **stored_record(scan, settings)}
        if (output / main_output(scan, settings)).exists():
            record = complete_record(record, earlier.get("volumes", {}))
        else:
            why = earlier.get("sentence") if earlier.get("status") == "failed" else None
            record = {
                "status": "failed",
                "input": os.fspath(scan.path),
                "message": why or "there is no result of this scan yet",
            }
        subjects.setdefault(scan.subject, []).append(record)
    for scan, why in plan.skipped:
        record = {"status": "skipped", "input": os.fspath(scan.path), "message": why}
        subjects.setdefault(scan.subject, []).append(record)
    for label, records in subjects.items():
        write_subject_page(output, label, records)
    return write_index_page(output, subjects)


def _trained(settings: Settings) -> os.PathLike:
    from iqtflow.workflows.group import find_evaluation

    from iqtflow.report.training import write_training_page
    from iqtflow.split import read_split

    train, output = settings.train, settings.paths.output_dir
    name = train.model_name or f"iqt-k{train.upsampling_factor}"
    if not (output / "models" / f"{name}.safetensors").is_file():
        raise UsageError(
            output / "models" / f"{name}.safetensors",
            found="nothing",
            expected="the model of an earlier run",
            next_step="Run without --reports-only first.",
        )
    scans = find_evaluation(settings, read_split(train.split)["evaluation"])
    return write_training_page(
        output,
        name,
        scans=[{"subject": s.subject, "truth": s.truth, "input": s.low_field, "mask": s.mask} for s in scans],
    )
