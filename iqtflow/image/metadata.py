"""Values of BIDS sidecars: one reader for all, so that a text never passes for a number or for a yes."""

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
    """Read the fields of a JSON sidecar, as they stand there.

    Raises
    ------
    InputError
        It is no file, has not been fetched, is no JSON in UTF-8, or holds something else than an object.
    """
    path = Path(path)
    try:
        content = json.loads(read_text(path), parse_int=read_whole)
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}, not an object")
    except (OSError, ValueError, RecursionError) as fault:
        way_out = how_to_fetch(path)
        raise InputError(
            path,
            found="content that has not been fetched" if way_out else " ".join(str(fault).split()),
            expected='a JSON object such as {"SliceThickness": 5.0}',
            next_step=way_out or "Correct the file, or delete it.",
        ) from fault
    return content


def settle_values(
    fields: Mapping[str, Any], origin: str | os.PathLike | Mapping[str, str | os.PathLike]
) -> tuple[dict[str, Any], list[str]]:
    """Leave out values that cannot be meant, and say so.

    Parameters
    ----------
    fields
        Of a sidecar, or of several that were merged.
    origin
        The JSON file; or of each field, the file that it comes from.

    Returns
    -------
    fields : dict
        ``SkullStripped`` is a bool, thickness and spacing (mm) and field strength (T) are floats, where they
        are stated; other fields are as they were.
    notes : list of str
        One sentence for each value that was left out.
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
    """Return what a sidecar says of the skull: "yes" (it is gone), "no", or "auto", look at the image."""
    return {True: "yes", False: "no", None: "auto"}[boolean(fields.get("SkullStripped"))]


def boolean(value: Any) -> bool | None:
    """Return true and false as they are, None for all else: the text "false" is not a yes."""
    return value if isinstance(value, bool) else None


def number(most: float) -> Callable[[Any], float | None]:
    """Return the reader of numbers above 0 and below `most`; it returns None for all else."""

    def read(value: Any) -> float | None:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return None
        return float(value) if 0 < value < most else None  # NaN is neither

    return read


length_mm = number(1000.0)

#: Fields that are worked with: how to read each, and what is expected.
_READERS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "SkullStripped": (boolean, "true or false, without quotes"),
    "SliceThickness": (length_mm, "a number of millimetres above 0, without quotes"),
    "SpacingBetweenSlices": (length_mm, "a number of millimetres above 0, without quotes"),
    "MagneticFieldStrength": (number(100.0), "a number of teslas above 0, without quotes"),
}


def read_whole(digits: str) -> int | float:
    """Convert a whole number of JSON; Python refuses to read one of thousands of digits: it is infinite."""
    return int(digits) if len(digits) < 1000 else float(digits)


def _shortly(value: Any) -> str:
    try:
        text = json.dumps(value)
    except (TypeError, ValueError, RecursionError):  # not from JSON, or without an end
        text = f"a {type(value).__name__}"
    return text if len(text) <= 40 else re.sub(r"\s", " ", text[:37]) + "..."
