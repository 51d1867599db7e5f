"""``iqtflow-enhance`` for the files of a folder or the rows of a table: each in a process of its own."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import iqtflow
from iqtflow.bids.loose_files import LooseScan, list_folder, read_table, why_left_out
from iqtflow.bids.names import stem_of
from iqtflow.reports.terminal import about
from iqtflow.utils.environment import command_line
from iqtflow.utils.errors import (
    EXIT_CANTCREAT,
    EXIT_OK,
    EXIT_SOFTWARE,
    EXIT_SUBJECT_FAILED,
    InputError,
    UsageError,
    exit_code_of_failures,
    printable,
)
from iqtflow.utils.files import read_text, sha256_of, write_text
from iqtflow.utils.gpus import resolve_device

TABLES = (".csv", ".tsv")  #: endings of a table of scans
RECORD = "iqtflow-enhance.json"  #: in the output folder: what the results are made with
#: Options that name a file of one scan.
OF_ONE_SCAN = ("std", "spline", "mask_out", "residual", "json", "sidecar")
#: Options that do not change results, or that each scan may have for itself.
NEUTRAL = ("help", "device", "force", "omp_nthreads", "max_memory_gb", "overwrite", *OF_ONE_SCAN)


@dataclass(frozen=True)
class Outcome:
    """What became of a scan: ``done``, ``done before``, ``left out`` or ``failed``, with the reason."""

    scan: LooseScan
    status: str
    reason: str = ""
    code: int = EXIT_OK


def is_many(path: Path) -> bool:
    """Return whether an argument stands for many scans: a folder, or a table."""
    return path.is_dir() or path.name.endswith(TABLES)


def enhance_many(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    """Enhance each scan of a folder or table, and print what became of it.

    Parameters
    ----------
    parser
        Parser of ``iqtflow-enhance``.
    options
        Its arguments.

    Returns
    -------
    int
        0; or the highest exit code of a scan that failed.

    Raises
    ------
    UsageError
        The table or an option cannot be used; or the folder holds results of other settings.
    InputError
        The model cannot be used.
    """
    prog, source, output = parser.prog, options.scan, options.output
    for name in OF_ONE_SCAN:
        if getattr(options, name) is not None:
            option = "--" + name.replace("_", "-")
            raise UsageError(
                option,
                found=f"{option} together with {source}",
                expected="this option for one scan only",
                next_step="Leave it out: each scan gets a JSON file, and its predicted error if the model "
                "has one. A table can name sidecars.",
            )
    _check_folder(source, output)
    scans = list_folder(source, without=output) if source.is_dir() else read_table(source)
    contrast = options.contrast or "T1w"
    _keep_record(parser, options, contrast)
    options.device = resolve_device(options.device).name
    arguments = list(_arguments(parser, options))
    outcomes, chosen = [], []
    taken: dict[str, LooseScan] = {}
    for scan in scans:
        other = taken.setdefault(stem_of(os.fspath(scan.output)), scan)
        if other is not scan:
            outcomes.append(Outcome(scan, "left out", f"its results would have the names of {other.path}'s"))
        elif (outcome := _settle(scan, options, contrast)) is not None:
            outcomes.append(outcome)
        else:
            chosen.append(scan)
    print(f"{prog}: {len(scans)} files in {source}, {len(chosen)} to enhance", flush=True)
    spent: list[float] = []  # seconds of each scan that was enhanced
    for number, scan in enumerate(chosen):
        left = (len(chosen) - number) * sum(spent) / len(spent) if spent else None
        print(f"{prog}: {number + 1} of {len(chosen)} ({about(left)}): {printable(scan.path)}", flush=True)
        began = time.monotonic()
        outcome = _enhance(scan, options, arguments, prog=prog, contrast=contrast)
        outcomes.append(outcome)
        if outcome.status == "done":
            spent.append(time.monotonic() - began)
        else:
            print(f"{prog}:   {outcome.status}: {outcome.reason}", flush=True)
        if outcome.code == EXIT_CANTCREAT:  # so will all others
            break
    _summarise(outcomes, prog=prog, total=len(scans), output=output)
    return exit_code_of_failures(outcome.code for outcome in outcomes)


def _check_folder(source: Path, output: Path) -> None:
    folder = source if source.is_dir() else source.parent
    if os.path.realpath(output) == os.path.realpath(folder):
        raise UsageError(
            output,
            found="the folder of the scans as output",
            expected="a folder of its own: results have the names of the scans",
            next_step=f"Choose another folder, for instance {output / 'enhanced'}.",
        )
    if os.path.lexists(output) and not output.is_dir():
        raise UsageError(
            output,
            found="a file",
            expected="a folder for the results of many scans",
            next_step="Choose the name of a folder.",
        )


def _keep_record(parser: argparse.ArgumentParser, options: argparse.Namespace, contrast: str) -> None:
    """Write what the results of the folder are made with; refuse to mix them with those of other settings."""
    from iqtflow.models.zoo import candidates
    from iqtflow.workflows.app.made_with import difference, sign

    now: dict[str, Any] = {"Name": parser.prog, "Version": iqtflow.__version__}
    files = sorted(candidates(options.model, contrast).values())
    now["Models"] = {path.stem: sha256_of(path) for path in files}
    now["Settings"] = {
        action.option_strings[0]: getattr(options, action.dest)
        for action in parser._actions
        if action.option_strings and action.dest not in (*NEUTRAL, "model")
    }
    now["Settings"]["--contrast"] = contrast
    path = options.output / RECORD
    try:
        before = json.loads(read_text(path))["GeneratedBy"][0]
    except (OSError, ValueError, LookupError, TypeError):
        before = None
    stated = isinstance(before, dict) and isinstance(before.get("Settings"), dict)
    if stated and not options.overwrite and next(options.output.rglob("*.nii*"), None) is not None:
        defaults = {a.option_strings[0]: a.default for a in parser._actions if a.option_strings}
        was, is_ = difference(before, now, defaults)
        if was:
            raise UsageError(
                options.output,
                found=f"results made with {was}",
                expected=f"results of the settings of this run, {is_}",
                next_step="Choose another output folder, or replace the results with --overwrite.",
            )
    write_text(path, json.dumps({"GeneratedBy": [sign(now)]}, indent=2) + "\n")


def _arguments(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Iterator[str]:
    """Yield the options that were given, for the command of one scan."""
    for action in parser._actions:
        value = getattr(options, action.dest, action.default)
        own = action.dest in ("contrast", "skull_stripped")  # of each scan
        if not action.option_strings or own or value == action.default:
            continue
        flag = action.option_strings[0 if value is not False else -1]  # else --no-...
        if isinstance(value, bool):
            yield flag
        elif isinstance(value, (list, tuple)):
            yield from (flag, *map(str, value))
        else:
            yield f"{flag}={value}"


def _settle(scan: LooseScan, options: argparse.Namespace, contrast: str) -> Outcome | None:
    """Return the outcome of a scan that need not or cannot be enhanced; None if it is to be enhanced."""
    made, details = _results(scan, options)
    if made.is_file() and details.is_file() and not options.overwrite:
        return Outcome(scan, "done before")
    thin = options.force or options.acquired_spacing is not None  # may be enhanced
    try:
        why = why_left_out(scan, contrast=contrast, force=thin)
    except InputError as fault:
        return Outcome(scan, "failed", _placed(scan, str(fault)), EXIT_SUBJECT_FAILED)
    return None if why is None else Outcome(scan, "left out", why)


def _results(scan: LooseScan, options: argparse.Namespace) -> tuple[Path, Path]:
    """Return the absolute paths of the enhanced volume and of its JSON file, which is written last."""
    made = (options.output / scan.output).absolute()
    return made, made.with_name(f"{stem_of(made.name)}.json")


def _enhance(
    scan: LooseScan, options: argparse.Namespace, arguments: Sequence[str], *, prog: str, contrast: str
) -> Outcome:
    """Enhance one scan in a process of its own."""
    made, details = _results(scan, options)
    stem = made.with_name(stem_of(made.name))
    ending = made.name.removeprefix(stem.name)
    command = [
        *command_line("iqtflow.cli.commands.enhance"),
        *(os.path.abspath(scan.path), os.fspath(made)),
        *(f"--json={details}", f"--std={stem}_std{ending}"),
        *([f"--sidecar={scan.sidecar.absolute()}"] if scan.sidecar is not None else []),
        *(f"--contrast={contrast}", f"--skull-stripped={scan.skull_stripped or options.skull_stripped}"),
        *arguments,
    ]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode == EXIT_OK and made.is_file():
        said = f"{prog}: {made}: "
        for line in (line for line in done.stdout.splitlines() if line.startswith(said)):
            print(f"{prog}:   {line.removeprefix(said)}", flush=True)
        return Outcome(scan, "done")
    return _as_failure(scan, prog, done)


def _as_failure(scan: LooseScan, prog: str, done: subprocess.CompletedProcess[str]) -> Outcome:
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        why = f"the process was killed ({name}): mostly there is too little memory; see --max-memory-gb"
        return Outcome(scan, "failed", _placed(scan, why), EXIT_SUBJECT_FAILED)
    said = [line for line in done.stderr.splitlines() if line.startswith(f"{prog}: error: ")]
    if done.returncode == EXIT_SOFTWARE:
        print(done.stderr, flush=True)
    why = said[-1].removeprefix(f"{prog}: error: ") if said else (done.stderr.splitlines() or ["unknown"])[-1]
    code = done.returncode if done.returncode in (EXIT_SOFTWARE, EXIT_CANTCREAT) else EXIT_SUBJECT_FAILED
    return Outcome(scan, "failed", _placed(scan, why), code)


def _placed(scan: LooseScan, why: str) -> str:
    """Return why a scan failed, without its path at the beginning, or with its place in the table."""
    for path in (scan.path, scan.path.absolute()):
        why = why.removeprefix(f"{path}: ")
    return f"{scan.where}, column scan: {why}" if scan.where else why


def _summarise(outcomes: Sequence[Outcome], *, prog: str, total: int, output: Path) -> None:
    """Print the last lines: what was left out or failed, why, and how many scans have which outcome."""
    for status in ("left out", "failed"):
        for outcome in (one for one in outcomes if one.status == status):
            print(f"  {status}: {printable(outcome.scan.path)}\n    why: {outcome.reason}", flush=True)
    counts = Counter(outcome.status for outcome in outcomes)
    parts = [f"{counts[status]} {status}" for status in ("done", "done before", "left out", "failed")]
    if total > len(outcomes):
        parts.append(f"{total - len(outcomes)} not begun")
    print(f"{prog}: {', '.join(parts)}; results in {output}", flush=True)
