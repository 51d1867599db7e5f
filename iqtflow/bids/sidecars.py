"""What is written beside images: the description of a folder of derivatives, and sidecars."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import iqtflow
from iqtflow.utils.errors import UsageError
from iqtflow.utils.files import read_text, write_text

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


def check_owner(output_dir: Path) -> None:
    """Refuse to mix two programs' derivatives in one folder: each would replace what the other wrote.

    Raises
    ------
    UsageError
        The folder is another program's, holds a file of somebody else that a run would replace, or has a
        description that cannot be read.
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
                    found="a file that iqtflow did not write, and that a run would replace",
                    expected="an empty folder, or earlier output of iqtflow",
                    next_step=instead,
                ) from None
        return
    except (OSError, ValueError, RecursionError) as fault:
        raise UsageError(
            path,
            found=f"something that cannot be read ({type(fault).__name__}: {fault})",
            expected="nothing, or the description that iqtflow wrote",
            next_step=f"If the folder is iqtflow's, delete it: the run writes it anew. Else: {instead}",
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


#: What is in files at the root of the derivatives that iqtflow wrote.
_MARKS = {
    ".bidsignore": b"sub-*/figures",
    "index.html": b'content="iqtflow',
    "group.html": b'content="iqtflow',
    "group_metrics.tsv": b"participant_id\tmethod",
}


def _read_description(root: Path) -> dict[str, Any]:
    """Return what a data set says of itself; nothing where it does not, as downloads of HCP do not."""
    try:
        content = json.loads(read_text(root / "dataset_description.json"))
    except (OSError, ValueError, RecursionError):
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
