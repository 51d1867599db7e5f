"""Which images of a BIDS data set to process, and what is known about each."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iqtflow.errors import UsageError

LOGGER = logging.getLogger("nipype.workflow")


@dataclass(frozen=True)
class Scan:
    """One image of a BIDS data set.

    Attributes
    ----------
    path
        The image, absolute.
    subject, session
        Labels without ``sub-`` and ``ses-``; no session is None.
    entities
        Short BIDS names and labels as in the file name, in its order, ``sub`` and ``ses`` included.
    suffix
        ``"T1w"``, for one.
    sidecar
        Metadata from all JSON files that apply (BIDS inheritance principle), the nearest winning.
    sidecar_path
        The JSON file beside the image, if there is one.
    root
        Root of the data set.
    warnings
        What is wrong with the metadata, as sentences: a JSON file that cannot be read is left out, not fatal.
    """

    path: Path
    subject: str
    session: str | None
    entities: Mapping[str, str]
    suffix: str
    sidecar: Mapping[str, Any]
    sidecar_path: Path | None
    root: Path
    warnings: tuple[str, ...] = ()

    @property
    def uri(self) -> str:
        """BIDS URI for ``Sources``; ``raw`` is declared by :func:`write_dataset_description`."""
        return f"bids:raw:{self.path.relative_to(self.root).as_posix()}"


def find_scans(
    bids_dir: str | os.PathLike,
    *,
    subjects: Iterable[str] | None = None,
    sessions: Iterable[str] | None = None,
    suffix: str = "T1w",
) -> list[Scan]:
    """Find the images of one contrast in a BIDS data set.

    Only names are looked at: no image is opened.

    Parameters
    ----------
    bids_dir
        Root of the data set.
    subjects
        Labels of the subjects wanted, with or without ``sub-``; none means all.
    sessions
        Labels of the sessions wanted, with or without ``ses-``; none means all, and images without a session.
    suffix
        BIDS suffix, for instance ``"T1w"``.

    Returns
    -------
    list of Scan
        Sorted by path.

    Raises
    ------
    UsageError
        Not a BIDS data set, an unknown subject or session, or no such image (of a subject asked for by name).
    """
    root = check_dataset(bids_dir)
    known = list_subjects(root)
    wanted = _known_labels(subjects, known, entity="sub", where=root)
    found = [_as_scan(Path(name), root) for name in _list_images(root, wanted, suffix)]
    # Phase and complex parts of an acquisition are no anatomy to look at.
    scans = _without_twins([scan for scan in found if scan.entities.get("part", "mag") == "mag"])
    if sessions:
        present = sorted({scan.session for scan in scans if scan.session})
        kept = _known_labels(sessions, present, entity="ses", where=root)
        scans = [scan for scan in scans if scan.session in kept]
    asked = wanted if subjects else []
    lacking = [f"sub-{label}" for label in asked if not any(scan.subject == label for scan in scans)]
    if lacking or not scans:
        raise UsageError(
            root,
            found=f"no {suffix} image" + (f" of {', '.join(lacking)}" if lacking else ""),
            expected=f"images named sub-<label>[/ses-<label>]/anat/*_{suffix}.nii[.gz]",
            next_step="Check the data set with a BIDS validator, or choose other subjects or sessions.",
        )
    return scans


def check_dataset(bids_dir: str | os.PathLike) -> Path:
    """Return the absolute root of a BIDS data set.

    Raises
    ------
    UsageError
        There is no such folder, or it does not describe itself as a BIDS data set.
    """
    root = Path(bids_dir).absolute()
    if not root.is_dir():
        raise UsageError(
            root,
            found="a file" if root.exists() else "nothing",
            expected="the folder of a BIDS data set",
            next_step="Check the path (in a container: check what is mounted where).",
        )
    if not (root / "dataset_description.json").is_file():
        raise UsageError(
            root,
            found="no dataset_description.json",
            expected="a BIDS data set, which has one at its root",
            next_step='Give its root; if it lacks the file, write {"Name": "...", "BIDSVersion": "1.10.0"}.',
        )
    return root


def list_subjects(bids_dir: str | os.PathLike) -> list[str]:
    """Return the labels, without ``sub-``, of the subject folders of a data set."""
    with os.scandir(bids_dir) as entries:
        return sorted(entry.name[4:] for entry in entries if entry.name.startswith("sub-") and entry.is_dir())


def _known_labels(
    wanted: Iterable[str] | None, known: Sequence[str], *, entity: str, where: Path
) -> list[str]:
    """Return the wanted labels without prefix, or all that are known; refuse a label that is not known."""
    labels = [label.removeprefix(f"{entity}-") for label in wanted or ()]
    unknown = [f"{entity}-{label}" for label in labels if label not in known]
    if unknown:
        raise UsageError(
            where,
            found=f"no {', '.join(unknown)}",
            expected=f"labels that the data set has ({_some(known, entity)})",
            next_step="Correct the label; labels are case-sensitive.",
        )
    return labels or list(known)


def _some(labels: Sequence[str], entity: str, limit: int = 8) -> str:
    shown = ", ".join(f"{entity}-{label}" for label in labels[:limit])
    if not labels:
        return f"it has no {entity}-* at all"
    return shown + (f", and {len(labels) - limit} more" if len(labels) > limit else "")


def _list_images(root: Path, subjects: Sequence[str], suffix: str) -> list[str]:
    """List the image files of one suffix through pybids, shown only what can matter.

    Metadata are not indexed: that multiplies the time, and one unreadable JSON file would stop every subject.
    """
    from bids import BIDSLayout, BIDSLayoutIndexer  # pandas and SQLAlchemy: too slow for `iqtflow --help`

    labels = "|".join(re.escape(label) for label in subjects)
    ignore = [
        re.compile(rf"^/(?!sub-({labels})(/|$))[^/]+"),  # derivatives, sourcedata, code, other subjects
        re.compile(r"^/sub-[^/]+/(?!ses-|anat)[^/]+"),
        re.compile(r"^/sub-[^/]+/ses-[^/]+/(?!anat)[^/]+"),
        re.compile(rf"/anat/(?!.*_{re.escape(suffix)}\.nii(\.gz)?$)[^/]+$"),
    ]
    indexer = BIDSLayoutIndexer(validate=False, index_metadata=False, ignore=ignore)
    layout = BIDSLayout(root, validate=False, indexer=indexer)
    return sorted(layout.get(suffix=suffix, extension=[".nii", ".nii.gz"], return_type="filename"))


def _as_scan(path: Path, root: Path) -> Scan:
    stem = path.name.split(".")[0]
    entities = read_entities(stem)
    sidecar, warnings = _inherited(path, root)
    beside = path.with_name(f"{stem}.json")
    return Scan(
        path=path,
        subject=entities["sub"],
        session=entities.get("ses"),
        entities=entities,
        suffix=stem.rpartition("_")[2],
        sidecar=sidecar,
        sidecar_path=beside if beside.is_file() else None,
        root=root,
        warnings=warnings,
    )


def read_entities(stem: str) -> dict[str, str]:
    """Return the entities of a BIDS file name (without its extension) by their short names, in its order."""
    pairs = (part.partition("-") for part in stem.split("_")[:-1])
    return {key: value for key, _, value in pairs}


def _inherited(image: Path, root: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Merge the JSON files that apply to an image, from the root down: the BIDS inheritance principle."""
    stem = image.name.split(".")[0]
    suffix, own = stem.rpartition("_")[2], read_entities(stem).items()
    merged: dict[str, Any] = {}
    warnings = []
    folders = [folder for folder in reversed(image.parents) if folder == root or root in folder.parents]
    for folder in folders:
        for file in sorted(
            folder.glob(f"*{suffix}.json"), key=lambda file: (file.name.count("_"), file.name)
        ):
            name = file.name.removesuffix(".json")
            if name.rpartition("_")[2] != suffix or not read_entities(name).items() <= own:
                continue
            try:
                content = json.loads(file.read_text(encoding="utf-8-sig"))
                if not isinstance(content, dict):
                    raise ValueError(f"it holds a {type(content).__name__}, not an object")
            except (OSError, ValueError) as fault:
                warnings.append(f"{file} could not be read and was left out ({fault}).")
            else:
                merged.update(content)
    return merged, tuple(warnings)


def _without_twins(scans: Sequence[Scan]) -> list[Scan]:
    """Keep one of X.nii and X.nii.gz: both would be written to the same derivative."""
    kept: dict[Path, Scan] = {}
    for scan in scans:
        name = scan.path.with_name(scan.path.name.split(".")[0])
        if name in kept:
            LOGGER.warning("%s is left out: %s has the same name.", kept[name].path, scan.path.name)
        kept[name] = scan  # sorted: .nii.gz comes after .nii
    return list(kept.values())
