"""Which of the images found are processed: those whose name says whose they are, that are files, and that
share their outputs' names with no other.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from iqtflow.bids.names import ENTITY_ORDER, LONGEST_NAME, derivative_name, is_label, node_name, stem_of
from iqtflow.bids.scan import LeftOut, Scan
from iqtflow.utils.errors import printable

#: A link that leads nowhere: content that has not been fetched. Its scan fails by itself, with what to do.
_NOT_THERE = (errno.ENOENT, errno.ELOOP, errno.ENOTDIR)


def check_name(path: Path, root: Path) -> str | None:
    """Return why the name of an image cannot be worked with; None when it can.

    Parameters
    ----------
    path
        ``ROOT/sub-X/[ses-Y/]anat/NAME``; the file is not looked at.
    root
        Root of the data set.
    """
    home, *sessions, _, name = path.relative_to(root).parts
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
            f"at most {LONGEST_NAME}: results and figures add to it, and file systems take 255",
        )
    return None


def admit(scans: Iterable[Scan]) -> tuple[list[Scan], list[LeftOut]]:
    """Part scans that can be processed from those that are no files, or would be written over one another.

    Of scans with one output name, the one is taken whose own name is BIDS' most plainly: without ``desc-``,
    its entities in order, compressed. Where two are alike in this, none is.

    Parameters
    ----------
    scans
        With names that can be worked with.
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
        taken = _plainest(group)
        admitted += [] if taken is None else [taken]
        for scan in group:
            if scan is not taken:
                others = ", ".join(_told(s) for s in group if s is not scan)
                end = f"{_told(taken)} is taken." if taken else "None of them is taken."
                reason = (
                    f"found the output name that {others} has, too ({output.name}); expected one of its own. "
                    f"{end} Rename or remove one of them."
                )
                left_out.append(LeftOut(scan.path, scan.subject, reason))
    return admitted, left_out


def _plainest(scans: Sequence[Scan]) -> Scan | None:
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
