"""Scans that are no BIDS data set: the NIfTI files of a folder, or the rows of a table."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iqtflow.bids.names import EXTENSIONS, stem_of
from iqtflow.config import CONTRASTS
from iqtflow.image.metadata import read_fields
from iqtflow.utils.errors import UsageError
from iqtflow.utils.files import read_text

#: Columns of a table of scans; the first one is needed.
COLUMNS = ("scan", "output", "sidecar", "contrast", "skull_stripped")
#: What converters and scanners write into names and sidecars: regular expressions of one word.
MARKS = {
    "a localizer": r"loc|locali[sz]er\w*|scout|survey|aahead|\d*plane\w*",
    "a mask or a map of labels": r"mask|brainmask|seg|dseg|aseg|probseg",
    "a phase image": r"ph|phase",
    "T1w": r"t1\w*|mprage|f?spgr|bravo",
    "T2w": r"t2\w*",
    "FLAIR": r"flair|tirm",
    "PDw": r"pd\w{0,2}",
    "diffusion": r"dwi|dti|adc|ep2d|diff|diffusion|tracew?|b0|b\d{3,4}",
    "an angiogram or susceptibility": r"swi|swan|tof|mra|angio|mip|minip",
    "functional or perfusion": r"bold|fmri|asl|perf|perfusion",
}
#: Of these, what no contrast in the name makes a scan.
NEVER = tuple(MARKS)[:3]
#: Fields of the sidecar with words about the image, as dcm2niix writes them.
_DESCRIBING = ("SeriesDescription", "ProtocolName", "ImageType")
#: A stack with fewer slices is no scan of a head.
LEAST_SLICES = 8


@dataclass(frozen=True)
class LooseScan:
    """An image to enhance.

    Attributes
    ----------
    path
        The image; it need not exist.
    output
        Name of the enhanced volume, relative to the output folder.
    sidecar
        Its JSON file; None if there is none.
    contrast
        BIDS suffix of its contrast, if the table states one.
    skull_stripped
        ``yes``, ``no`` or ``auto``, if the table states it.
    where
        Line of the table, for messages; empty in a folder.
    """

    path: Path
    output: Path
    sidecar: Path | None = None
    contrast: str | None = None
    skull_stripped: str | None = None
    where: str = ""


def list_folder(folder: Path, *, without: Path) -> list[LooseScan]:
    """List the NIfTI files of a folder and of its sub-folders, sorted by name; hidden ones are left out.

    Parameters
    ----------
    folder
        The folder.
    without
        Folder inside it whose files are no inputs: that of the results.

    Raises
    ------
    UsageError
        There is no NIfTI file.
    """
    inside, found = os.path.realpath(without), []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and os.path.realpath(Path(place, name)) != inside
        )
        paths = [Path(place, name) for name in sorted(names) if not name.startswith(".")]
        found += [path for path in paths if path.name.lower().endswith(EXTENSIONS)]
    if not found:
        raise UsageError(
            folder,
            found="no .nii or .nii.gz file",
            expected="scans in NIfTI files",
            next_step=f"Convert DICOM files first: dcm2niix -b y -z y -o NIFTI_FOLDER {folder}",
        )
    return [LooseScan(path, _result_of(path.relative_to(folder)), _own_sidecar(path)) for path in found]


def read_table(table: Path) -> list[LooseScan]:
    """Read a table of scans: comma-separated values, or separated by tabs or semicolons, with a header.

    Parameters
    ----------
    table
        The file. Its columns are some of `COLUMNS`; paths are relative to its folder.

    Returns
    -------
    list of LooseScan
        One for each row. An output without a name in the table is named like the scan.

    Raises
    ------
    UsageError
        The file is no table, a column is missing or unknown, or a value is not allowed; the message names
        line and column.
    """
    try:
        text = read_text(table).removeprefix("\ufeff")  # as spreadsheets write it
    except (OSError, ValueError) as fault:
        raise _wrong(
            table, 0, "", f"a file that cannot be read ({fault})", "a table in UTF-8, with commas"
        ) from fault
    header = text.partition("\n")[0]
    rows = csv.reader(io.StringIO(text), delimiter=max(",;\t", key=header.count))
    try:
        lines = [(rows.line_num, [value.strip() for value in row]) for row in rows]
    except csv.Error as fault:
        raise _wrong(table, rows.line_num, "", str(fault), "values with commas between them") from fault
    names = lines[0][1] if lines else []
    for name in names:
        if name not in COLUMNS or names.count(name) > 1:
            expected = f"some of the columns {', '.join(COLUMNS)}, each once"
            raise _wrong(table, 1, name, f"the column {name!r}", expected)
    if "scan" not in names:
        raise _wrong(table, 1, "scan", f"the columns {', '.join(names) or 'none'}", "a column scan")
    scans = [_read_row(table, number, names, row) for number, row in lines[1:] if any(row)]
    if not scans:
        raise _wrong(table, 2, "scan", "no row", "a row for each scan")
    first: dict[str, LooseScan] = {}
    for scan in scans:
        other = first.setdefault(stem_of(os.fspath(scan.output)), scan)
        if other is not scan:
            line = int(scan.where.rpartition(" ")[2])
            expected = f"another name than that of {other.where.partition(', ')[2]}"
            raise _wrong(table, line, "output", os.fspath(scan.output), expected)
    return scans


def _read_row(table: Path, line: int, names: list[str], row: list[str]) -> LooseScan:
    if len(row) != len(names):
        raise _wrong(table, line, "", f"{len(row)} values", f"{len(names)}, one for each column")
    given = {name: value for name, value in zip(names, row, strict=True) if value}
    if "scan" not in given:
        raise _wrong(table, line, "scan", "nothing", "the path of a scan")
    for name, allowed in (("contrast", CONTRASTS), ("skull_stripped", ("yes", "no", "auto"))):
        if name in given and given[name] not in allowed:
            raise _wrong(table, line, name, repr(given[name]), f"one of {', '.join(allowed)}, or nothing")
    path = table.parent / given["scan"]
    inside = os.path.normpath(given["scan"])
    plain = not os.path.isabs(inside) and not inside.startswith(os.pardir)
    output = Path(os.path.normpath(given.get("output") or (inside if plain else path.name)))
    if output.is_absolute() or os.pardir in output.parts or not output.name.endswith(EXTENSIONS):
        column = "output" if "output" in given else "scan"
        expected = f"a name in the output folder that ends in {' or '.join(EXTENSIONS)}"
        raise _wrong(table, line, column, repr(given[column]), expected)
    sidecar = table.parent / given["sidecar"] if "sidecar" in given else _own_sidecar(path)
    where = f"{table}, line {line}"
    return LooseScan(path, output, sidecar, given.get("contrast"), given.get("skull_stripped"), where)


def _wrong(table: Path, line: int, column: str, found: str, expected: str) -> UsageError:
    place = ", ".join(
        part
        for part in (os.fspath(table), f"line {line}" if line else "", column and f"column {column}")
        if part
    )
    return UsageError(place, found=found, expected=expected, next_step="Correct the table.")


def _result_of(scan: Path) -> Path:
    """Return the name of a scan's result: that of the scan, its extension in small letters (not ``.NII``)."""
    stem = stem_of(scan.name)
    return scan.with_name(stem + scan.name[len(stem) :].lower())


