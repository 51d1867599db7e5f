"""Check the root of a data set. For another kind of folder or file, the error says what to do."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from iqtflow.bids.hcp import is_hcp
from iqtflow.bids.names import BIDS_VERSION, EXTENSIONS, is_label
from iqtflow.utils.datalad import how_to_fetch
from iqtflow.utils.errors import UsageError

#: Number of files that are tested for DICOM.
MOST_FILES = 200
_TO_BIDS = "put the images into a BIDS data set: sub-01/anat/sub-01_T1w.nii.gz and so on."


def check_dataset(bids_dir: str | os.PathLike) -> Path:
    """Return the absolute root of a BIDS data set or of HCP downloads.

    Raises
    ------
    UsageError
        There is no such folder, or it is neither. The message has a next step for a DICOM folder, a single
        image, a folder of images, and the folder of one subject.
    """
    root = Path(bids_dir).absolute()
    # Unlike pathlib, os.path treats a name that is too long, or a closed folder, as missing.
    if os.path.exists(root) and not os.path.isdir(root):
        raise _refuse_file(root)
    if not os.path.isdir(root):
        raise UsageError(
            root,
            found="nothing",
            expected="the folder of a BIDS data set",
            next_step="Check the path (in a container: check what is mounted where).",
        )
    try:
        next(os.scandir(root), None)
    except OSError as fault:
        raise UsageError(
            root,
            found=f"a folder that cannot be listed ({fault.strerror})",
            expected="the folder of a BIDS data set",
            next_step="Check its permissions.",
        ) from fault
    description = root / "dataset_description.json"
    if fetch := how_to_fetch(description):
        raise UsageError(
            description,
            found="a pointer to content that has not been fetched",
            expected="the description of a BIDS data set",
            next_step=fetch,
        )
    if not os.path.isfile(description) and not is_hcp(root):
        raise _refuse_folder(root)
    return root


def list_subjects(bids_dir: str | os.PathLike) -> list[str]:
    """Return the labels, without ``sub-``, of the subject folders of a data set."""
    with os.scandir(os.fspath(bids_dir)) as entries:
        return sorted(entry.name[4:] for entry in entries if entry.name.startswith("sub-") and entry.is_dir())


def _refuse_file(path: Path) -> UsageError:
    next_step = "Give the root of the data set."
    found = "a file"
    if path.name.endswith(EXTENSIONS):
        found = "a single image"
        next_step = f"Enhance it with {_enhance(path)}, or make a BIDS data set of it."
    elif _is_dicom(path):
        found = "a DICOM file"
        next_step = _convert(path.parent)
    return UsageError(path, found=found, expected="the folder of a BIDS data set", next_step=next_step)


def _refuse_folder(root: Path) -> UsageError:
    """Return the error for a folder without a description: what it is, and what to do."""
    found = "no dataset_description.json, and no <id>/T1w/T1w_acpc_dc_restore.nii.gz"
    example = f'{{"Name": "...", "BIDSVersion": "{BIDS_VERSION}"}}'
    next_step = f"Give its root; if it lacks the file, write {example}."
    subject = next((p for p in (root, *root.parents) if _is_subject(p)), None)
    if subject is not None:
        found = f"the folder of one subject, {subject.name}, or a part of it"
        label = subject.name.removeprefix("sub-")
        next_step = f"Give the folder above it, {subject.parent}, with --participant-label {label}."
    elif not any(root.glob("sub-*/anat")) and not any(root.glob("sub-*/ses-*/anat")):
        images = sorted(path for path in _files(root, 0) if path.name.endswith(EXTENSIONS))
        if images:
            found = f"images that are in no data set, such as {images[0].name}"
            next_step = f"Enhance one by one with {_enhance(images[0])}, or {_TO_BIDS}"
        elif any(_is_dicom(path) for path in islice(_files(root, 3), MOST_FILES)):
            found = "DICOM files"
            next_step = _convert(root)
    return UsageError(
        root,
        found=found,
        expected="a BIDS data set, which has a dataset_description.json at its root, or HCP downloads, which "
        "have <id>/T1w/T1w_acpc_dc_restore.nii.gz",
        next_step=next_step,
    )


def _is_subject(folder: Path) -> bool:
    """Return whether a folder is that of a subject, by its name, its content and its parent."""
    if not (folder.name.startswith("sub-") and is_label(folder.name[4:])):
        return False
    within = (folder / "anat").is_dir() or any(folder.glob("ses-*/anat"))
    return within or (folder.parent / "dataset_description.json").is_file()


def _convert(folder: Path) -> str:
    command = f"dcm2niix -b y -z y -o OUTPUT {shlex.quote(str(folder))}"
    return f"Convert them with `{command}`. Then enhance an image with iqtflow-enhance, or {_TO_BIDS}"


def _enhance(image: Path) -> str:
    return f"`iqtflow-enhance {shlex.quote(str(image))} enhanced.nii.gz`"


def _files(folder: Path, depth: int) -> Iterator[Path]:
    """Yield the regular files of a folder, and of the folders in it down to a depth."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if entry.is_file():
            yield Path(entry.path)
    for entry in entries:
        if depth and entry.is_dir(follow_symlinks=False):
            yield from _files(Path(entry.path), depth - 1)


def _is_dicom(path: Path) -> bool:
    if path.suffix.lower() in (".dcm", ".ima") or path.name == "DICOMDIR":
        return True
    try:
        with open(path, "rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False
