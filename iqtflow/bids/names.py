"""Names of all files that are written, and the entities of BIDS that they are made of."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from iqtflow.bids.scan import Scan
from iqtflow.config import LABEL, Settings

#: Version of the standard that is written, and that messages show.
BIDS_VERSION = "1.11.1"

#: What an image file's name may end in.
EXTENSIONS = (".nii", ".nii.gz")

#: Entities of structural images and their derivatives, in the order that BIDS requires in a file name.
ENTITY_ORDER = (
    "sub", "ses", "sample", "task", "tracksys", "acq", "nuc", "voi", "ce", "trc", "stain", "rec", "dir",
    "run", "mod", "echo", "flip", "inv", "mt", "part", "proc", "hemi", "space", "split", "recording", "chunk",
    "seg", "res", "den", "label", "desc",
)  # fmt: skip
#: Longest name of a scan (bytes, without extension). Names of results and figures add to it, and file systems
#: take 255 bytes.
LONGEST_NAME = 215


def sidecar_name(image: Path) -> Path:
    """Return the path of the JSON file that belongs to an image, beside it."""
    return image.with_name(image.name.split(".")[0] + ".json")


def is_label(text: str) -> bool:
    """Return whether a text is a label of BIDS: letters, digits and plus signs."""
    return re.fullmatch(LABEL, text) is not None


def can_have_page(label: str) -> bool:
    """Return whether a subject's label can be part of the name of a page and its figures."""
    return is_label(label) and len(label) <= LONGEST_NAME


def stem_of(name: str) -> str:
    """Return the name of an image file without its extension, which may be in capitals."""
    return re.sub(r"(\.nii)?(\.gz)?\Z", "", name, flags=re.IGNORECASE | re.ASCII)


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
    """Return the BIDS label of a part of a node's name, as `node_name` wrote it."""
    return node.replace("__", "+")


#: Names of the files that a run writes for a scan: arguments of `derivative_name` for each kind of file.
#: ``{number}`` counts the simulated scans from 1.
SCAN_OUTPUTS: dict[str, dict[str, str]] = {
    "enhanced": {"desc": "iqt"},
    "std": {"desc": "iqtstd"},
    "residual": {"desc": "iqtresidual"},
    "combined": {"desc": "iqtcombined"},
    "combined_std": {"desc": "iqtcombinedstd"},
    "wm": {"label": "WM", "suffix": "probseg"},
    "gm": {"label": "GM", "suffix": "probseg"},
    "csf": {"label": "CSF", "suffix": "probseg"},
    "mask": {"desc": "brain", "suffix": "mask"},
    "draw": {"desc": "sim{number:02d}"},
    "library": {"folder": "patches", "suffix": "patches", "extension": ".safetensors"},
    "pairs": {"folder": "patches", "suffix": "pairs", "extension": ".npy"},
    "pairs_header": {"folder": "patches", "suffix": "pairs", "extension": ".json"},
    "measurement": {"folder": "calibration", "extension": "_snr.json"},
    "measurement_figure": {"folder": "calibration", "extension": "_snr.png"},
}
#: Names of the other files that a run writes: a path under the root of the derivatives for each kind.
RUN_OUTPUTS = {
    "description": "dataset_description.json",
    "ignored": ".bidsignore",
    "index": "index.html",
    "scan_table": "group_iqt.tsv",
    "scan_table_dictionary": "group_iqt.json",
    "ratings": "ratings.tsv",
    "page": "sub-{subject}.html",
    "page_summary": "sub-{subject}/figures/sub-{subject}_desc-report.json",
    "viewer": "viewer/niivue.umd.js",
    "viewer_licence": "viewer/LICENSE",
    "citation": "logs/CITATION.md",
    "references": "logs/CITATION.bib",
    "paragraphs": "logs/citation",
    "prior": "calibration/prior.json",
    "prior_figure": "calibration/prior.png",
    "calibration_page": "calibration.html",
    "adaptation": "adapt.json",
    "adaptation_page": "adapt.html",
    "adaptation_plan": "training/models/plan.json",
    "split": "models/split.json",
    "folds": "models/folds-{folds}.json",
    "model": "models/{model}.safetensors",
    "card": "models/{model}.md",
    "card_picture": "models/{model}.png",
    "curves": "models/{model}_member-{member}_curves.csv",
    "scores": "models/{model}_summary.json",
    "example": "models/{model}_evaluation/{stem}_desc-{desc}_T1w.nii.gz",
    "metrics": "group_metrics.tsv",
    "metrics_dictionary": "group_metrics.json",
    "group_page": "group.html",
}
#: Tissue maps and brain mask, keys of `SCAN_OUTPUTS`.
MAPS = ("wm", "gm", "csf", "mask")


def output_name(what: str, scan: Scan | None = None, **given: str | int) -> Path:
    """Return the path of an output, relative to the root of the derivatives.

    Parameters
    ----------
    what
        A key of `SCAN_OUTPUTS` or `RUN_OUTPUTS`.
    scan
        The scan that it is made from; only for `SCAN_OUTPUTS`.
    **given
        The fields in braces, such as ``number=1`` or ``model="iqt-k4"``.

    Returns
    -------
    Path
        Relative path.

    Examples
    --------
    >>> output_name("model", model="iqt-k4").as_posix()
    'models/iqt-k4.safetensors'
    """
    if scan is None:
        return Path(RUN_OUTPUTS[what].format(**given))
    return derivative_name(scan, **{key: value.format(**given) for key, value in SCAN_OUTPUTS[what].items()})


def scan_outputs(scan: Scan, settings: Settings) -> list[Path]:
    """Return what a run writes for every scan that it processes; sidecars of images not included.

    Parameters
    ----------
    scan
        The scan.
    settings
        All settings of the run.

    Returns
    -------
    list of Path
        Relative to the root of the derivatives.
    """
    train = settings.train
    if settings.run.mode == "enhance":
        return [output_name("enhanced", scan)]
    if settings.run.mode in ("calibrate", "adapt"):
        return [output_name("measurement", scan), output_name("measurement_figure", scan)]
    pairs = ("pairs", "pairs_header") if train.patch_library == "pairs" else ()
    return [
        *(output_name(kind, scan) for kind in MAPS),
        *(output_name("draw", scan, number=i) for i in range(1, train.stored_draws + 1)),
        *(output_name(kind, scan) for kind in ("library", *pairs)),
    ]


def with_sidecars(names: Iterable[Path]) -> list[Path]:
    """Return names of outputs, each image followed by its JSON sidecar."""
    found = []
    for name in names:
        found += [name, sidecar_name(name)] if name.name.endswith(EXTENSIONS) else [name]
    return found


def derivative_name(
    scan: Scan,
    *,
    desc: str | None = None,
    label: str | None = None,
    suffix: str | None = None,
    extension: str = ".nii.gz",
    folder: str | None = None,
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
    folder
        Folder that holds it, relative to the root; None for the scan's own.

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
    return Path(*([folder] if folder else folders), name + extension)


def stem_name(scan: Scan) -> Path:
    """Return the beginning that the paths of all derivatives of a scan share: up to ``_desc-``."""
    path = output_name("enhanced", scan)
    return path.with_name(path.name.partition("_desc-iqt")[0])


def scan_seed(scan: Scan, seed: int) -> int:
    """Return the seed of the first draw of a scan. Each further draw adds 1; there is room for a thousand.

    The seed depends on the name of the scan. Otherwise all scans would have the same SNR and the same noise.
    """
    name = derivative_name(scan).name
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return 1000 * int.from_bytes(digest[:5], "big") + 1
