"""Checks of the folders and files that a run writes to, before it begins: no other file may be lost."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from iqtflow.bids import Listing, check_owner
from iqtflow.bids.names import can_have_page, output_name, scan_outputs, with_sidecars
from iqtflow.config import Settings, read_sections
from iqtflow.utils.errors import OutputError, UsageError


def default_work_dir(bids_dir: Path, output_dir: Path) -> Path:
    """Choose a work directory: beside the output, or beside the data set if the output is inside it."""
    if _is_inside(output_dir, bids_dir):
        return bids_dir.with_name(f"{bids_dir.name}-{output_dir.name}-work")
    return output_dir.with_name(f"{output_dir.name or 'iqtflow'}-work")


def check_places(settings: Settings) -> None:
    """Make sure that a run writes nothing into the data set except in its ``derivatives``, and that emptying
    the work directory deletes neither input nor results.

    Raises
    ------
    UsageError
        The output or work directory is the data set, is inside it or contains it; the work directory is the
        output or contains it; or the output was made by another program.
    """
    data, output, work = settings.paths.bids_dir, settings.paths.output_dir, settings.paths.work_dir
    derivatives = data / "derivatives"

    def wrong(place: Path, found: str, expected: str, next_step: str | None = None) -> UsageError:
        instead = f"Choose another folder, for instance {derivatives / 'iqtflow'}."
        return UsageError(place, found=found, expected=expected, next_step=next_step or instead)

    places = {"output directory": output, "work directory": work, "index": settings.inputs.database_dir}
    for name, place in places.items():
        if place is None:
            continue
        if _resolved(place) == _resolved(data):
            raise wrong(place, f"the {name} equal to the input", "a folder of its own")
        inside = _is_inside(place, derivatives) and _resolved(place) != _resolved(derivatives)
        if _is_inside(place, data) and not inside:
            expected = "a folder outside of it, or a folder in its derivatives"
            raise wrong(place, f"the {name} inside the input", expected)
    for name, place in (("input", data), ("output directory", output)):
        if _is_inside(place, work):
            raise wrong(
                work,
                f"a work directory that is, or holds, the {name} {place}",
                f"a folder of its own: --clean-workdir would delete the {name}",
                "Choose another folder with -w.",
            )
    # BIDS allows the input inside the sourcedata of derivatives.
    if _is_inside(data, output) and not _is_inside(data, output / "sourcedata"):
        expected = "a folder for results only: here they would be mixed with the scans"
        raise wrong(output, f"an output directory that holds the input {data}", expected)
    check_owner(output)


def check_names(settings: Settings, listing: Listing, *, pages_only: bool = False) -> None:
    """Make sure that a run can write its files, and that it replaces no file that iqtflow did not make.

    In a folder whose description names iqtflow, all files with these names count as iqtflow's.

    Parameters
    ----------
    settings
        All settings; the places have been checked.
    listing
        The scans of the run.
    pages_only
        Only pages are written.

    Raises
    ------
    UsageError
        There is a folder in the place of a file, or a file in the place of a folder; or a file has the name
        of a result, in a folder that is not iqtflow's.
    """
    root = settings.paths.output_dir
    if not os.path.isdir(root):
        return
    names = list(_names(settings, listing, pages_only=pages_only))
    for folder in sorted({output_name("paragraphs"), *(parent for name in names for parent in name.parents)}):
        if os.path.lexists(root / folder) and not os.path.isdir(root / folder):
            raise _taken(root / folder, "no folder", "a folder of this name, or nothing")
    there = []
    for name in names:
        try:
            kind = os.lstat(root / name).st_mode
        except OSError:
            continue
        if stat.S_ISDIR(kind) or os.path.isdir(root / name):
            raise _taken(root / name, "a folder", "a file that iqtflow made, or nothing")
        there.append(name)
    # Read last: another job of the same array, which writes the description first, may just have begun.
    own = any((root / output_name(what)).is_file() for what in ("description", "ignored"))
    if there and not own and not _has_written(settings):
        raise _taken(
            root / there[0],
            "a file that the run would replace, in a folder that is not iqtflow's (it has no "
            "dataset_description.json)",
            "an empty folder, or earlier output of iqtflow",
        )


def check_writable(folder: Path, *, mode: int = 0o777) -> None:
    """Make a folder, and make sure that files can be written to it, by writing one.

    Parameters
    ----------
    folder
        The folder.
    mode
        Permissions of a new folder; the umask can take some away.

    Raises
    ------
    OutputError
        The folder cannot be made or written. (Permissions do not show quotas and read-only mounts.)
    """
    try:
        folder.mkdir(mode=mode, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".iqtflow-"):
            pass
    except OSError as fault:
        raise _not_writable(folder, fault.strerror or str(fault)) from fault


def check_could_be_written(folder: Path) -> None:
    """Check without writing whether a folder could be made and written.

    Raises
    ------
    OutputError
        The folder could not be made or written.
    """
    existing = folder
    while not os.path.lexists(existing):
        existing = existing.parent
    if not os.path.isdir(existing):
        raise _not_writable(folder, f"{existing} is no folder")
    # In the kernel's file systems no folder can be made, though root has permission.
    kernel = _resolved(existing).parts[1:2] in (("proc",), ("sys",))
    if kernel or not os.access(existing, os.W_OK | os.X_OK):
        raise _not_writable(folder, f"no permission in {existing}")


def _has_written(settings: Settings) -> bool:
    """Return whether an earlier run with this work directory wrote into this output folder."""
    try:
        before = read_sections(settings.paths.work_dir / "settings.toml")
    except UsageError:  # none, or of another version
        return False
    return before.get("paths", {}).get("output_dir") == settings.paths.output_dir


def _names(settings: Settings, listing: Listing, *, pages_only: bool) -> Iterator[Path]:
    """Yield what a run writes, relative to the root of the derivatives."""
    run = settings.run
    if not pages_only:
        yield from map(output_name, ("ignored", "citation", "references"))
    if "participant" in run.levels and not pages_only:
        for scan in listing.scans:
            std = [output_name("std", scan)] if run.mode == "enhance" else []
            yield from with_sidecars([*scan_outputs(scan, settings), *std])
    if "participant" in run.levels and run.mode not in ("calibrate", "adapt"):
        yield from map(output_name, ("index", "scan_table", "scan_table_dictionary"))
        labels = {scan.subject for scan in listing.scans} | {left.subject for left in listing.left_out}
        for label in filter(can_have_page, sorted(labels)):
            yield from (output_name(what, subject=label) for what in ("page", "page_summary"))
    if "group" in run.levels and run.mode in ("calibrate", "adapt"):
        yield from map(output_name, ("prior", "prior_figure", "calibration_page"))
        if run.mode == "adapt":
            yield from map(output_name, ("adaptation", "adaptation_page"))
    elif "group" in run.levels and run.mode == "train":
        model = settings.train.output_model
        kinds = ("model", "card", "card_picture", "scores", "group_page", "metrics")
        yield from (output_name(what, model=model) for what in kinds)


def _taken(path: Path, found: str, expected: str) -> UsageError:
    return UsageError(
        path, found=found, expected=expected, next_step="Move it away, or choose another output folder."
    )


def _not_writable(folder: Path, why: str) -> OutputError:
    return OutputError(
        folder,
        found=f"a folder that cannot be written ({why})",
        expected="a writable folder",
        next_step="Choose another folder, or change its permissions; in a container, mount it writable.",
    )


def _is_inside(place: Path, folder: Path) -> bool:
    """Return whether `place`, which need not exist, is `folder` or inside it; links are followed."""
    return _resolved(folder) in (_resolved(place), *_resolved(place).parents)


def _resolved(path: Path) -> Path:
    return Path(os.path.realpath(path))
