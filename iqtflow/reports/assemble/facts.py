"""What an engineer wants to know of a run, in words, from the details that came with it.

Whatever the tables below leave out is on the page too, as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Row = tuple[str, str]
Show = Callable[[Any], str]


def plain(value: Any) -> str:
    """Value as a person would write it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(plain(v) for v in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{k}: {plain(v)}" for k, v in value.items())
    return str(value)


def _in(unit: str) -> Show:
    return lambda value: f"{plain(value)} {unit}"


def _edges(value: Any) -> str:
    return " × ".join(plain(v) for v in (value if isinstance(value, (list, tuple)) else [value])) + " mm"


def _millilitres(value: Any) -> str:
    if not isinstance(value, Mapping):
        return plain(value)
    return ", ".join(f"{tissue} {float(ml):.0f} ml" for tissue, ml in value.items())


def _whole(value: Any) -> str:
    if not isinstance(value, Mapping):
        return plain(value)
    return ", ".join(f"{tissue} {float(mean):.0f}" for tissue, mean in value.items())


def _seconds(value: Any) -> str:
    if not isinstance(value, Mapping):
        return f"{plain(value)} s"
    return ", ".join(f"{step} {float(s):.0f} s" for step, s in value.items())


def _range(value: Any) -> str:
    return " to ".join(plain(v) for v in value) if isinstance(value, (list, tuple)) else plain(value)


def _axis(value: Any) -> str:
    words = {"i": "first", "j": "second", "k": "third"}
    return f"{words[value]} array axis ({value})" if value in words else plain(value)


#: Of an enhanced scan. Table title -> rows of (label, key, how to show it); a dot leads into a mapping.
SCAN_TABLES: dict[str, tuple[tuple[str, str, Show], ...]] = {
    "Geometry": (
        ("Slices are stacked along", "SliceAxis", _axis),
        ("Slice spacing", "Geometry.SpacingMm", _in("mm")),
        ("Slice thickness", "Geometry.ThicknessMm", _in("mm")),
        ("Gap between slices", "Geometry.GapMm", _in("mm")),
        ("Voxel in plane", "Geometry.InplaneMm", _edges),
        ("Spacing over voxel in plane", "Geometry.Ratio", plain),
        ("Known from", "Geometry.Source", plain),
        ("Up-scaling factor k", "UpsamplingFactor", plain),
        ("Choice of k", "Upsampling.Note", plain),
        ("Plane resampled to", "Upsampling.ResampledToMm", _edges),
        ("Voxel of the estimate", "VoxelSizeMm", _edges),
    ),
    "Model": (
        ("Name", "Model.Name", plain),
        ("SHA-256", "Model.SHA256", plain),
        ("Networks averaged", "Model.Members", plain),
        ("Mirrored averaging", "MirroredAveraging", plain),
        ("Uncertainty", "Uncertainty.Kind", plain),
        ("Contrast", "Model.Contrast", plain),
        ("Brain mask", "BrainMask.Method", plain),
        ("Skull stripped", "SkullStripped", plain),
        ("Intensity seen as 1", "IntensityScale", plain),
        ("White matter, scan over estimate", "WhiteMatter.ScanOverEstimate", plain),
        ("That ratio on evaluation scans", "WhiteMatter.UsualRange", _range),
        ("Estimate scaled by", "WhiteMatter.Factor", plain),
    ),
    "Run": (
        ("Device", "Device", plain),
        ("Precision", "Precision", plain),
        ("Threads", "NumThreads", plain),
        ("Way through the volume", "Tiling", plain),
        ("Time", "Seconds", _in("s")),
        ("Peak memory", "PeakMemoryGB", _in("GB")),
        ("Memory predicted", "PredictedMemoryGB", _in("GB")),
        ("Random seed", "RandomSeed", plain),
        ("Version", "PackageVersion", plain),
    ),
}

#: Of a high-field scan that was prepared for training: the details of its tissue maps, and its patch library.
PREPARED_TABLES: dict[str, tuple[tuple[str, str, Show], ...]] = {
    "Tissue maps": (
        ("Engine", "Engine", plain),
        ("Version", "EngineVersion", plain),
        ("Choice of engine", "EngineChoice", plain),
        ("Brain mask", "mask_method", plain),
        ("Skull stripped", "skull_stripped", plain),
        ("Volumes", "volumes_ml", _millilitres),
        ("Brain", "brain_ml", _in("ml")),
        ("Mean intensity", "mean_intensity", _whole),
        ("Time", "seconds", _seconds),
        ("Threads", "num_threads", plain),
        ("Random seed", "seed", plain),
        ("Version of iqtflow", "PackageVersion", plain),
    ),
    "Patch library": (
        ("Patches with enough brain", "Library.Patches", plain),
        ("Size", "Library.MB", _in("MB")),
    ),
}

#: Of a model: the keys of its card.
CARD_TABLES: dict[str, tuple[tuple[str, str, Show], ...]] = {
    "Network": (
        ("Architecture", "network.name", plain),
        ("Settings", "network.kwargs", plain),
        ("Up-scaling factor k", "k", plain),
        ("Networks averaged", "n_members", plain),
        ("Contrast", "contrast", plain),
        ("Intensities divided by", "normalisation.name", plain),
        ("Version", "package_version", plain),
    ),
    "Training": (
        ("Subjects", "training.subjects", plain),
        ("Validation", "training.validation", plain),
        ("Evaluation", "training.evaluation", plain),
        ("Licence of the data", "training.licence", plain),
        ("Steps", "training.steps", plain),
        ("Slice profile", "slice_profile", plain),
        ("SNR prior", "snr_prior", plain),
    ),
}


def fact_tables(
    details: Mapping[str, Any], tables: Mapping[str, Sequence[tuple[str, str, Show]]] = SCAN_TABLES
) -> dict[str, list[Row]]:
    """Rows (label, value in words) of each table, without those that the details do not have."""
    filled = {}
    for title, rows in tables.items():
        found = [(label, show, _look_up(details, key)) for label, key, show in rows]
        kept = [(label, show(value)) for label, show, value in found if value not in (None, "", [], {})]
        if kept:
            filled[title] = kept
    return filled


def brief(details: Mapping[str, Any]) -> str:
    """One line for the top of the page: factor, model, device, time."""
    parts = (
        ("UpsamplingFactor", "k = {}"),
        ("Model.Name", "model {}"),
        ("Device", "on {}"),
        ("Seconds", "in {} s"),
    )
    known = ((words, _look_up(details, key)) for key, words in parts)
    return ", ".join(words.format(plain(value)) for words, value in known if value is not None)


def find_warnings(record: Mapping[str, Any]) -> list[str]:
    """Warnings of a record (``warnings``) and of its details (``Warnings``), each once, in order."""
    given = (record.get("warnings"), (record.get("details") or {}).get("Warnings"))
    listed = [v for value in given if value for v in (value if isinstance(value, (list, tuple)) else [value])]
    return list(dict.fromkeys(str(v) for v in listed))


def metric_rows(metrics: Mapping[str, Mapping[str, float]] | None) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table from ``{method: {metric: value}}``."""
    if not metrics:
        return [], []
    columns = list(dict.fromkeys(c for values in metrics.values() for c in values))
    rows = [[m, *(plain(values.get(c, "")) for c in columns)] for m, values in metrics.items()]
    return ["method", *(c.upper() for c in columns)], rows


def as_json(details: Mapping[str, Any]) -> str:
    """Everything recorded, readable."""
    return json.dumps(details, indent=2, sort_keys=True, default=str, ensure_ascii=False)


def _look_up(details: Mapping[str, Any], key: str) -> Any:
    value: Any = details
    for part in key.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(part)
    return value
