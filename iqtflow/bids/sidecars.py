"""Read and write sidecars, and the description of a folder of derivatives."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import iqtflow
from iqtflow.bids.names import BIDS_VERSION, read_entities, stem_of
from iqtflow.image.metadata import drop_invalid_fields, read_fields
from iqtflow.utils.errors import InputError, UsageError
from iqtflow.utils.files import read_text, write_text

#: Pages, models and logs, which are not BIDS.
IGNORED_BY_VALIDATORS = (
    "*.html",
    "figures",
    "sub-*/figures",
    "viewer",
    "models",
    "logs",
    "patches",
    "calibration",
    "sub-*/patches",
    "*.toml",
    "group_*",
    "ratings.tsv",
    "iqtflow-*",
)

#: Explains the folder to its readers.
README = """\
# Image quality transfer

This folder was written by iqtflow {version}: estimates of what a high-field scanner would have shown, made
from low-field, thick-slice MRI of the brain, or what is needed to train for that. Names follow
[BIDS derivatives](https://bids-specification.readthedocs.io); the JSON file beside each image says what it
was made from, and how. `index.html`, `sub-*.html` and `group.html` open in any browser.

For research only: iqtflow is not a medical device. Detail between the acquired slices is inferred, not
measured; it may be missing, displaced or invented. Read the original scan beside it.

`logs/CITATION.md` says what was done, and whom to cite.
"""


def write_dataset_description(
    out_dir: str | os.PathLike,
    *,
    source_dir: str | os.PathLike,
    name: str = "Image quality transfer (iqtflow)",
    made_with: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Write the description of a folder of derivatives, its README, and the list of files that are not BIDS.

    Parameters
    ----------
    out_dir
        Root of the derivatives; made if missing.
    source_dir
        Root of the source data set, the ``raw`` of BIDS URIs.
    name
        Title of the data set.
    made_with
        What results of this run are made with, from `iqtflow.workflows.app.made_with.describe`. What earlier
        runs stated of other results stays.

    Returns
    -------
    Path
        The ``dataset_description.json`` written.

    Raises
    ------
    OutputError
        The folder cannot be written.
    """
    out, source = Path(out_dir).absolute(), Path(source_dir).absolute()
    # Derivatives inside the data set move together with it, so their link is relative.
    link = os.path.relpath(source, out) if source in out.parents else source.as_uri()
    write_text(out / ".bidsignore", "".join(f"{pattern}\n" for pattern in IGNORED_BY_VALIDATORS))
    if not any(out.glob("README*")):  # keep the one of a user
        write_text(out / "README.md", README.format(version=iqtflow.__version__))
    raw = _read_description(source)
    maker = {"Name": "iqtflow", "Version": iqtflow.__version__}
    made = {**read_made_with(out), **{product_of(entry): {**maker, **entry} for entry in made_with}}
    return write_sidecar(
        out / "dataset_description.json",
        {
            "Name": name,
            "BIDSVersion": BIDS_VERSION,
            "DatasetType": "derivative",
            # Processing does not change authors and licence.
            "License": raw.get("License"),
            "Authors": raw.get("Authors"),
            "HowToAcknowledge": "Cite the data set that these data derive from, and the publications in "
            "logs/CITATION.md, which also says what was done.",
            "GeneratedBy": [
                {**maker, "Description": "Image quality transfer (Lin et al. 2019, arXiv:1909.06763)"},
                *made.values(),
            ],
            "SourceDatasets": [{"DOI": raw["DatasetDOI"]}] if raw.get("DatasetDOI") else None,
            "DatasetLinks": {"raw": link},
        },
    )


def read_made_with(output_dir: Path) -> dict[tuple[str, ...], dict[str, Any]]:
    """Return what the results in a folder of derivatives were made with, by mode, level and product."""
    makers = _read_description(output_dir).get("GeneratedBy")
    stated = [maker for maker in makers if isinstance(maker, dict)] if isinstance(makers, list) else []
    return {product_of(maker): maker for maker in stated if isinstance(maker.get("Settings"), dict)}


def product_of(maker: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what an entry of ``GeneratedBy`` is about: results of other products have other names."""
    return tuple(str(maker.get(key, "")) for key in ("Mode", "Level", "Product"))


def check_owner(output_dir: Path) -> None:
    """Refuse an output folder of another program: each would replace files of the other.

    Raises
    ------
    UsageError
        The folder belongs to another program, has a file of another program that a run would replace, or has
        an unreadable description.
    """
    path = output_dir / "dataset_description.json"
    instead = f"Choose another folder, for instance {output_dir / 'iqtflow'}."
    try:
        description = json.loads(read_text(path))
        makers = [str(maker["Name"]) for maker in description.get("GeneratedBy", [])]
    except NotADirectoryError:
        return
    except FileNotFoundError:
        for name, mark in _MARKS.items():
            if (output_dir / name).is_file() and mark not in (output_dir / name).read_bytes():
                raise UsageError(
                    output_dir / name,
                    found="a file that iqtflow did not write and a run would replace",
                    expected="an empty folder, or earlier output of iqtflow",
                    next_step=instead,
                ) from None
        return
    except (OSError, ValueError, RecursionError) as fault:
        raise UsageError(
            path,
            found=f"an unreadable file ({type(fault).__name__}: {fault})",
            expected="nothing, or the description that iqtflow wrote",
            next_step=f"If iqtflow made the folder, delete this file. Otherwise: {instead}",
        ) from fault
    except (TypeError, KeyError, AttributeError):
        makers = []
    if "iqtflow" not in makers:
        raise UsageError(
            output_dir,
            found=f"a data set made by {', '.join(makers) or 'another program'}",
            expected="an empty folder, or earlier output of iqtflow",
            next_step=instead,
        )


#: Bytes by which files of iqtflow at the root of the derivatives are recognised.
_MARKS = {
    ".bidsignore": b"sub-*/figures",
    "index.html": b'content="iqtflow',
    "group.html": b'content="iqtflow',
    "group_metrics.tsv": b"participant_id\tmethod",
    "group_iqt.tsv": b"participant_id\tscan",
}


def _read_description(root: Path) -> dict[str, Any]:
    """Return the description of a data set; empty if there is none, as in HCP downloads."""
    try:
        content = json.loads(read_text(root / "dataset_description.json"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def describe_source(root: str | os.PathLike) -> dict[str, str]:
    """Return ``Name``, ``DatasetDOI`` and ``License`` of a data set, as far as its description has them."""
    description = _read_description(Path(root))
    stated = {key: description.get(key) for key in ("Name", "DatasetDOI", "License")}
    return {key: value for key, value in stated.items() if isinstance(value, str) and value.strip()}


def write_sidecar(path: str | os.PathLike, metadata: Mapping[str, Any]) -> Path:
    """Write metadata as JSON, without values that are None. NumPy scalars and paths are converted.

    Parameters
    ----------
    path
        The ``.json`` file.
    metadata
        Fields, in this order.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    OutputError
        The folder cannot be written.
    ValueError
        A number is not finite. JSON has no such numbers.
    """
    present = {key: value for key, value in metadata.items() if value is not None}
    text = json.dumps(present, indent=2, ensure_ascii=False, allow_nan=False, default=_plain)
    return write_text(path, text + "\n")


def _plain(value: Any) -> Any:
    """Convert types that JSON does not have: NumPy scalars, arrays and paths."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


class InheritedSidecars:
    """Metadata by the BIDS inheritance principle. Each folder is listed once, and each file is read once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._listed: dict[Path, list[tuple[Path, str, dict[str, str]]]] = {}
        self._read: dict[Path, tuple[dict[str, Any], str | None]] = {}

    def merge(self, image: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Merge the JSON files of an image, from the root down; also return warnings."""
        stem = stem_of(image.name)
        suffix, own = stem.rpartition("_")[2], read_entities(stem).items()
        merged: dict[str, Any] = {}
        origin: dict[str, Path] = {}
        warnings = []
        for folder in reversed(image.parents):
            if folder != self._root and self._root not in folder.parents:
                continue
            for file, its_suffix, entities in self._list(folder):
                if its_suffix == suffix and entities.items() <= own:
                    content, warning = self._content(file)
                    merged.update(content)
                    origin.update(dict.fromkeys(content, file))
                    warnings += [warning] if warning else []
        settled, notes = drop_invalid_fields(merged, origin)
        return settled, (*warnings, *notes)

    def _list(self, folder: Path) -> list[tuple[Path, str, dict[str, str]]]:
        if folder not in self._listed:
            try:
                found = [path for path in folder.iterdir() if path.name.endswith(".json")]
            except OSError:  # a folder that cannot be listed
                found = []
            files = sorted(found, key=lambda file: (file.name.count("_"), file.name))
            stems = [file.name.removesuffix(".json") for file in files]
            self._listed[folder] = [
                (file, stem.rpartition("_")[2], read_entities(stem))
                for file, stem in zip(files, stems, strict=True)
            ]
        return self._listed[folder]

    def _content(self, file: Path) -> tuple[dict[str, Any], str | None]:
        if file not in self._read:
            try:
                self._read[file] = (read_fields(file), None)
            except InputError as fault:
                why = f"found {fault.found}; expected {fault.expected}. {fault.next_step}"
                self._read[file] = ({}, f"{file} could not be read and was left out ({why})")
        return self._read[file]
