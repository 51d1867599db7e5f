"""Asking pybids which images a data set has: what a filter file may ask for, and the index that is kept."""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from iqtflow.errors import UsageError

#: Folders at the root of a data set that hold no images to process, for an index that is kept.
_IGNORED = ("code", "stimuli", "sourcedata", "models", "derivatives")
_DATABASE = "layout_index.sqlite"  # pybids' own name for it
_EXTENSIONS = (".nii", ".nii.gz")


def read_filters(path: str | os.PathLike, contrast: str = "T1w") -> dict[str, Any]:
    """Read which images to take from a filter file in the format of fMRIPrep's.

    Parameters
    ----------
    path
        JSON such as ``{"t1w": {"session": "pre", "acquisition": null}}``: entities by their long names, or
        fields of the sidecars. A list allows any of its values, null demands that there is none, ``"*"`` that
        there is one. Keys of other contrasts are for other programs.
    contrast
        BIDS suffix; in lower case it is the key that counts.

    Returns
    -------
    dict
        What was asked for, as it stands in the file; empty when the file says nothing of this contrast.

    Raises
    ------
    UsageError
        The file is not there, not JSON, or of another form.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as fault:
        raise _bad_filters(path, f"{fault}", "a JSON file") from fault
    chosen = content.get(contrast.lower(), {}) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not isinstance(chosen, dict):
        raise _bad_filters(path, f"a {type(chosen).__name__}", f'{{"{contrast.lower()}": {{...}}}}')
    for key, value in chosen.items():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, (dict, list)):
                raise _bad_filters(path, f"{key}: {json.dumps(value)}", "a text, a number, null, or a list")
    return chosen


def list_images(
    root: Path,
    subjects: Sequence[str],
    suffix: str,
    *,
    filters: Mapping[str, Any] | None = None,
    database_dir: str | os.PathLike | None = None,
) -> list[Path]:
    """List the image files of one suffix, sorted; no image is opened.

    Parameters
    ----------
    root
        Root of the data set.
    subjects
        Labels without ``sub-``.
    suffix
        BIDS suffix. A filter may name another.
    filters
        From `read_filters`.
    database_dir
        Folder of pybids' index of the whole data set; it is made when there is none yet, and then has the
        metadata too, as fMRIPrep and MRIQC make it, who can share it. Without one, only what can matter is
        looked at, and no metadata: that is quicker for one run, and one unreadable JSON file stops nobody.

    Raises
    ------
    UsageError
        The index is of another data set, or cannot be made; a filter asks for something that no image has.
    """
    wanted = {"suffix": suffix, "extension": list(_EXTENSIONS), **(filters or {})}
    if database_dir is not None:
        layout = _open_database(root, Path(database_dir).absolute())
    else:
        suffixes = wanted["suffix"] if isinstance(wanted["suffix"], list) else [wanted["suffix"]]
        layout = _index(root, _relevant(subjects, suffixes), metadata=_ask_metadata(wanted))
    try:
        found = layout.get(return_type="filename", **{key: _query(value) for key, value in wanted.items()})
    except ValueError as fault:  # pybids names the key, and the one that may have been meant
        raise UsageError(
            "--bids-filter-file",
            found=" ".join(str(fault).split()),
            expected="entities by their long names (session, acquisition, reconstruction, run), or metadata",
            next_step="Correct the key.",
        ) from fault
    inside = set(subjects)
    paths = sorted(Path(name) for name in found)
    return [path for path in paths if path.relative_to(root).parts[0].removeprefix("sub-") in inside]


def has_database(database_dir: str | os.PathLike) -> bool:
    """Return whether there is an index in a folder."""
    return Path(database_dir, _DATABASE).is_file()


def wipe_database(database_dir: str | os.PathLike) -> bool:
    """Delete the index in a folder, and nothing else; return whether there was one."""
    file = Path(database_dir, _DATABASE)
    there = file.exists()
    file.unlink(missing_ok=True)
    return there


def _relevant(subjects: Sequence[str], suffixes: Sequence[str]) -> list[re.Pattern]:
    """Patterns of everything that cannot matter to a query, for pybids to pass by."""
    labels = "|".join(re.escape(label) for label in subjects)
    names = "|".join(re.escape(str(suffix)) for suffix in suffixes)
    return [
        re.compile(rf"^/(?!sub-({labels})(/|$)|[^/]*\.json$)[^/]+"),  # derivatives, code, other subjects
        re.compile(r"^/sub-[^/]+/(?!ses-|anat|[^/]*\.json$)[^/]+"),
        re.compile(r"^/sub-[^/]+/ses-[^/]+/(?!anat|[^/]*\.json$)[^/]+"),
        re.compile(rf"/anat/(?!.*_({names})\.(nii(\.gz)?|json)$)[^/]+$"),
    ]


def _index(root: Path, ignore: Sequence[re.Pattern | str], *, metadata: bool, database: Path | None = None):
    from bids import BIDSLayout, BIDSLayoutIndexer  # pandas and SQLAlchemy: too slow for `iqtflow --help`

    indexer = BIDSLayoutIndexer(validate=False, index_metadata=metadata, ignore=list(ignore))
    try:
        return BIDSLayout(root, validate=False, indexer=indexer, database_path=database)
    except (OSError, ValueError) as fault:
        if not metadata:
            raise
        raise UsageError(
            root,
            found=f"metadata that pybids cannot read ({' '.join(str(fault).split())})",
            expected="JSON files that can be read, for --bids-database-dir and for filters on metadata",
            next_step="Mend the file; or leave the option out: the file's scan then goes without.",
        ) from fault


def _open_database(root: Path, folder: Path):
    """Open the index in a folder; make it first, whole or not at all, where there is none."""
    from bids import BIDSLayout

    if not (folder / _DATABASE).exists():
        partial = folder / f".{uuid.uuid4().hex}.partial"
        try:
            partial.mkdir(parents=True)
            ignore = [re.compile(rf"^/({'|'.join(_IGNORED)})"), re.compile(r"/\.")]
            _index(root, ignore, metadata=True, database=partial)
            os.replace(partial / _DATABASE, folder / _DATABASE)  # jobs that start together: the last one wins
        except OSError as fault:
            raise UsageError(
                folder,
                found=f"a folder that cannot be written ({fault.strerror or fault})",
                expected="pybids' index, or a place for it",
                next_step="Choose another --bids-database-dir.",
            ) from fault
        finally:
            for file in partial.glob("*"):
                file.unlink()
            if partial.is_dir():
                partial.rmdir()
    layout = BIDSLayout(root, validate=False, database_path=folder)
    if Path(layout.root).resolve() != root.resolve():
        raise UsageError(
            folder,
            found=f"an index of {layout.root}",
            expected=f"one of {root}",
            next_step="Choose another --bids-database-dir, or have it made anew with --bids-database-wipe.",
        )
    return layout


def _ask_metadata(wanted: Mapping[str, Any]) -> bool:
    """Return whether a query is about fields of the sidecars, which are in CamelCase; entities are not."""
    return any(key[:1].isupper() for key in wanted)


def _query(value: Any) -> Any:
    from bids.layout import Query

    if isinstance(value, list):
        return [_query(item) for item in value]
    return Query.NONE if value is None else Query.ANY if value == "*" else value


def _bad_filters(path: str | os.PathLike, found: str, expected: str) -> UsageError:
    return UsageError(
        path,
        found=found,
        expected=expected,
        next_step='Write one such as {"t1w": {"session": "pre", "acquisition": null}}.',
    )
