"""Find images with pybids: filter files, and pybids' index of a data set (--bids-database-dir)."""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from iqtflow.bids.names import EXTENSIONS
from iqtflow.image.metadata import read_whole
from iqtflow.utils.errors import UsageError, printable
from iqtflow.utils.files import read_text

#: Folders at the root of a data set without images to process, for an index on disk.
_IGNORED = ("code", "stimuli", "sourcedata", "models", "derivatives")
_DATABASE = "layout_index.sqlite"  # pybids' own name for it
#: File names that are not UTF-8. SQLite, pybids' database, cannot store them.
_NO_TEXT = re.compile("[\udc80-\udcff]")
#: Incomplete characters, and the largest whole number of SQLite.
_NO_UNICODE = re.compile("[\ud800-\udfff]")
_LARGEST = 2**63 - 1
#: Names of queries in filter files, also of other programs.
_QUERIES = (
    *("t1w", "t2w", "flair", "pdw", "pdt2", "t2starw", "t1rho", "inplanet1", "inplanet2", "angio"),
    *("bold", "sbref", "fmap", "dwi", "asl", "m0scan", "pet", "meg", "eeg", "roi", "mask", "anat", "func"),
)
#: Properties of files that a query can use besides entities.
_PROPERTIES = ("suffix", "extension", "datatype")


def read_filters(path: str | os.PathLike, contrast: str = "T1w") -> dict[str, Any]:
    """Read the query for one contrast from a filter file in the format of fMRIPrep.

    Parameters
    ----------
    path
        JSON such as ``{"t1w": {"session": "pre", "acquisition": null}}``: entities by their long names, or
        fields of the sidecars. A list allows any of its values, null means no value, ``"*"`` any value. Keys
        of other contrasts are for other programs.
    contrast
        BIDS suffix. In lower case it is the key of the query.

    Returns
    -------
    dict
        The query, unchanged; empty if the file has none for this contrast.

    Raises
    ------
    UsageError
        The file is missing, not JSON, or has another form; a key is unknown; or a value is invalid.
    """

    def bad(found: str, expected: str) -> UsageError:
        example = 'Write one such as {"t1w": {"session": "pre", "acquisition": null}}.'
        return UsageError(path, found=found, expected=expected, next_step=example)

    try:
        content = json.loads(read_text(path), parse_int=read_whole)
    except (OSError, ValueError, RecursionError) as fault:
        raise bad(" ".join(str(fault).split()), "a JSON file") from fault
    key = contrast.lower()
    if not isinstance(content, dict):
        raise bad(f"{_shortly(content)} as the whole", f'{{"{key}": {{...}}}}')
    unknown = [name for name in content if name not in (key, *_QUERIES)]
    if unknown:
        raise bad(f"the key {unknown[0]!r}", f'"{key}" (in lower case), or the query of another program')
    chosen = content.get(key, {})
    if not isinstance(chosen, dict):
        raise bad(f'"{key}": {_shortly(chosen)}', f'{{"{key}": {{...}}}}')
    entities = _entities() if chosen else ()
    for name, value in chosen.items():
        is_field = name[:1].isupper()
        if not is_field and name not in entities:
            known = f"an entity by its long name ({', '.join(entities)}), or a field of the sidecars"
            raise bad(f"{name!r} in {key!r}", known)
        items = value if isinstance(value, list) else [value]
        kinds = (str, int, float, type(None)) if name not in _PROPERTIES else str
        for item in items:
            if not isinstance(item, kinds) or (isinstance(item, bool) and not is_field):
                raise bad(f"{name}: {_shortly(value)}", "a text, a number, null, or a list of these")
            if (isinstance(item, str) and _NO_UNICODE.search(item)) or (
                isinstance(item, (int, float)) and not abs(item) <= _LARGEST
            ):
                valid = "a text or a number that a name or a sidecar can hold"
                raise bad(f"{name}: {_shortly(value)}", valid)
        if not items or (name == "suffix" and len(items) > 1):
            raise bad(f"{name}: {_shortly(value)}", "one value")
    return chosen


