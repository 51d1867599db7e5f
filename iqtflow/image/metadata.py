"""Read BIDS sidecars. A text is never taken for a number or for true."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from iqtflow.utils.datalad import how_to_fetch
from iqtflow.utils.errors import InputError
from iqtflow.utils.files import read_text


def read_fields(path: str | os.PathLike) -> dict[str, Any]:
    """Read the fields of a JSON sidecar, unchanged.

    Raises
    ------
    InputError
        It is not a file, has not been fetched, is not JSON in UTF-8, or is not a JSON object.
    """
    path = Path(path)
    try:
        content = json.loads(read_text(path), parse_int=read_whole)
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}, not an object")
    except (OSError, ValueError, RecursionError) as fault:
        fetch = how_to_fetch(path)
        raise InputError(
            path,
            found="content that has not been fetched" if fetch else " ".join(str(fault).split()),
            expected='a JSON object such as {"SliceThickness": 5.0}',
            next_step=fetch or "Correct the file, or delete it.",
        ) from fault
    return content


def drop_invalid_fields(
    fields: Mapping[str, Any], origin: str | os.PathLike | Mapping[str, str | os.PathLike]
) -> tuple[dict[str, Any], list[str]]:
    """Remove invalid values, with a note for each.

    Parameters
    ----------
    fields
        Fields of one sidecar, or of several merged.
    origin
        The JSON file, or the file of each field.

    Returns
    -------
    fields : dict
        ``SkullStripped``, if stated, is a bool. Thickness and spacing (mm) and field strength (T), if stated,
        are floats. Other fields are unchanged.
    notes : list of str
        One sentence for each removed value.
    """
    settled, notes = dict(fields), []
    for key, (read, expected) in _READERS.items():
        if settled.get(key) is None:  # null: not known
            settled.pop(key, None)
            continue
        value = read(settled[key])
        if value is None:
            place = origin.get(key, "") if isinstance(origin, Mapping) else origin
            found = _shortly(settled.pop(key))
            notes.append(f"{os.fspath(place)}: {key} is {found}; expected {expected}. It is not used.")
        else:
            settled[key] = value
    return settled, notes


def skull_stripped(fields: Mapping[str, Any]) -> str:
    """Return the option for skull stripping: "yes" (skull removed), "no", or "auto" (find out)."""
    return {True: "yes", False: "no", None: "auto"}[boolean(fields.get("SkullStripped"))]


def boolean(value: Any) -> bool | None:
    """Return True and False unchanged, None for everything else, also for the text "false"."""
    return value if isinstance(value, bool) else None


def number(most: float) -> Callable[[Any], float | None]:
    """Return a reader of numbers above 0 and below `most`. It returns None for everything else."""

    def read(value: Any) -> float | None:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return None
        return float(value) if 0 < value < most else None  # NaN is neither

    return read


length_mm = number(1000.0)

#: Fields that are used: reader, and valid values.
_READERS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "SkullStripped": (boolean, "true or false, without quotes"),
    "SliceThickness": (length_mm, "a number of millimetres above 0, without quotes"),
    "SpacingBetweenSlices": (length_mm, "a number of millimetres above 0, without quotes"),
    "MagneticFieldStrength": (number(100.0), "a number of teslas above 0, without quotes"),
}


def read_whole(digits: str) -> int | float:
    """Convert a whole number in JSON. One with a thousand digits or more becomes infinite."""
    return int(digits) if len(digits) < 1000 else float(digits)


def _shortly(value: Any) -> str:
    try:
        text = json.dumps(value)
    except (TypeError, ValueError, RecursionError):  # not from JSON, or nested without end
        text = f"a {type(value).__name__}"
    return text if len(text) <= 40 else re.sub(r"\s", " ", text[:37]) + "..."
