"""``iqtflow``: check what was asked for, settle the settings, and hand over to the workflows."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import iqtflow
from iqtflow.bids import check_dataset
from iqtflow.bids.index import has_database, wipe_database
from iqtflow.config import SECTIONS, Settings
from iqtflow.environment import place_sockets, working_in
from iqtflow.errors import IQTFlowError, OutputError, UsageError, exit_code_of, run_command
from iqtflow.inputs import check_engines, keep_inputs
from iqtflow.memory import tells_of_memory
from iqtflow.parser import parse
from iqtflow.resources import resolve_device
from iqtflow.split import read_split
from iqtflow.training_settings import check_training
from iqtflow.trust import allow_network


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
        lambda: _without_defect(argv),
        afterwards="; the same command goes on from here",
        spares_memory="use --low-mem or a lower --nprocs, or ",
    )


def _without_defect(argv: Sequence[str] | None) -> int:
    """Run the command; what nobody has expected is reported as a defect."""
    try:
        return _run(argv)
    except IQTFlowError:
        raise
    except Exception as fault:
        if tells_of_memory(fault):
            raise
        traceback.print_exc()
        told = f"this is a defect of iqtflow {iqtflow.__version__}; please report the lines above"
        print(f"iqtflow: {told}", file=sys.stderr)
        return exit_code_of(fault)


def _run(argv: Sequence[str] | None) -> int:
    options = parse(argv)
    if options.doctor:
        return examine(options)
    settings, reason = settle(options)
    # A nipype.cfg has no say, be it in the current folder, where nipype looks, or in the user's home.
    os.environ["NIPYPE_CONFIG_DIR"] = os.devnull
    # Only now: --help and a mistyped option should not have to wait for nipype.
    with working_in(os.sep):
        if options.dry_run:
            from iqtflow.workflows.plan import print_plan

            return print_plan(settings)
        if options.reports_only:
            from iqtflow.workflows.reports import write_reports

            return write_reports(settings)
        if options.boilerplate_only:
            from iqtflow.workflows.base import write_boilerplate

            return write_boilerplate(settings)
    prepare(settings, clean=options.clean_workdir)
    announce(settings, reason)
    with working_in(os.sep):
        from iqtflow.workflows.base import run_workflow
    # Where the command was typed may be deleted, or closed to this user, and holds files of anyone.
    with working_in(settings.paths.work_dir):
        return run_workflow(settings)


def prepare(settings: Settings, *, clean: bool) -> None:
    """Make the machine ready for a run, and look whose the work directory is.

    Raises
    ------
    UsageError
        No folder is short enough for sockets; or the work directory is another user's, open to others, or,
        when it is to be emptied, another run's.
    OutputError
        It cannot be emptied.
    """
    from iqtflow.workflows.claims import check_own, clean_work_dir

    place_sockets()
    if clean:
        clean_work_dir(settings.paths.work_dir)
    check_own(settings.paths.work_dir)


def settle(options: argparse.Namespace) -> tuple[Settings, str]:
    """Turn parsed arguments into settings, after all checks that need no image to be opened.

    Parameters
    ----------
    options
        From :func:`iqtflow.parser.parse`.

    Returns
    -------
    settings : Settings
        With absolute paths and a resolved device.
    reason : str
        Why this device.

    Raises
    ------
    UsageError
        The input is no data set, or has none of the scans asked for; output or work directory would touch the
        input; the output folder belongs to another program; a model, split or device asked for is not there.
    OutputError
        The output or work directory cannot be written.
    """
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
    for section, key in (
        ("enhance", "model"),
        ("train", "snr_prior"),
        ("train", "split"),
        ("train", "start_from"),
        ("train", "evaluate_model"),
        ("run", "use_plugin"),
    ):
        given[section][key] = _absolute_file(given[section][key], f"--{key.replace('_', '-')}")
    given["inputs"]["filter_file"] = _absolute_file(given["inputs"]["filter_file"], "--bids-filter-file")
    if given["inputs"]["database_dir"] is not None:
        folder = given["inputs"]["database_dir"].absolute()
        # Nothing is written by a dry run, not even an index.
        given["inputs"]["database_dir"] = None if options.dry_run and not has_database(folder) else folder
    given["segmentation"] = absolute_segmentation(given["segmentation"])
    settings = Settings(**{name: section(**given[name]) for name, section in SECTIONS.items()})
    inputs = settings.inputs
    check_places(settings)
    if inputs.database_dir is not None and options.bids_database_wipe and not options.dry_run:
        wipe_database(inputs.database_dir)
    if not inputs.skip_validation:
        look_over(settings)
    check_inputs(settings)
    device = resolve_device(settings.run.device, elsewhere=settings.run.use_plugin is not None)
    settings = dataclasses.replace(settings, run=dataclasses.replace(settings.run, device=device.name))
    if not options.dry_run:
        check_writable(output_dir)
        check_writable(work_dir, mode=0o755)
    return settings, device.reason


def examine(options: argparse.Namespace) -> int:
    """Check what a run with these arguments needs (``--doctor``); return 0 when it can run, 1 when not."""
    from iqtflow.doctor import run_doctor

    return run_doctor(
        mode=options.run__mode,
        segmentation=options.segmentation__engine,
        device=options.run__device,
        derivatives=options.segmentation__derivatives,
        spm_dir=options.segmentation__spm_dir,
        tpm=options.segmentation__tpm,
        octave=options.segmentation__octave,
        model=options.enhance__model,
        output_dir=options.paths__output_dir,
        work_dir=options.paths__work_dir,
    )


def needs_tissue_maps(settings: Settings) -> bool:
    """Return whether a run segments scans."""
    return settings.run.mode != "enhance" and "participant" in settings.run.levels


def absolute_segmentation(given: dict[str, Any]) -> dict[str, Any]:
    """Make the paths in these settings absolute: graphs run in other folders.

    Raises
    ------
    UsageError
        A file or folder is not there.
    """
    settled = {**given, "tpm": _absolute_file(given["tpm"], "--tpm")}
    for key in ("derivatives", "spm_dir"):
        if given[key] is None:
            continue
        settled[key] = Path(given[key]).absolute()
        if not settled[key].is_dir():
            raise UsageError(
                f"--{key.replace('_', '-')}",
                found=f"no folder {given[key]}",
                expected="a folder",
                next_step="Check the path (in a container: check what is mounted where).",
            )
    if given["octave"] and os.sep in given["octave"]:
        settled["octave"] = os.path.abspath(given["octave"])
    return settled


def default_work_dir(bids_dir: Path, output_dir: Path) -> Path:
    """Choose a place for intermediate results: beside the output, or the data set that the output is in."""
    if _is_inside(output_dir, bids_dir):
        return bids_dir.with_name(f"{bids_dir.name}-{output_dir.name}-work")
    return output_dir.with_name(f"{output_dir.name}-work")


def check_places(settings: Settings) -> None:
    """Make sure that nothing is written into the data set, but for its ``derivatives``.

    Raises
    ------
    UsageError
        Output or work directory is the data set or in it, or the output holds what another program made.
    """
    paths = settings.paths
    derivatives = paths.bids_dir / "derivatives"
    instead = f"Choose another folder, for instance {derivatives / 'iqtflow'}."
    places = {"output directory": paths.output_dir, "work directory": paths.work_dir}
    if settings.inputs.database_dir is not None:
        places["index"] = settings.inputs.database_dir
    for name, place in places.items():
        if _same(place, paths.bids_dir):
            raise UsageError(
                place,
                found=f"the {name} equal to the input",
                expected="a folder of its own",
                next_step=instead,
            )
        if _is_inside(place, paths.bids_dir) and (
            not _is_inside(place, derivatives) or _same(place, derivatives)
        ):
            raise UsageError(
                place,
                found=f"the {name} inside the input",
                expected="a folder outside of it, or one in its derivatives",
                next_step=instead,
            )
    _check_owner(paths.output_dir)


def check_inputs(settings: Settings) -> None:
    """Make sure that there is something to do, before anything is written.

    Raises
    ------
    UsageError
        No scan, an unknown subject or session, training without a split, or nothing to make tissue maps with.
    """
    run, train = settings.run, settings.train
    if train.split is not None:
        read_split(train.split)
    if run.mode == "train":
        check_training(train)
        allow_network(train.network)
    scans = keep_inputs(settings)
    if needs_tissue_maps(settings):
        check_engines(scans, settings)


def look_over(settings: Settings) -> None:
    """Say in a few lines what is wrong with the data set as BIDS.

    Raises
    ------
    UsageError
        What describes it as a whole cannot be read: it may be anything.
    """
    from iqtflow.bids.hcp import is_hcp
    from iqtflow.bids.validation import summarise, validate

    bids_dir = settings.paths.bids_dir
    if is_hcp(bids_dir):
        return
    labels = settings.run.participant_labels
    faults, notes = validate(bids_dir, labels)
    for line in [*notes, *summarise(faults, bids_dir, labels)]:
        print(f"iqtflow: {line}", flush=True)


def check_writable(folder: Path, *, mode: int = 0o777) -> None:
    """Make a folder, and make sure that files can be written to it, by writing one.

    Parameters
    ----------
    folder
        The folder.
    mode
        Permissions with which it is made, less those that the umask takes.

    Raises
    ------
    OutputError
        The folder cannot be made or written. (Permissions alone do not tell: quotas, read-only mounts.)
    """
    try:
        folder.mkdir(mode=mode, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".iqtflow-"):
            pass
    except OSError as fault:
        raise OutputError(
            folder,
            found=f"a folder that cannot be written ({fault.strerror or fault})",
            expected="one that can",
            next_step="Choose another folder, or change its permissions; in a container, mount it writable.",
        ) from fault


def announce(settings: Settings, reason: str) -> None:
    """Say what is about to run, and where: on whose device a result was made is asked later."""
    run, paths = settings.run, settings.paths
    print(f"iqtflow {iqtflow.__version__}: {run.mode}, {' and '.join(run.levels)} level")
    print(f"  input   {paths.bids_dir}")
    print(f"  output  {paths.output_dir}")
    print(f"  work    {paths.work_dir}")
    print(f"  device  {run.device} ({reason}), {run.nprocs} processors, {run.mem_gb:g} GB", flush=True)


def _check_owner(output_dir: Path) -> None:
    """Refuse to mix two programs' derivatives in one folder: each would overwrite the other's description."""
    try:
        description = json.loads((output_dir / "dataset_description.json").read_text(encoding="utf-8"))
        makers = [maker["Name"] for maker in description.get("GeneratedBy", [])]
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        makers = []
    if "iqtflow" not in makers:
        raise UsageError(
            output_dir,
            found=f"a data set made by {', '.join(makers) or 'another program'}",
            expected="an empty folder, or earlier output of iqtflow",
            next_step=f"Choose another folder, for instance {output_dir / 'iqtflow'}.",
        )


def _absolute_file(value: str | Path | None, option: str) -> str | Path | None:
    """Make the path of a file absolute; leave the name of something that ships as it is."""
    if value is None:
        return None
    is_name = isinstance(value, str) and os.sep not in value and not value.endswith((".safetensors", ".json"))
    if is_name and not Path(value).is_file():
        return value
    if not Path(value).is_file():
        raise UsageError(
            option,
            found=f"no file {os.fspath(value)}",
            expected="a file" if isinstance(value, Path) else "a file, or the name of what ships",
            next_step="Check the path (in a container: check what is mounted where).",
        )
    return type(value)(os.path.abspath(value)) if isinstance(value, str) else value.absolute()


def _is_inside(place: Path, folder: Path) -> bool:
    """Return whether `place`, which need not exist, is `folder` or in it, links followed."""
    return _resolved(folder) in (_resolved(place), *_resolved(place).parents)


def _same(one: Path, other: Path) -> bool:
    return _resolved(one) == _resolved(other)


def _resolved(path: Path) -> Path:
    return Path(os.path.realpath(path))


if __name__ == "__main__":
    raise SystemExit(main())
