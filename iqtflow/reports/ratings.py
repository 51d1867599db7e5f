"""Ratings of results by a reader: the table ``ratings.tsv`` in the output folder.

A reader rates scans on the index page, in a browser. The page keeps the ratings in the browser and exports
them as this table. Everything that writes the index reads it.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iqtflow.bids.names import output_name
from iqtflow.utils.errors import InputError
from iqtflow.utils.files import read_text

#: Rating and its key on the page.
RATINGS = {"pass": "p", "doubt": "d", "fail": "f"}
COLUMNS = ("scan", "rating", "note", "result")
#: At most so many lines of a table are named.
MOST_NAMED = 10
#: Fields of a sidecar that tell one result of a scan from another.
_OF_RESULT = ("Model", "UpsamplingFactor", "IntensityScale", "WhiteMatter", "Engine", "volumes_ml")
_OF_STEPS = (("DataConsistency", "CorrectionApplied"), ("SliceIntensity", "Corrected"))


@dataclass(frozen=True)
class Rating:
    """What a reader said of a result.

    Attributes
    ----------
    rating
        A key of `RATINGS`; empty if there is only a note.
    note
        Free text; may be empty.
    result
        `result_mark` of the result that was rated; empty if it was not noted.
    """

    rating: str
    note: str = ""
    result: str = ""


def read_ratings(output_dir: Path) -> tuple[dict[str, Rating], list[str]]:
    """Read the ratings of a data set.

    Parameters
    ----------
    output_dir
        Root of the derivatives.

    Returns
    -------
    ratings : dict
        `Rating` by the name of the scan (without extension).
    faults : list of str
        What is wrong with the file: one sentence for each line that cannot be used.
    """
    path = output_dir / output_name("ratings")
    try:
        reader = csv.reader(io.StringIO(read_text(path)), delimiter="\t")
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except FileNotFoundError:
        return {}, []
    except (OSError, ValueError, csv.Error) as fault:
        return {}, [f"it cannot be read ({fault})."]
    header = rows[0][1] if rows else []
    missing = [name for name in COLUMNS[:2] if name not in header]
    if missing:
        found = ", ".join(header) or "nothing"
        return {}, [f"line 1: {found!r}; expected the columns {', '.join(COLUMNS)}."]
    ratings: dict[str, Rating] = {}
    faults = []
    for number, row in rows[1:]:
        if not any(row):
            continue
        fields = {**dict.fromkeys(COLUMNS, ""), **dict(zip(header, row, strict=False))}
        scan, rating = fields["scan"], fields["rating"].lower()
        if len(row) != len(header):
            faults.append(f"line {number}: {len(row)} fields; expected {len(header)}.")
        elif rating not in (*RATINGS, "", "n/a"):
            faults.append(f"line {number}: rating {rating!r}; expected {', '.join(RATINGS)} or n/a.")
        elif not scan:
            faults.append(f"line {number}: no scan; expected its name, such as 'sub-01_T1w'.")
        elif scan in ratings:
            faults.append(f"line {number}: {scan} again; expected one line for each scan.")
        else:
            said = (rating, fields["note"], fields["result"])
            ratings[scan] = Rating(*("" if value == "n/a" else value for value in said))
    return ratings, faults


def check_ratings(output_dir: Path) -> None:
    """Check that every line of ``ratings.tsv`` can be used.

    Raises
    ------
    InputError
        A line cannot be used; it is named with the value found and the value expected.
    """
    _, faults = read_ratings(output_dir)
    if faults:
        raise InputError(
            output_dir / output_name("ratings"),
            found=name_faults(faults),
            expected=f"a table with the columns {', '.join(COLUMNS)}",
            next_step="Correct or remove these lines, or move the file away.",
        )


def name_faults(faults: list[str]) -> str:
    """Return faults of a table as one text; of many, the first `MOST_NAMED`."""
    more = len(faults) - MOST_NAMED
    return " ".join([*faults[:MOST_NAMED], *([f"And {more} more."] if more > 0 else [])])


def result_mark(details: Mapping[str, Any]) -> str:
    """Return eight characters that differ if a scan was processed again in another way.

    Parameters
    ----------
    details
        Content of the sidecar.
    """
    fields: list[Any] = [details.get(name) for name in _OF_RESULT]
    for name, key in _OF_STEPS:
        step = details.get(name)
        fields.append(bool(step.get(key)) if isinstance(step, Mapping) else False)
    grid = details.get("OutputGrid")
    if isinstance(grid, Mapping) and grid.get("VoxelSize") != "native":  # marks of older results stay
        fields.append(grid.get("VoxelSize"))
    return hashlib.sha256(json.dumps(fields, sort_keys=True, default=str).encode()).hexdigest()[:8]