def _entities() -> tuple[str, ...]:
    """Return the long names of pybids' entities, and properties of files."""
    from bids.layout import Config

    known = {*Config.load("bids").entities, *Config.load("derivatives").entities} - {"scans"}
    return (*sorted(known - set(_PROPERTIES)), *_PROPERTIES)


def list_images(
    root: Path,
    subjects: Sequence[str],
    suffix: str,
    *,
    filters: Mapping[str, Any] | None = None,
    database_dir: str | os.PathLike | None = None,
) -> list[Path]:
    """List the image files of one suffix, sorted. No image is opened.

    Parameters
    ----------
    root
        Root of the data set.
    subjects
        Labels without ``sub-``.
    suffix
        BIDS suffix. A filter can name another.
    filters
        From `read_filters`.
    database_dir
        Folder of pybids' index of the whole data set, with metadata. It is made if missing, and can be shared
        with fMRIPrep and MRIQC. Without it only relevant files are indexed, and metadata only for filters on
        them. That is faster for one run, and an unreadable JSON file does not matter.

    Raises
    ------
    UsageError
        The index is of another data set, or cannot be made; or a filter asks for an entity or field that no
        image has.
    """
    wanted = {"suffix": suffix, "extension": list(EXTENSIONS), **(filters or {})}
    if database_dir is not None:
        layout = _open_database(root, Path(database_dir).absolute())
    else:
        suffixes = wanted["suffix"] if isinstance(wanted["suffix"], list) else [wanted["suffix"]]
        asks_metadata = any(key[:1].isupper() for key in wanted)  # a field of sidecars, no entity
        layout = _index(root, _relevant(subjects, suffixes), metadata=asks_metadata)
    try:
        found = layout.get(return_type="filename", **{key: _query(value) for key, value in wanted.items()})
    except Exception as fault:  # an unknown key, or a broken index
        if database_dir is not None and not isinstance(fault, ValueError):
            raise _bad_database(Path(database_dir), fault) from fault
        known = set(layout.get_entities(metadata=True))
        strange = [key for key in filters or {} if key not in known]
        raise UsageError(
            "--bids-filter-file",
            found=f"{strange[0]}: {_shortly(wanted[strange[0]])}, which no sidecar or name here has"
            if strange
            else _said(fault),
            expected="entities by their long names (session, acquisition, reconstruction, run), or metadata",
            next_step="Correct the key, or its value.",
        ) from fault
    inside = {f"sub-{label}" for label in subjects}
    # The index can have the root by another path, through a link.
    paths = [root / Path(name).relative_to(layout.root) for name in found]
    return sorted(path for path in paths if _is_scan(path.relative_to(root).parts, inside))


def _is_scan(parts: tuple[str, ...], homes: set[str]) -> bool:
    """Return whether a file is in a place of scans: ``sub-X/[ses-Y/]anat/*.nii[.gz]``."""
    home, *sessions, folder, name = (*parts, "", "")[: max(len(parts), 3)]
    return (
        home in homes
        and folder == "anat"
        and (not sessions or (len(sessions) == 1 and sessions[0].startswith("ses-")))
        and name.endswith(EXTENSIONS)
        and not name.startswith(".")
    )


def has_database(database_dir: str | os.PathLike) -> bool:
    """Return whether a folder has an index.

    Raises
    ------
    UsageError
        It is not a folder.
    """
    folder = Path(database_dir)
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise UsageError(
            folder,
            found="a file",
            expected="a folder, for --bids-database-dir",
            next_step="Give the folder that the index is in, or is to be made in.",
        )
    return os.path.exists(folder / _DATABASE)


def wipe_database(database_dir: str | os.PathLike) -> bool:
    """Delete only the index in a folder. Return whether there was one."""
    file = Path(database_dir, _DATABASE)
    there = os.path.exists(file)
    try:
        file.unlink(missing_ok=True)
    except OSError as fault:
        raise UsageError(
            file,
            found=f"something that cannot be deleted ({fault.strerror or fault})",
            expected="pybids' index, for --bids-database-wipe",
            next_step="Check its permissions, or choose another --bids-database-dir.",
        ) from fault
    return there


