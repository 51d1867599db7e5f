"""Records of scans, as pages are drawn from: from what a graph has at hand, or from what lies among the
derivatives.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from iqtflow.bids.names import sidecar_name
from iqtflow.utils.files import read_text


def enhanced_record(
    scan: str | os.PathLike,
    *,
    enhanced: str | os.PathLike,
    std: str | os.PathLike | None = None,
    spline: str | os.PathLike | None = None,
    mask: str | os.PathLike | None = None,
    truth: str | os.PathLike | None = None,
    details: str | os.PathLike | None = None,
    stored_as: str | os.PathLike | None = None,
) -> dict[str, Any]:
    """Record of an enhanced scan.

    Parameters
    ----------
    scan
        The scan as acquired.
    enhanced, std, spline, mask, truth
        Volumes; see `iqtflow.reports.assemble.subject.write_subject_page`.
    details
        JSON file of the run.
    stored_as
        Where the enhanced volume is stored under its BIDS name: the name that the page shows.
    """
    volumes = {"input": scan, "output": enhanced, "std": std, "spline": spline, "mask": mask, "truth": truth}
    record: dict[str, Any] = {
        "status": "enhanced",
        **{key: None if path is None else os.fspath(path) for key, path in volumes.items()},
    }
    if details is not None:
        record["details"] = read_details(details)
    if stored_as is not None:
        record["names"] = {"output": os.fspath(stored_as)}
        if std is not None:
            record["names"]["std"] = os.fspath(beside(stored_as, "iqtstd"))
    return record


def prepared_record(
    scan: str | os.PathLike,
    *,
    draws: Sequence[tuple[str | os.PathLike, str | os.PathLike]] = (),
    details: str | os.PathLike | None = None,
    stored_as: str | os.PathLike | None = None,
    **volumes: str | os.PathLike | None,
) -> dict[str, Any]:
    """Record of a high-field scan that was prepared for training.

    Parameters
    ----------
    scan
        The high-field scan.
    draws
        (image, sidecar) of each simulated low-field scan.
    details
        JSON file of the tissue maps.
    stored_as
        Root, under the derivatives, of the names that the volumes are stored under:
        ``.../sub-X/anat/sub-X``.
    **volumes
        ``wm``, ``gm``, ``csf``, ``mask``, ``library``: paths, or None.
    """
    record: dict[str, Any] = {
        "status": "prepared",
        "input": os.fspath(scan),
        **{key: None if path is None else os.fspath(path) for key, path in volumes.items()},
        "draws": [{"image": os.fspath(image), "sidecar": read_details(sidecar)} for image, sidecar in draws],
        "details": {} if details is None else read_details(details),
    }
    if stored_as is not None:
        stem = os.fspath(stored_as)
        maps = {key: f"{stem}_label-{key.upper()}_probseg.nii.gz" for key in ("wm", "gm", "csf")}
        named = {**maps, "mask": f"{stem}_desc-brain_mask.nii.gz"}
        record["names"] = {key: name for key, name in named.items() if record.get(key)}
    library = record.get("library")
    if library:
        record["details"]["Library"] = describe_library(library)
    return record


def stored_preparation(scan: str | os.PathLike, stem: str | os.PathLike) -> dict[str, Any]:
    """Record of a prepared scan, from what is stored among the derivatives.

    Parameters
    ----------
    scan
        The high-field scan.
    stem
        Beginning of the names of its derivatives: ``OUTPUT/sub-X/anat/sub-X``.
    """
    stem = Path(stem)
    maps = {key: Path(f"{stem}_label-{key.upper()}_probseg.nii.gz") for key in ("wm", "gm", "csf")}
    volumes = {**maps, "mask": Path(f"{stem}_desc-brain_mask.nii.gz")}
    root = next((folder.parent for folder in stem.parents if folder.name.startswith("sub-")), stem.parent)
    volumes["library"] = root / "patches" / f"{stem.name}_patches.safetensors"
    draws = [
        (image, Path(str(image).replace(".nii.gz", ".json")))
        for image in sorted(stem.parent.glob(f"{stem.name}_desc-sim*_*.nii.gz"))
    ]
    details = Path(f"{stem}_label-GM_probseg.json")
    return prepared_record(
        scan,
        draws=[pair for pair in draws if pair[1].is_file()],
        details=details if details.is_file() else None,
        stored_as=stem,
        **{key: path if path.is_file() else None for key, path in volumes.items()},
    )


def describe_library(path: str | os.PathLike) -> dict[str, Any]:
    """Size of a patch library, and how many patches it has; only its header is read."""
    from safetensors import SafetensorError, safe_open

    facts: dict[str, Any] = {"MB": round(Path(path).stat().st_size / 1e6, 1)}
    try:
        with safe_open(path, framework="numpy") as file:
            facts["Patches"] = file.get_slice("corners").get_shape()[0]
    except (SafetensorError, OSError):
        facts["Patches"] = "the library cannot be read"
    return facts


def complete_record(record: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """Add to the record of an enhanced scan what lies beside its output, and what an earlier page was drawn
    from.

    Parameters
    ----------
    record
        At least ``status`` and ``input``; ``output`` of an enhanced scan, ``stem`` (see `stored_preparation`)
        of a prepared one. A record of anything else is returned as it is.
    known
        Record that an earlier page of this scan was drawn from.
    """
    record = dict(record)
    if record["status"] == "prepared" and record.get("stem"):
        return {**record, **stored_preparation(record.pop("input"), record.pop("stem"))}
    if record["status"] != "enhanced" or not record.get("output"):
        return record
    output = Path(record["output"])
    for key in ("spline", "mask", "truth"):
        if not record.get(key) and known.get(key) and Path(known[key]).is_file():
            record[key] = known[key]
    std = beside(output, "iqtstd")
    if not record.get("std") and std != output and std.is_file():
        record["std"] = os.fspath(std)
    sidecar = sidecar_name(output)
    if not record.get("details") and sidecar.is_file():
        record["details"] = read_details(sidecar)
    return record


def beside(output: str | os.PathLike, desc: str) -> Path:
    """Path of another derivative of the same scan, by its ``desc`` entity."""
    output = Path(output)
    return output.with_name(output.name.replace("_desc-iqt_", f"_desc-{desc}_"))


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """Read a JSON object, without the signature of the command that wrote it
    (`iqtflow.utils.outputs.signed`).
    """
    fields = dict(json.loads(read_text(path)))
    fields.pop("GeneratedBy", None)
    return fields


def read_details(path: str | os.PathLike) -> dict[str, Any]:
    """Read the JSON file beside a volume; one that cannot be read does not fail the page, which says so."""
    try:
        return read_json(path)
    except (OSError, ValueError, TypeError, RecursionError) as fault:
        return {"Warnings": [f"{os.fspath(path)} cannot be read ({type(fault).__name__})."]}
