"""Names of what is written. All entity names are here."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from iqtflow.bids.scan import Scan

#: What an image file's name may end in.
EXTENSIONS = (".nii", ".nii.gz")

#: Entities of structural images and their derivatives, in the order in which BIDS wants them in a file name.
ENTITY_ORDER = (
    "sub", "ses", "sample", "task", "tracksys", "acq", "nuc", "voi", "ce", "trc", "stain", "rec", "dir",
    "run", "mod", "echo", "flip", "inv", "mt", "part", "proc", "hemi", "space", "split", "recording", "chunk",
    "seg", "res", "den", "label", "desc",
)  # fmt: skip


#: Bytes of a scan's name, without extension, that leave room for what the names of results and figures add
#: to it, up to the 255 that file systems take.
LONGEST_NAME = 215


def sidecar_name(image: Path) -> Path:
    """Return the path of the JSON file that belongs to an image, beside it."""
    return image.with_name(image.name.split(".")[0] + ".json")


def is_label(text: str) -> bool:
    """Return whether a text is a label of BIDS: letters, digits and plus signs."""
    return re.fullmatch(r"[A-Za-z0-9+]+", text) is not None


def can_have_page(label: str) -> bool:
    """Return whether a subject's label can be part of the name of a page and its figures."""
    return is_label(label) and len(label) <= LONGEST_NAME


def stem_of(name: str) -> str:
    """Return the name of an image file without its extension."""
    return name.removesuffix(".gz").removesuffix(".nii")


def read_entities(stem: str) -> dict[str, str]:
    """Return the entities of a BIDS file name (without its extension) by their short names, in its order."""
    pairs = (part.partition("-") for part in stem.split("_")[:-1])
    return {key: value for key, _, value in pairs}


def node_name(name: str) -> str:
    """Return the name of a part of a graph for a BIDS name or label: nipype takes letters, digits and ``_``.

    Different names stay different: no label has ``_``, so that a plus sign can become two of them.

    Examples
    --------
    >>> node_name("sub-01+a_T1w"), node_name("sub-01_acq-a_T1w")
    ('sub_01__a_T1w', 'sub_01_acq_a_T1w')
    """
    return name.replace("+", "__").replace("-", "_")


def label_of(node: str) -> str:
    """Return the label that `node_name` made a part of a name of."""
    return node.replace("__", "+")


def derivative_name(
    scan: Scan,
    *,
    desc: str | None = None,
    label: str | None = None,
    suffix: str | None = None,
    extension: str = ".nii.gz",
) -> Path:
    """Name a derivative of a scan.

    Parameters
    ----------
    scan
        What it derives from; all entities of its name are kept.
    desc, label
        Entities to add.
    suffix
        None keeps the scan's.
    extension
        With its dot.

    Returns
    -------
    Path
        Relative to the root of the derivatives: ``sub-X/[ses-Y/]anat/sub-X[_ses-Y]_..._desc-D_T1w.nii.gz``.

    Raises
    ------
    ValueError
        `desc` or `label` is not alphanumeric.
    """
    entities = dict(scan.entities)
    for key, value in (("label", label), ("desc", desc)):
        if value is not None:
            if not (value.isascii() and value.isalnum()):
                raise ValueError(f"{key}-{value} is no BIDS entity: labels are letters and digits only")
            entities[key] = value
    ordered = sorted(entities.items(), key=lambda item: ENTITY_ORDER.index(item[0]))
    name = "_".join([*(f"{key}-{value}" for key, value in ordered), suffix or scan.suffix])
    folders = [f"sub-{scan.subject}", *([f"ses-{scan.session}"] if scan.session else []), "anat"]
    return Path(*folders, name + extension)


def library_name(scan: Scan, *, suffix: str = "patches", extension: str = ".safetensors") -> Path:
    """Path of a scan's patch library under the root of the derivatives."""
    return Path("patches", derivative_name(scan, suffix=suffix, extension=extension).name)


def measurement_name(scan: Scan) -> Path:
    """Path of the measured tissue SNR of a scan under the root of the derivatives."""
    return Path("calibration", derivative_name(scan, extension="").name + "_snr.json")


def scan_seed(scan: Scan, seed: int) -> int:
    """Return the seed of the first draw of a scan; its further draws count on, up to a thousand.

    A scan's name is part of it: people who shared one draw would all have the same SNR, and the same noise.
    """
    name = derivative_name(scan).name
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return 1000 * int.from_bytes(digest[:5], "big") + 1
