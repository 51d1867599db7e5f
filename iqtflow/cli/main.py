"""``iqtflow``: check the arguments, make settings of them, and start the workflows."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import iqtflow
from iqtflow.bids import Listing, check_dataset
from iqtflow.bids.index import has_database, wipe_database
from iqtflow.cli.checks import check_settings
from iqtflow.cli.parser import parse
from iqtflow.cli.places import (
    check_could_be_written,
    check_names,
    check_places,
    check_writable,
    default_work_dir,
)
from iqtflow.config import SECTIONS, SETTINGS, Setting, Settings
from iqtflow.utils.command import run_command
from iqtflow.utils.environment import place_sockets, working_in
from iqtflow.utils.errors import UsageError, printable
from iqtflow.utils.gpus import resolve_device
from iqtflow.workflows.app.collect import check_engines, list_inputs, look_over
from iqtflow.workflows.app.made_with import check_made_with, in_own_folder


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    argv
        Arguments without the program's name; None takes those of the process.

    Returns
    -------
    int
        The exit code; ``iqtflow --help`` lists them.
    """
    return run_command(
        "iqtflow",
        lambda: _run(argv),
        afterwards="; the same command goes on from here",
        spares_memory="use --low-mem or a lower --nprocs, or ",
    )


def _run(argv: Sequence[str] | None) -> int:
    options = parse(argv)
    if options.doctor:
        from iqtflow.cli.doctor import run_doctor

        return run_doctor(options)
    settings, (listing, reason) = settle(options)
    # Ignore any nipype.cfg: nipype looks for one in the current folder and in the user's home.
    os.environ["NIPYPE_CONFIG_DIR"] = os.devnull
    # Imported here, because nipype takes seconds to load and --help does not need it. The current folder may
    # be deleted or closed to this user, or hold files with the names of libraries.
    with working_in(os.sep):
        from iqtflow.workflows.app.adapt import print_adaptation, run_adaptation
        from iqtflow.workflows.app.base import run_workflow, write_boilerplate, write_reports
        from iqtflow.workflows.app.plan import print_plan

        adapts = settings.run.mode == "adapt"
        if options.dry_run:
            return (print_adaptation if adapts else print_plan)(settings, listing)
        if options.reports_only:
            return write_reports(settings)
        if options.boilerplate_only:
            return write_boilerplate(settings, listing)
    from iqtflow.workflows.execution.lock import check_own, clean_work_dir

    work_dir = settings.paths.work_dir
    place_sockets()
    if options.clean_workdir:
        clean_work_dir(work_dir)
    check_own(work_dir)
    announce(settings, reason)
    with working_in(work_dir):
        return (run_adaptation if adapts else run_workflow)(settings, listing)


