"""What is wrong with a data set as BIDS, in a few lines that name files."""

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

from iqtflow.bids.names import EXTENSIONS
from iqtflow.bids.scans import Listing
from iqtflow.utils.errors import UsageError, printable
from iqtflow.utils.files import read_text

#: Longer than this (s) a run does not wait for the validator.
PATIENCE_S = 60
#: Lines for all faults, and files named in each.
LINES, FILES = 6, 3
#: Faults of a file's name: what the run does with the file is said.
_NAMES = ("NOT_INCLUDED", "ENTITY_NOT_IN_RULE", "FILENAME_MISMATCH", "INVALID_LOCATION")
#: Stands for all faults of a file that the listing leaves out, and of which it tells the reason.
_LEFT_OUT = "LEFT_OUT"
#: Faults that say nothing about the images that are read here.
_BESIDE_THE_POINT = re.compile(r"README|AUTHORS|PARTICIPANT|CITATION|CHANGES|EMPTY_FILE")


@dataclass(frozen=True)
class Fault:
    """One breach of the standard.

    Attributes
    ----------
    code
        Its name, such as ``"NOT_INCLUDED"``.
    message
        What it is, as a phrase.
    file
        Path under the root.
    """

    code: str
    message: str
    file: str


def validate(root: Path, subjects: Sequence[str] = ()) -> tuple[list[Fault], list[str]]:
    """Find breaches of BIDS: by bids-validator-deno if it is installed, else by names and descriptions alone.

    The validator can only look at a whole data set. Of some subjects, names and description are looked at:
    each of the thousand jobs of an array would look at everything.

    Parameters
    ----------
    root
        Root of the data set; derivatives and source data in it are not looked at.
    subjects
        Labels of the subjects that are processed; none means all.

    Returns
    -------
    faults : list of Fault
    notes : list of str
        What is to be known about how they were found.
    """
    beside = Path(sys.executable).with_name("bids-validator-deno")
    program = beside if beside.exists() else shutil.which("bids-validator-deno")
    if subjects or not program:
        return _look(root, subjects), []
    try:
        return _ask_validator(str(program), root), []
    except subprocess.TimeoutExpired:
        why = f"gave no answer in {PATIENCE_S} s"
    except (OSError, ValueError, KeyError, TypeError) as fault:
        why = f"gave no result ({type(fault).__name__})"
    return _look(root), [f"bids-validator-deno {why}; only names and the description were looked at"]


def summarise(
    faults: Iterable[Fault], root: Path, subjects: Sequence[str] = (), listing: Listing | None = None
) -> list[str]:
    """Put faults into lines for the terminal: those of the images that are read, and a count of the others.

    A fault of a file does not stop a run: the scan fails by itself, is left out, or is not found, and the
    lines say which.

    Parameters
    ----------
    faults
        From `validate`.
    root
        Root of the data set.
    subjects
        Labels of the subjects that are processed; none means all.
    listing
        What the run has found.

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
                expected='JSON such as {"Name": "...", "BIDSVersion": "1.10.0"}',
                next_step="Mend it; or say --skip-bids-validation.",
            )
        if _concerns(fault, subjects):
            code, fate, path = fault.code, "", root / fault.file
            if path in left_out:
                code, fate = _LEFT_OUT, "left out; the reason is told below"
            elif path in scans:
                fate = "read all the same" if code in _NAMES else ""
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
    """Tell whether a fault is about structural images, what describes them, or the data set."""
    if _BESIDE_THE_POINT.search(fault.code):
        return False
    parts = fault.file.split("/")
    if not parts[0].startswith("sub-"):
        return len(parts) == 1 and parts[0].endswith(".json")
    if subjects and parts[0].removeprefix("sub-") not in subjects:
        return False
    return "anat" in parts or len(parts) == 1


def _ask_validator(program: str, root: Path) -> list[Fault]:
    command = [program, str(root), "--json", "--ignoreWarnings", "--ignoreNiftiHeaders", "--prune"]
    # Deno, which runs the validator, asks its server for updates half a second after it has started.
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
    """Look at the description and at the names of structural images, of all subjects or of some."""
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
        except OSError:  # the listing says so
            continue
        for path in paths:
            name = path.relative_to(root).as_posix()
            if not path.name.startswith(".") and not is_bids(f"/{name}"):
                faults.append(Fault("NOT_INCLUDED", "no name of BIDS", name))
    return faults