def _relevant(subjects: Sequence[str], suffixes: Sequence[str]) -> list[re.Pattern]:
    """Return patterns of all files that are irrelevant to a query, for pybids to skip."""
    labels = "|".join(re.escape(label) for label in subjects)
    names = "|".join(re.escape(str(suffix)) for suffix in suffixes)
    return [
        re.compile(rf"^/(?!sub-({labels})(/|$)|[^/]*\.json$)[^/]+"),  # derivatives, code, other subjects
        re.compile(r"^/sub-[^/]+/(?!ses-|anat|[^/]*\.json$)[^/]+"),
        re.compile(r"^/sub-[^/]+/ses-[^/]+/(?!anat|[^/]*\.json$)[^/]+"),
        re.compile(rf"/anat/(?!.*_({names})\.(nii(\.gz)?|json)$)[^/]+$"),
        _NO_TEXT,
    ]


class _NoFile:
    """A pattern for pybids to skip JSON files that are pipes or devices. It would wait for them."""

    def __init__(self, root: Path) -> None:
        self._root = os.fspath(root)

    def search(self, path: str) -> bool:
        """Return whether to skip a path below the root, which begins with a slash."""
        return path.endswith(".json") and not os.path.isfile(self._root + path)


def _index(root: Path, ignore: Sequence[re.Pattern | str], *, metadata: bool, database: Path | None = None):
    from bids import BIDSLayout, BIDSLayoutIndexer  # pandas and SQLAlchemy: too slow for `iqtflow --help`

    ignored = [*ignore, _NoFile(root)]
    indexer = BIDSLayoutIndexer(validate=False, index_metadata=metadata, ignore=ignored)
    try:
        # With derivatives, for the entities desc and space.
        config = ["bids", "derivatives"]
        return BIDSLayout(root, validate=False, indexer=indexer, database_path=database, config=config)
    except Exception as fault:  # any error of pybids comes from the data set
        raise UsageError(
            root,
            found=f"a data set that pybids cannot read ({_said(fault)})",
            expected="readable JSON files, for --bids-database-dir and for filters on metadata",
            next_step="Correct the file; or leave the option out, and the metadata of this file is ignored.",
        ) from fault


def _open_database(root: Path, folder: Path):
    """Open the index in a folder. Make it first if there is none, whole or not at all."""
    from bids import BIDSLayout

    if not os.path.exists(folder / _DATABASE):
        partial = folder / f".{uuid.uuid4().hex}.partial"
        try:
            partial.mkdir(parents=True)
            ignore = [re.compile(rf"^/({'|'.join(_IGNORED)})"), re.compile(r"/\."), _NO_TEXT]
            _index(root, ignore, metadata=True, database=partial)
            os.replace(partial / _DATABASE, folder / _DATABASE)  # of several jobs, the last one wins
        except OSError as fault:
            raise UsageError(
                folder,
                found=f"a folder that cannot be written ({fault.strerror or fault})",
                expected="pybids' index, or a place for it",
                next_step="Choose another --bids-database-dir.",
            ) from fault
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    try:
        layout = BIDSLayout(root, validate=False, database_path=folder)
    except Exception as fault:  # no SQLite file, or one of another program or of an older pybids
        raise _bad_database(folder, fault) from fault
    if Path(layout.root).resolve() != root.resolve():
        raise UsageError(
            folder,
            found=f"an index of {layout.root}",
            expected=f"one of {root}",
            next_step="Choose another --bids-database-dir, or make it again with --bids-database-wipe.",
        )
    return layout


def _query(value: Any) -> Any:
    from bids.layout import Query

    if isinstance(value, list):
        return [_query(item) for item in value]
    return Query.NONE if value is None else Query.ANY if value == "*" else value


def _bad_database(folder: Path, fault: Exception) -> UsageError:
    return UsageError(
        folder / _DATABASE,
        found=f"an unreadable file, or no index of this version of pybids ({_said(fault)})",
        expected="pybids' index of the data set",
        next_step="Make it again with --bids-database-wipe, or choose another --bids-database-dir.",
    )


def _shortly(value: Any) -> str:
    """Return a value as JSON, shortened."""
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _said(fault: Exception) -> str:
    """Return the first line of an exception's message. The other lines can be SQL."""
    text = printable(str(fault).strip().partition("\n")[0]) or type(fault).__name__
    return text if len(text) <= 200 else text[:197] + "..."