def _own_sidecar(path: Path) -> Path | None:
    sidecar = path.with_name(f"{stem_of(path.name)}.json")
    return sidecar if sidecar.is_file() else None


def words_about(path: Path, fields: Mapping[str, Any]) -> set[str]:
    """Return the words of an image's name and of its sidecar's description, in lower case."""
    texts: list[str] = [stem_of(path.name)]
    for name in _DESCRIBING:
        value = fields.get(name)
        texts += [str(one) for one in (value if isinstance(value, list) else [value]) if one is not None]
    return {word for text in texts for word in re.split(r"[^a-z0-9*]+", text.lower()) if word}


def marks_of(words: Iterable[str]) -> list[str]:
    """Return what words say that an image is, keys of `MARKS`."""
    words = set(words)
    return [mark for mark, word in MARKS.items() if any(re.fullmatch(word, one) for one in words)]


def why_left_out(scan: LooseScan, *, contrast: str, force: bool = False) -> str | None:
    """Return why an image is not enhanced, from its name, sidecar and header; None if it may be.

    Parameters
    ----------
    scan
        The image.
    contrast
        BIDS suffix of the contrast that is enhanced. An image that nothing is known of has it.
    force
        Near-isotropic images are enhanced, too.

    Raises
    ------
    InputError
        The image or its sidecar cannot be read.
    """
    return next(_reasons(scan, contrast=contrast, force=force), None)


def _reasons(scan: LooseScan, *, contrast: str, force: bool) -> Iterator[str]:
    from iqtflow.image.geometry import find_slice_geometry
    from iqtflow.image.metadata import drop_invalid_fields
    from iqtflow.image.nifti_file import check_content, peek_nifti

    check_content(scan.path)
    fields = read_fields(scan.sidecar) if scan.sidecar is not None else {}
    marks = marks_of(words_about(scan.path, fields)) if scan.contrast is None else [scan.contrast]
    source = "the name or sidecar" if scan.contrast is None else "the table"
    if marks and (contrast not in marks or marks[0] in NEVER):
        yield f"{marks[0]}, by {source}; only {contrast} scans are enhanced"
    unusable = _unusable(scan.path)
    if unusable:
        yield unusable
    geometry = find_slice_geometry(peek_nifti(scan.path), drop_invalid_fields(fields, "")[0])
    if geometry.near_isotropic and not force:
        yield (
            f"near-isotropic (slices {geometry.spacing_mm:.3g} mm apart, {geometry.inplane_mm[0]:.3g} x "
            f"{geometry.inplane_mm[1]:.3g} mm in plane): nothing to gain"
        )


def _unusable(path: Path) -> str | None:
    """Return what an intact image is if it is no volume of real numbers."""
    import nibabel as nib

    try:
        header = nib.load(path).header
        shape, kind = header.get_data_shape(), header.get_data_dtype().kind
    except Exception:  # `peek_nifti` says what is wrong
        return None
    if kind == "V":
        return "a colour image"
    if kind == "c":
        return "complex numbers, no magnitudes"
    if len(shape) > 3 and max(shape[3:]) > 1:
        return f"{' x '.join(map(str, shape[3:]))} volumes in one file (4-D)"
    n_slices = min(shape[:3]) if len(shape) > 2 else 1
    if n_slices < LEAST_SLICES:
        return f"only {n_slices} slice{'s' if n_slices > 1 else ''}: a localizer, or a part of a head"
    return None
