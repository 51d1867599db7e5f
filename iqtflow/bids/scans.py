"""Which images of a BIDS data set to process, and what is known about each."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from iqtflow.bids.dataset import check_dataset, list_subjects
from iqtflow.bids.gate import admit, check_name
from iqtflow.bids.names import EXTENSIONS, read_entities, stem_of
from iqtflow.bids.scan import LeftOut, Listing, Scan
from iqtflow.image.metadata import read_fields, settle_values
from iqtflow.utils.errors import InputError, UsageError, printable


def find_scans(bids_dir: str | os.PathLike, **options: Any) -> list[Scan]:
    """Find the images of one contrast; `list_scans` without what it leaves out."""
    return list_scans(bids_dir, **options).scans


def list_scans(
    bids_dir: str | os.PathLike,
    *,
    subjects: Iterable[str] | None = None,
    sessions: Iterable[str] | None = None,
    suffix: str = "T1w",
    filters: Mapping[str, Any] | None = None,
    database_dir: str | os.PathLike | None = None,
) -> Listing:
    """Find the images of one contrast in a BIDS data set, or among downloads of HCP.

    Only names are looked at: no image is opened. A file whose name cannot be worked with, or whose output
    another scan would overwrite, is left out (`iqtflow.bids.gate`), and the rest is there.

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
    Listing
        Both parts sorted by path.

    Raises
    ------
    UsageError
        Neither, an unknown subject or session, or no such image (of a subject asked for by name).
    """
    from iqtflow.bids.hcp import is_hcp, list_hcp_scans

    root = check_dataset(bids_dir)
    left_out: list[LeftOut] = []
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
        if filters or database_dir is not None:
            from iqtflow.bids.index import list_images

            paths = list_images(root, wanted, suffix, filters=filters, database_dir=database_dir)
        else:
            paths, left_out = _list_images(root, wanted, suffix)
        scans, misnamed = _as_scans(paths, root, parts="part" in (filters or {}))
        left_out += misnamed
    if sessions:
        present = {scan.session for scan in scans} | {_session_of(left.path, root) for left in left_out}
        kept = _known_labels(sessions, sorted(filter(None, present)), entity="ses", where=root)
        scans = [scan for scan in scans if scan.session in kept]
        left_out = [left for left in left_out if _session_of(left.path, root) in kept]
    scans, others = admit(scans)
    left_out += others
    asked = wanted if subjects else []
    there = {*(scan.subject for scan in scans), *(left.subject for left in left_out)}
    lacking = [f"sub-{label}" for label in asked if label not in there]
    if lacking or not there:
        raise UsageError(
            root,
            found=f"no {suffix} image"
            + (f" of {', '.join(lacking)}" if lacking else "")
            + (" that passes the filters" if filters else ""),
            expected=f"images named sub-<label>[/ses-<label>]/anat/*_{suffix}.nii[.gz]",
            next_step="Check the data set with a BIDS validator, or choose other subjects or sessions"
            + (" or filters." if filters else "."),
        )
    return Listing(sorted(scans, key=lambda scan: scan.path), sorted(left_out, key=lambda left: left.path))


def _session_of(path: Path, root: Path) -> str | None:
    """Label of the session folder that a file lies in."""
    parts = path.relative_to(root).parts[1:-1]
    return next((part.removeprefix("ses-") for part in parts if part.startswith("ses-")), None)


def _known_labels(
    wanted: Iterable[str] | None, known: Sequence[str], *, entity: str, where: Path
) -> list[str]:
    """Return the wanted labels without prefix, each once, or all that are known; refuse an unknown one."""
    labels = list(dict.fromkeys(label.removeprefix(f"{entity}-") for label in wanted or ()))
    unknown = [f"{entity}-{label}" for label in labels if label not in known]
    if unknown:
        raise UsageError(
            where,
            found=f"no {printable(', '.join(unknown))}",
            expected=f"labels that the data set has ({_some(known, entity)})",
            next_step="Correct the label; labels are case-sensitive.",
        )
    return labels or list(known)


def _some(labels: Sequence[str], entity: str, limit: int = 8) -> str:
    shown = ", ".join(printable(f"{entity}-{label}") for label in labels[:limit])
    if not labels:
        return f"it has no {entity}-* at all"
    return shown + (f", and {len(labels) - limit} more" if len(labels) > limit else "")


def _list_images(root: Path, subjects: Sequence[str], suffix: str) -> tuple[list[Path], list[LeftOut]]:
    """List files that are named as images of a contrast, and folders that cannot be listed."""
    endings = tuple(f"_{suffix}{extension}" for extension in EXTENSIONS)
    paths, left_out = [], []
    for label in subjects:
        home = root / f"sub-{label}"
        folder = home
        try:
            homes = [home, *sorted(p for p in home.iterdir() if p.name.startswith("ses-") and p.is_dir())]
            for folder in (place / "anat" for place in homes):
                if folder.is_dir():
                    named = [path for path in folder.iterdir() if path.name.endswith(endings)]
                    paths += sorted(path for path in named if not path.name.startswith("."))
        except OSError as fault:
            reason = f"found a folder that cannot be listed ({fault.strerror}). Check its permissions."
            left_out.append(LeftOut(folder, label, reason))
    return paths, left_out


def _as_scans(paths: Iterable[Path], root: Path, *, parts: bool) -> tuple[list[Scan], list[LeftOut]]:
    """Describe the images whose names can be worked with; `parts`: phase and complex parts, too."""
    metadata = _Inheritance(root)
    scans, left_out = [], []
    for path in paths:
        reason = check_name(path, root)
        if reason is not None:
            home = path.relative_to(root).parts[0]
            left_out.append(LeftOut(path, home.removeprefix("sub-"), reason))
        elif parts or read_entities(stem_of(path.name)).get("part", "mag") == "mag":  # else no anatomy
            scans.append(_as_scan(path, root, metadata))
    return scans, left_out


def _as_scan(path: Path, root: Path, metadata: _Inheritance) -> Scan:
    stem = stem_of(path.name)
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


class _Inheritance:
    """Metadata by the BIDS inheritance principle; each folder is listed, and each file read, once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._listed: dict[Path, list[tuple[Path, str, dict[str, str]]]] = {}
        self._read: dict[Path, tuple[dict[str, Any], str | None]] = {}

    def merge(self, image: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Merge the JSON files that apply to an image, from the root down."""
        stem = stem_of(image.name)
        suffix, own = stem.rpartition("_")[2], read_entities(stem).items()
        merged: dict[str, Any] = {}
        origin: dict[str, Path] = {}
        warnings = []
        for folder in reversed(image.parents):
            if folder != self._root and self._root not in folder.parents:
                continue
            for file, its_suffix, entities in self._list(folder):
                if its_suffix == suffix and entities.items() <= own:
                    content, warning = self._content(file)
                    merged.update(content)
                    origin.update(dict.fromkeys(content, file))
                    warnings += [warning] if warning else []
        settled, notes = settle_values(merged, origin)
        return settled, (*warnings, *notes)

    def _list(self, folder: Path) -> list[tuple[Path, str, dict[str, str]]]:
        if folder not in self._listed:
            try:
                found = [path for path in folder.iterdir() if path.name.endswith(".json")]
            except OSError:  # it can be passed through, and not listed
                found = []
            files = sorted(found, key=lambda file: (file.name.count("_"), file.name))
            stems = [file.name.removesuffix(".json") for file in files]
            self._listed[folder] = [
                (file, stem.rpartition("_")[2], read_entities(stem))
                for file, stem in zip(files, stems, strict=True)
            ]
        return self._listed[folder]

    def _content(self, file: Path) -> tuple[dict[str, Any], str | None]:
        if file not in self._read:
            try:
                self._read[file] = (read_fields(file), None)
            except InputError as fault:
                why = f"found {fault.found}; expected {fault.expected}. {fault.next_step}"
                self._read[file] = ({}, f"{file} could not be read and was left out ({why})")
        return self._read[file]
