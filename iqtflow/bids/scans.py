"""Which images of a BIDS data set to process, and what is known about each."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iqtflow.errors import UsageError
from iqtflow.pointers import how_to_fetch

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
    def name(self) -> str:
        """BIDS name without extension; the file's own, but for an image whose data set is not in BIDS."""
        return "_".join([*(f"{key}-{value}" for key, value in self.entities.items()), self.suffix])

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
    filters: Mapping[str, Any] | None = None,
    database_dir: str | os.PathLike | None = None,
) -> list[Scan]:
    """Find the images of one contrast in a BIDS data set, or among downloads of HCP.

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
    filters, database_dir
        As for `iqtflow.bids.index.list_images`.

    Returns
    -------
    list of Scan
        Sorted by path.

    Raises
    ------
    UsageError
        Neither, an unknown subject or session, or no such image (of a subject asked for by name).
    """
    from iqtflow.bids.hcp import is_hcp, list_hcp_scans

    root = check_dataset(bids_dir)
    if is_hcp(root):
        if filters or database_dir is not None:
            raise UsageError(
                root,
                found="folders of the Human Connectome Project",
                expected="a BIDS data set, for --bids-filter-file and --bids-database-dir",
                next_step="Leave these options out; choose subjects with --participant-label.",
            )
        scans = list_hcp_scans(root, suffix)
        wanted = _known_labels(subjects, sorted({s.subject for s in scans}), entity="sub", where=root)
        scans = [scan for scan in scans if scan.subject in set(wanted)]
    else:
        wanted = _known_labels(subjects, list_subjects(root), entity="sub", where=root)
        scans = _list_scans(root, wanted, suffix, filters, database_dir)
    if sessions:
        present = sorted({scan.session for scan in scans if scan.session})
        kept = _known_labels(sessions, present, entity="ses", where=root)
        scans = [scan for scan in scans if scan.session in kept]
    asked = wanted if subjects else []
    lacking = [f"sub-{label}" for label in asked if not any(scan.subject == label for scan in scans)]
    if lacking or not scans:
        raise UsageError(
            root,
            found=f"no {suffix} image"
            + (f" of {', '.join(lacking)}" if lacking else "")
            + (" that passes the filters" if filters else ""),
            expected=f"images named sub-<label>[/ses-<label>]/anat/*_{suffix}.nii[.gz]",
            next_step="Check the data set with a BIDS validator, or choose other subjects or sessions"
            + (" or filters." if filters else "."),
        )
    return scans


def check_dataset(bids_dir: str | os.PathLike) -> Path:
    """Return the absolute root of a data set: BIDS, or HCP's folders as they are downloaded.

    Raises
    ------
    UsageError
        There is no such folder, or it is neither.
    """
    from iqtflow.bids.hcp import is_hcp

    root = Path(bids_dir).absolute()
    if not root.is_dir():
        raise UsageError(
            root,
            found="a file" if root.exists() else "nothing",
            expected="the folder of a BIDS data set",
            next_step="Check the path (in a container: check what is mounted where).",
        )
    description = root / "dataset_description.json"
    way_out = how_to_fetch(description)
    if way_out:
        raise UsageError(
            description,
            found="a pointer to content that has not been fetched",
            expected="the description of a BIDS data set",
            next_step=way_out,
        )
    if not description.is_file() and not is_hcp(root):
        raise UsageError(
            root,
            found="no dataset_description.json, and no <id>/T1w/T1w_acpc_dc_restore.nii.gz",
            expected="a BIDS data set, which has the one at its root, or HCP downloads, which have the other",
            next_step='Give its root; if it lacks the file, write {"Name": "...", "BIDSVersion": "1.10.0"}.',
        )
    return root


def list_subjects(bids_dir: str | os.PathLike) -> list[str]:
    """Return the labels, without ``sub-``, of the subject folders of a data set."""
    with os.scandir(os.fspath(bids_dir)) as entries:
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


def _list_scans(
    root: Path,
    subjects: Sequence[str],
    suffix: str,
    filters: Mapping[str, Any] | None,
    database_dir: str | os.PathLike | None,
) -> list[Scan]:
    from iqtflow.bids.index import list_images

    paths = list_images(root, subjects, suffix, filters=filters, database_dir=database_dir)
    metadata = _Inheritance(root)
    scans = [_as_scan(path, root, metadata) for path in paths]
    if "part" not in (filters or {}):  # phase and complex parts of an acquisition are no anatomy to look at
        scans = [scan for scan in scans if scan.entities.get("part", "mag") == "mag"]
    return _without_twins(scans)


def _as_scan(path: Path, root: Path, metadata: _Inheritance) -> Scan:
    stem = path.name.split(".")[0]
    entities = read_entities(stem)
    sidecar, warnings = metadata.merge(path)
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


class _Inheritance:
    """Metadata by the BIDS inheritance principle; each folder is listed, and each file read, once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._listed: dict[Path, list[tuple[Path, str, dict[str, str]]]] = {}
        self._read: dict[Path, tuple[dict[str, Any], str | None]] = {}

    def merge(self, image: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Merge the JSON files that apply to an image, from the root down."""
        stem = image.name.split(".")[0]
        suffix, own = stem.rpartition("_")[2], read_entities(stem).items()
        merged: dict[str, Any] = {}
        warnings = []
        for folder in reversed(image.parents):
            if folder != self._root and self._root not in folder.parents:
                continue
            for file, its_suffix, entities in self._list(folder):
                if its_suffix == suffix and entities.items() <= own:
                    content, warning = self._content(file)
                    merged.update(content)
                    warnings += [warning] if warning else []
        return merged, tuple(warnings)

    def _list(self, folder: Path) -> list[tuple[Path, str, dict[str, str]]]:
        if folder not in self._listed:
            files = sorted(folder.glob("*.json"), key=lambda file: (file.name.count("_"), file.name))
            stems = [file.name.removesuffix(".json") for file in files]
            self._listed[folder] = [
                (file, stem.rpartition("_")[2], read_entities(stem))
                for file, stem in zip(files, stems, strict=True)
            ]
        return self._listed[folder]

    def _content(self, file: Path) -> tuple[dict[str, Any], str | None]:
        if file not in self._read:
            try:
                content = json.loads(file.read_text(encoding="utf-8-sig"))
                if not isinstance(content, dict):
                    raise ValueError(f"it holds a {type(content).__name__}, not an object")
                self._read[file] = (content, None)
            except (OSError, ValueError) as fault:
                way_out = how_to_fetch(file)
                why = f"its content has not been fetched: {way_out}" if way_out else f"{fault}"
                self._read[file] = ({}, f"{file} could not be read and was left out ({why}).")
        return self._read[file]


def _without_twins(scans: Sequence[Scan]) -> list[Scan]:
    """Keep one of X.nii and X.nii.gz: both would be written to the same derivative."""
    kept: dict[Path, Scan] = {}
    for scan in scans:
        name = scan.path.with_name(scan.path.name.split(".")[0])
        if name in kept:
            LOGGER.warning("%s is left out: %s has the same name.", kept[name].path, scan.path.name)
        kept[name] = scan  # sorted: .nii.gz comes after .nii
    return list(kept.values())
