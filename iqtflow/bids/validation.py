"""Validate a data set as BIDS, and summarise errors in a few lines that name files."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from iqtflow.bids.names import BIDS_VERSION, EXTENSIONS
from iqtflow.bids.scans import Listing
from iqtflow.utils.errors import UsageError, printable
from iqtflow.utils.files import read_text

#: The run waits for the validator at most so long (s).
PATIENCE_S = 60
#: Most lines for all faults, and most files in each line.
LINES, FILES = 6, 3
#: Faults of a file name. The line says what the run does with the file.
_NAMES = ("NOT_INCLUDED", "ENTITY_NOT_IN_RULE", "FILENAME_MISMATCH", "INVALID_LOCATION")
#: Code for all faults of a file that is left out.
_LEFT_OUT = "LEFT_OUT"
#: Faults that do not concern the images.
_IRRELEVANT = re.compile(r"README|AUTHORS|PARTICIPANT|CITATION|CHANGES|EMPTY_FILE")


@dataclass(frozen=True)
class Fault:
    """One violation of BIDS.

    Attributes
    ----------
    code
        Its name, such as ``"NOT_INCLUDED"``.
    message
        A description.
    file
        Path below the root.
    """

    code: str
    message: str
    file: str


def validate(root: Path, subjects: Sequence[str] = ()) -> tuple[list[Fault], list[str]]:
    """Find violations of BIDS by bids-validator-deno. Without it, check only names and the description.

    The validator checks the whole data set. If only some subjects are processed, their names and the
    description are checked instead, because each of many jobs would check everything.

    Parameters
    ----------
    root
        Root of the data set. Derivatives and source data in it are not checked.
    subjects
        Labels of the subjects that are processed; empty: all.

    Returns
    -------
    faults : list of Fault
    notes : list of str
        Notes on the check, for the user.
    """
    beside = Path(sys.executable).with_name("bids-validator-deno")
    program = beside if beside.exists() else shutil.which("bids-validator-deno")
    if subjects or not program:
        return _look(root, subjects), []
    try:
        return _ask_validator(str(program), root), []
    except subprocess.TimeoutExpired:
        why = f"did not end within {PATIENCE_S} s"
    except (OSError, ValueError, KeyError, TypeError) as fault:
        why = f"failed ({type(fault).__name__})"
    return _look(root), [f"bids-validator-deno {why}; only names and the description were checked"]


def summarise(
    faults: Iterable[Fault], root: Path, subjects: Sequence[str] = (), listing: Listing | None = None
) -> list[str]:
    """Return lines for the terminal: faults of images and their sidecars, and the number of other faults.

    A fault does not stop the run. The lines say whether the file is read, not read, or left out.

    Parameters
    ----------
    faults
        From `validate`.
    root
        Root of the data set.
    subjects
        Labels of the subjects that are processed; empty: all.
    listing
        The images that the run has found.

    Raises
    ------
    UsageError
        ``dataset_description.json`` cannot be read.
    """
    scans, left_out = (set(), set()) if listing is None else ({x.path for x in part} for part in listing)
    by_kind: dict[tuple[str, str], list[Fault]] = {}
    others = 0
    for fault in faults:
        if fault.file == "dataset_description.json" and fault.code in ("JSON_INVALID", "FILE_READ"):
            raise UsageError(
                root / fault.file,
                found=fault.message,
                expected=f'JSON such as {{"Name": "...", "BIDSVersion": "{BIDS_VERSION}"}}',
                next_step="Correct it, or add --skip-bids-validation.",
            )
        if _concerns(fault, subjects):
            code, fate, path = fault.code, "", root / fault.file
            if path in left_out:
                code, fate = _LEFT_OUT, "left out; see the reason below"
            elif path in scans:
                fate = "read nevertheless" if code in _NAMES else ""
            elif path.name.endswith(EXTENSIONS):
                fate = "not read"
            by_kind.setdefault((code, fate), []).append(fault)
        else:
            others += 1
    lines = []
    for (code, fate), group in sorted(by_kind.items(), key=lambda item: -len(item[1])):
        files = sorted({printable(fault.file) for fault in group})
        named = ", ".join(files[:FILES]) + (f", and {len(files) - FILES} more" if len(files) > FILES else "")
        said = [] if code == _LEFT_OUT else [group[0].message or code]
        lines.append(f"not BIDS: {'; '.join([*said, *([fate] if fate else [])])} ({code}): {named}")
    if len(lines) > LINES:
        lines[LINES - 1 :] = [f"not BIDS: and {len(lines) - LINES + 1} more kinds of faults"]
    if others:
        count = "1 fault" if others == 1 else f"{others} faults"
        lines.append(f"{count} in files that are not read here (see a BIDS validator)")
    return lines


def _concerns(fault: Fault, subjects: Sequence[str]) -> bool:
    """Return whether a fault is about structural images, their sidecars, or the description."""
    if _IRRELEVANT.search(fault.code):
        return False
    parts = fault.file.split("/")
    if not parts[0].startswith("sub-"):
        return len(parts) == 1 and parts[0].endswith(".json")
    if subjects and parts[0].removeprefix("sub-") not in subjects:
        return False
    return "anat" in parts or len(parts) == 1


def _ask_validator(program: str, root: Path) -> list[Fault]:
    command = [program, str(root), "--json", "--ignoreWarnings", "--ignoreNiftiHeaders", "--prune"]
    # Without this, Deno, which runs the validator, asks its server for updates.
    silent = {**os.environ, "DENO_NO_UPDATE_CHECK": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE_S, check=False, env=silent
    )
    report = json.loads(done.stdout)["issues"]
    issues, messages = report["issues"], dict(report.get("codeMessages", {}))
    faults = []
    for issue in issues:
        if issue.get("severity") != "error":
            continue
        message = " ".join(str(issue.get("issueMessage") or messages.get(issue["code"], "")).split())
        faults.append(Fault(issue["code"], message[:120], str(issue.get("location", "")).lstrip("/")))
    return faults


def _look(root: Path, subjects: Sequence[str] = ()) -> list[Fault]:
    """Check the description and the names of structural images, of all subjects or of some."""
    from bids_validator import BIDSValidator

    faults = []
    description = root / "dataset_description.json"
    try:
        fields = json.loads(read_text(description))
        if not isinstance(fields, dict):
            raise ValueError(f"it holds a {type(fields).__name__}, not an object")
        for key in ("Name", "BIDSVersion"):
            if not fields.get(key):
                faults.append(Fault("JSON_KEY_REQUIRED", f"no {key}", description.name))
    except (OSError, ValueError) as fault:
        faults.append(Fault("JSON_INVALID", f"{fault}", description.name))
    is_bids = BIDSValidator().is_bids
    homes = [root / f"sub-{label}" for label in subjects] or sorted(root.glob("sub-*"))
    for home in homes:
        try:
            folders = [folder for folder in (home / "anat", *home.glob("ses-*/anat")) if folder.is_dir()]
            paths = sorted(path for folder in folders for path in folder.iterdir())
        except OSError:  # the listing reports it
            continue
        for path in paths:
            name = path.relative_to(root).as_posix()
            if not path.name.startswith(".") and not is_bids(f"/{name}"):
                faults.append(Fault("NOT_INCLUDED", "not a BIDS name", name))
    return faults
