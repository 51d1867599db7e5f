"""Find the images of a data set that are processed, with their metadata."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from iqtflow.bids.dataset import check_dataset, list_subjects
from iqtflow.bids.hcp import is_hcp, list_hcp_scans
from iqtflow.bids.names import (
    ENTITY_ORDER,
    EXTENSIONS,
    LONGEST_NAME,
    derivative_name,
    is_label,
    node_name,
    read_entities,
    stem_of,
)
from iqtflow.bids.scan import LeftOut, Listing, Scan
from iqtflow.bids.sidecars import InheritedSidecars
from iqtflow.utils.errors import UsageError, printable

#: Errors of broken links to content that has not been fetched. Only the scan fails, with a next step.
_NOT_THERE = (errno.ENOENT, errno.ELOOP, errno.ENOTDIR)


def find_scans(bids_dir: str | os.PathLike, **options: Any) -> list[Scan]:
    """Find the images of one contrast, without the files that `list_scans` leaves out."""
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
    """Find the images of one contrast in a BIDS data set, or in HCP downloads. No image is opened.

    A file is left out if its name is invalid, or if another scan would overwrite its output.

    Parameters
    ----------
    bids_dir
        Root of the data set.
    subjects
        Labels of the subjects, with or without ``sub-``. None: all.
    sessions
        Labels of the sessions, with or without ``ses-``. None: all, and images without a session.
    suffix
        BIDS suffix, for example ``"T1w"``.
    filters, database_dir
        As for `iqtflow.bids.index.list_images`.

    Returns
    -------
    Listing
        Both parts sorted by path.

    Raises
    ------
    UsageError
        The folder is no data set, a subject or session is unknown, or there is no such image (of a subject
        that was asked for).
    """
    root = check_dataset(bids_dir)
    left_out: list[LeftOut] = []
    if is_hcp(root):
        if filters or database_dir is not None:
            raise UsageError(
                root,
                found="HCP downloads",
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
    scans, others = _select(scans)
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
    """Return the label of the session folder of a file."""
    parts = path.relative_to(root).parts[1:-1]
    return next((part.removeprefix("ses-") for part in parts if part.startswith("ses-")), None)


def _known_labels(
    wanted: Iterable[str] | None, known: Sequence[str], *, entity: str, where: Path
) -> list[str]:
    """Return the wanted labels without prefix, each once, or all known labels. Refuse unknown labels."""
    labels = list(dict.fromkeys(label.removeprefix(f"{entity}-") for label in wanted or ()))
    unknown = [f"{entity}-{label}" for label in labels if label not in known]
    if unknown:
        raise UsageError(
            where,
            found=f"no {printable(', '.join(unknown))}",
            expected=f"labels of the data set ({_some(known, entity)})",
            next_step="Correct the label; labels are case-sensitive.",
        )
    return labels or list(known)


def _some(labels: Sequence[str], entity: str, limit: int = 8) -> str:
    shown = ", ".join(printable(f"{entity}-{label}") for label in labels[:limit])
    if not labels:
        return f"it has no {entity}-* at all"
    return shown + (f", and {len(labels) - limit} more" if len(labels) > limit else "")


def _list_images(root: Path, subjects: Sequence[str], suffix: str) -> tuple[list[Path], list[LeftOut]]:
    """List files named as images of a contrast, and folders that cannot be listed."""
    paths, left_out = [], []
    for label in subjects:
        home = root / f"sub-{label}"
        folder = home
        try:
            homes = [home, *sorted(p for p in home.iterdir() if p.name.startswith("ses-") and p.is_dir())]
            for folder in (place / "anat" for place in homes):
                if folder.is_dir():
                    images = [p for p in folder.iterdir() if p.name.lower().endswith(EXTENSIONS)]
                    named = [path for path in images if stem_of(path.name).endswith(f"_{suffix}")]
                    paths += sorted(path for path in named if not path.name.startswith("."))
        except OSError as fault:
            reason = f"found a folder that cannot be listed ({fault.strerror}). Check its permissions."
            left_out.append(LeftOut(folder, label, reason))
    return paths, left_out


def _as_scans(paths: Iterable[Path], root: Path, *, parts: bool) -> tuple[list[Scan], list[LeftOut]]:
    """Describe the images with valid names; with `parts`, also phase and complex parts."""
    metadata = InheritedSidecars(root)
    scans, left_out = [], []
    for path in paths:
        stem, reason = stem_of(path.name), _check_name(path, root)
        entities = read_entities(stem)
        if reason is not None:
            home = path.relative_to(root).parts[0]
            left_out.append(LeftOut(path, home.removeprefix("sub-"), reason))
        elif parts or entities.get("part", "mag") == "mag":  # no phase images
            sidecar, warnings = metadata.merge(path)
            beside = path.with_name(f"{stem}.json")
            scan = Scan(
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
            scans.append(scan)
    return scans, left_out


def _check_name(path: Path, root: Path) -> str | None:
    """Return why the name ``ROOT/sub-X/[ses-Y/]anat/NAME`` of an image is invalid; None if it is valid."""
    home, *sessions, _, name = path.relative_to(root).parts
    if not name.endswith(EXTENSIONS):
        return _wrong(f"the ending {name[len(stem_of(name)) :]!r}", "small letters, .nii or .nii.gz")
    folders = {folder[:3]: folder[4:] for folder in (home, *sessions)}
    entities: dict[str, str] = {}
    for part in stem_of(name).split("_")[:-1]:
        key, _, label = part.partition("-")
        if key not in ENTITY_ORDER or not label:
            return _wrong(f"{part!r} in its name", "entities of BIDS, such as sub-01 or acq-axial")
        if key in entities:
            return _wrong(f"two entities {key}- in its name", "each entity once")
        entities[key] = label
    for key, label in [*folders.items(), *entities.items()]:
        if not is_label(label):
            return _wrong(f"the label {label!r} in {key}-{label}", "letters, digits and + in a label")
    for key in ("sub", "ses"):
        if folders.get(key) != entities.get(key):
            found = f"{key}-{entities[key]}" if key in entities else f"no {key}-"
            wanted = f"{key}-{folders[key]}, as its folder says" if key in folders else f"no {key}-"
            return _wrong(f"{found} in its name", wanted)
    length = len(node_name(stem_of(name)))
    if length > LONGEST_NAME:
        plus = " (a + counts twice)" if "+" in name else ""
        return _wrong(
            f"a name of {length} characters{plus}",
            f"at most {LONGEST_NAME}, because names of results are longer, and file systems take 255",
        )
    return None


def _select(scans: Iterable[Scan]) -> tuple[list[Scan], list[LeftOut]]:
    """Separate scans that are processed from those that are not files, or would overwrite each other.

    Of scans with the same output name, the one with the simplest BIDS name is taken: without ``desc-``, with
    ordered entities, compressed. If two are equally simple, none is taken.
    """
    left_out: list[LeftOut] = []
    by_output: dict[Path, list[Scan]] = {}
    for scan in scans:
        reason = _check_file(scan.path)
        if reason is None:
            by_output.setdefault(derivative_name(scan, desc="iqt"), []).append(scan)
        else:
            left_out.append(LeftOut(scan.path, scan.subject, reason))
    admitted = []
    for output, group in by_output.items():
        taken = _simplest(group)
        admitted += [] if taken is None else [taken]
        for scan in group:
            if scan is not taken:
                others = ", ".join(_told(s) for s in group if s is not scan)
                end = f"{_told(taken)} is taken." if taken else "None of them is taken."
                reason = (
                    f"found the same output name as {others} ({output.name}); expected one of its own. "
                    f"{end} Rename or remove one of them."
                )
                left_out.append(LeftOut(scan.path, scan.subject, reason))
    return admitted, left_out


def _simplest(scans: Sequence[Scan]) -> Scan | None:
    def rank(scan: Scan) -> tuple[bool, ...]:
        keys = [ENTITY_ORDER.index(key) for key in scan.entities]
        return "desc" in scan.entities, keys != sorted(keys), not scan.path.name.endswith(".gz")

    first, *others = sorted(scans, key=rank)
    alike = any(rank(s) == rank(first) or s.path.parent != first.path.parent for s in others)
    return None if alike else first


def _check_file(path: Path) -> str | None:
    try:
        mode = os.stat(path).st_mode
    except OSError as fault:
        if fault.errno in _NOT_THERE:
            return None
        return f"found a file that cannot be opened ({fault.strerror}). Check its permissions."
    if stat.S_ISREG(mode):
        return None
    kind = "a folder" if stat.S_ISDIR(mode) else "a pipe" if stat.S_ISFIFO(mode) else "a socket or device"
    return f"found {kind}; expected a file. Remove or rename it."


def _told(scan: Scan) -> str:
    return printable(scan.path.relative_to(scan.root))


def _wrong(found: str, expected: str) -> str:
    return f"found {printable(found)}; expected {expected}. Rename the file."
