"""What is written beside images: the description of a folder of derivatives, and sidecars."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import iqtflow
from iqtflow.files import write_text

BIDS_VERSION = "1.10.0"  #: version of the standard that the derivatives follow

#: What the pages, models and logs beside the images are to a BIDS validator: not its business.
IGNORED_BY_VALIDATORS = (
    "*.html",
    "figures",
    "sub-*/figures",
    "models",
    "logs",
    "patches",
    "calibration",
    "sub-*/patches",
    "*.toml",
    "group_metrics.*",
)

#: For people who come upon the folder.
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
) -> Path:
    """Describe a folder of derivatives, and tell validators what in it is not BIDS.

    Parameters
    ----------
    out_dir
        Root of the derivatives; made when missing.
    source_dir
        Root of the data set that they derive from; becomes the ``raw`` of BIDS URIs.
    name
        Title of the data set.

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
    # A data set that holds its derivatives is moved as a whole; one elsewhere is where it is.
    link = os.path.relpath(source, out) if source in out.parents else source.as_uri()
    write_text(out / ".bidsignore", "".join(f"{pattern}\n" for pattern in IGNORED_BY_VALIDATORS))
    if not any(out.glob("README*")):  # a person may have written a better one
        write_text(out / "README.md", README.format(version=iqtflow.__version__))
    raw = _read_description(source)
    return write_sidecar(
        out / "dataset_description.json",
        {
            "Name": name,
            "BIDSVersion": BIDS_VERSION,
            "DatasetType": "derivative",
            # Whose data, and under which terms: no processing changes that.
            "License": raw.get("License"),
            "Authors": raw.get("Authors"),
            "HowToAcknowledge": "Cite the data set that these data derive from, and the publications in "
            "logs/CITATION.md, which also says what was done.",
            "GeneratedBy": [
                {
                    "Name": "iqtflow",
                    "Version": iqtflow.__version__,
                    "Description": "Image quality transfer (Lin et al. 2019, arXiv:1909.06763)",
                }
            ],
            "SourceDatasets": [{"DOI": raw["DatasetDOI"]}] if raw.get("DatasetDOI") else None,
            "DatasetLinks": {"raw": link},
        },
    )


def _read_description(root: Path) -> dict[str, Any]:
    """Return what a data set says of itself; nothing where it does not, as downloads of HCP do not."""
    try:
        content = json.loads((root / "dataset_description.json").read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_sidecar(path: str | os.PathLike, metadata: Mapping[str, Any]) -> Path:
    """Write metadata as JSON. Values that are None are left out; NumPy scalars and paths are converted.

    Parameters
    ----------
    path
        The ``.json`` file.
    metadata
        What to write, in this order.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    OutputError
        The folder cannot be written.
    ValueError
        A number is not finite; JSON has no such thing.
    """
    present = {key: value for key, value in metadata.items() if value is not None}
    text = json.dumps(present, indent=2, ensure_ascii=False, allow_nan=False, default=_plain)
    return write_text(path, text + "\n")


def _plain(value: Any) -> Any:
    """Convert what JSON does not know: NumPy scalars and arrays (by their own method), paths."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