def settle(options: argparse.Namespace) -> tuple[Settings, tuple[Listing, str]]:
    """Make settings of parsed arguments, and check everything that can be checked without opening an image.

    Parameters
    ----------
    options
        From :func:`iqtflow.cli.parser.parse`.

    Returns
    -------
    settings : Settings
        With absolute paths and a resolved device.
    found : tuple of Listing and str
        The scans of the run, and why this device was chosen.

    Raises
    ------
    UsageError
        The input is not a data set, or has none of the scans asked for; the output or work directory would
        change the input; the output folder, or a file in it, was not made by iqtflow; its results were made
        with other settings; or a model, split or device that was asked for does not exist.
    OutputError
        The output or work directory cannot be written.
    """
    _refuse_foreign_bytes(options)
    given: dict[str, dict[str, Any]] = {name: {} for name in SECTIONS}
    for attribute, value in vars(options).items():
        section, _, key = attribute.partition("__")
        if section in given:
            given[section][key] = tuple(value) if isinstance(value, list) else value
    bids_dir = check_dataset(given["paths"]["bids_dir"])
    output_dir = Path(given["paths"]["output_dir"]).absolute()
    work_dir = Path(given["paths"]["work_dir"] or default_work_dir(bids_dir, output_dir)).absolute()
    given["paths"] = {"bids_dir": bids_dir, "output_dir": output_dir, "work_dir": work_dir}
    given["run"]["levels"] = tuple(dict.fromkeys(given["run"]["levels"]))
    given["run"]["omp_nthreads"] = min(given["run"]["omp_nthreads"], given["run"]["nprocs"])
    for item in (item for section in SETTINGS.values() for item in section.values()):
        if item.group and item.metavar in ("FILE", "NAME|FILE", "NAME|PATH", "MODEL", "DIR"):
            value = given[item.section][item.name]
            one_by_one = tuple(_absolute(item, one) for one in value) if item.many else None
            given[item.section][item.name] = _absolute(item, value) if one_by_one is None else one_by_one
    index = given["inputs"]["database_dir"]
    if index and not has_database(index) and options.dry_run:  # which writes nothing
        given["inputs"]["database_dir"] = None
    octave = given["segmentation"]["octave"]
    if octave and os.sep in octave:
        given["segmentation"]["octave"] = os.path.abspath(octave)
    settings = Settings(**{name: section(**given[name]) for name, section in SECTIONS.items()})
    inputs = settings.inputs
    check_places(settings)
    if inputs.database_dir is not None and options.bids_database_wipe and not options.dry_run:
        wipe_database(inputs.database_dir)
    for note in options.notes:
        print(f"iqtflow: note: {note}", flush=True)
    check_settings(settings)
    if settings.run.mode == "enhance" and settings.enhance.output_layout == "multiverse":
        settings = in_own_folder(settings)
        check_places(settings)
    if not options.reports_only and not options.boilerplate_only:
        check_made_with(settings, overwrite=options.overwrite)
    try:
        listing = list_inputs(settings)
    except UsageError:
        if not inputs.skip_validation:  # nothing may have been found because of names that are not BIDS
            look_over(settings, Listing([], []))
        raise
    if not inputs.skip_validation:
        look_over(settings, listing)
    run = settings.run
    if listing.scans and run.mode != "enhance" and "participant" in run.levels:
        check_engines(listing.scans, settings)
    device = resolve_device(run.device, elsewhere=run.use_plugin is not None)
    settings = dataclasses.replace(settings, run=dataclasses.replace(run, device=device.name))
    check_names(settings, listing, pages_only=options.reports_only)
    if options.dry_run:
        check_could_be_written(output_dir)
        check_could_be_written(work_dir)
    else:
        check_writable(output_dir)
        check_writable(work_dir, mode=0o755)
    return settings, (listing, device.reason)


def announce(settings: Settings, reason: str) -> None:
    """Print what will run, with which folders, device and resources."""
    run, paths = settings.run, settings.paths
    processors = "1 processor" if run.nprocs == 1 else f"{run.nprocs} processors"
    print(f"iqtflow {iqtflow.__version__}: {run.mode}, {' and '.join(run.levels)} level")
    print(f"  input   {paths.bids_dir}")
    print(f"  output  {paths.output_dir}")
    print(f"  work    {paths.work_dir}")
    print(f"  device  {run.device} ({reason}), {processors}, {run.mem_gb:g} GB", flush=True)


def _refuse_foreign_bytes(options: argparse.Namespace) -> None:
    """Refuse names that are not UTF-8, since JSON and TOML files cannot hold them."""
    for value in vars(options).values():
        text = os.fspath(value) if isinstance(value, (str, os.PathLike)) else ""
        if any("\udc80" <= character <= "\udcff" for character in text):
            raise UsageError(
                printable(text),
                found="bytes that are not UTF-8",
                expected="a name in UTF-8",
                next_step="Rename it, or make a link with a plain name (ln -s) and give that.",
            )


def _absolute(item: Setting, value: str | Path | None) -> str | Path | None:
    """Make a path absolute, since graphs run in other folders; names of shipped models and priors stay.

    Raises
    ------
    UsageError
        The file or folder does not exist.
    """
    if value is None or item.name == "database_dir":  # which is made later
        return value and Path(value).absolute()
    text = os.fspath(value)
    is_name = item.kind is str and os.sep not in text and not text.endswith((".safetensors", ".json"))
    if is_name and not os.path.isfile(text):
        return value
    kind, exists = ("folder", os.path.isdir) if item.metavar == "DIR" else ("file", os.path.isfile)
    if not exists(text):
        raise UsageError(
            item.option,
            found=f"no {kind} {text}",
            expected=f"a {kind}" if item.kind is Path else "a file, or the name of a shipped one",
            next_step="Check the path (in a container: check what is mounted where).",
        )
    return value.absolute() if isinstance(value, Path) else os.path.abspath(value)


if __name__ == "__main__":
    raise SystemExit(main())
