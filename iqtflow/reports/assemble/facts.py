"""What was recorded of a scan or a model, in the words of the page.

All that the tables leave out is on the page as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iqtflow.inference.ood import FIGURES
from iqtflow.inference.uncertainty import kind_of_scan, measured_words
from iqtflow.models.card import Card

Row = tuple[str, str]
Show = Callable[[Any], str]
Tables = Mapping[str, Sequence[tuple[str, str, Show]]]

#: How `iqtflow.inference.ood` begins its warning. The page has a place of its own for it.
WARNING_BEGINS = "Out of distribution"


def plain(value: Any) -> str:
    """Return a value as people write it."""
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


def _each(form: str) -> Show:
    """Show a mapping by a format of name and number; anything else as it is."""

    def show(value: Any) -> str:
        if not isinstance(value, Mapping):
            return plain(value)
        return ", ".join(form.format(name, float(number)) for name, number in value.items())

    return show


def _edges(value: Any) -> str:
    return " × ".join(plain(v) for v in (value if isinstance(value, (list, tuple)) else [value])) + " mm"


def _range(value: Any) -> str:
    return " to ".join(plain(v) for v in value) if isinstance(value, (list, tuple)) else plain(value)


def _seconds(value: Any) -> str:
    return _each("{} {:.0f} s")(value) if isinstance(value, Mapping) else f"{plain(value)} s"


def _axis(value: Any) -> str:
    words = {"i": "first", "j": "second", "k": "third"}
    return f"{words[value]} array axis ({value})" if value in words else plain(value)


def _measured(value: Any) -> str:
    if not isinstance(value, Mapping):
        return plain(value)
    return ", ".join(
        f"{axis}: {'not measurable' if mm is None else f'{mm:.3g} mm'}" for axis, mm in value.items()
    )


def _acquired(value: Any) -> str:
    if not isinstance(value, Mapping):
        return plain(value)
    return f"{plain(value.get('SpacingMm'))} mm apart; places from: {plain(value.get('PlacesFrom'))}"


def _subjects(value: Any) -> str:
    return f"{len(value)}: {plain(value)}" if isinstance(value, (list, tuple)) else plain(value)


def _draws(value: Any) -> str:
    words = {"fresh": "new ones for every batch", "stored": "stored ones"}
    return words.get(str(value), plain(value))


#: Of an enhanced scan. Table title -> rows of (label, key, how to show it); a dot leads into a mapping.
SCAN_TABLES: Tables = {
    "Geometry": (
        ("Slice axis", "SliceAxis", _axis),
        ("Slice spacing", "Geometry.SpacingMm", _in("mm")),
        ("Slice thickness", "Geometry.ThicknessMm", _in("mm")),
        ("Gap between slices", "Geometry.GapMm", _in("mm")),
        ("Pixel size in plane", "Geometry.InplaneMm", _edges),
        ("Slice spacing / pixel size", "Geometry.Ratio", plain),
        ("Source of these values", "Geometry.Source", plain),
        ("Effective resolution, measured", "EffectiveResolutionMm", _measured),
        ("Brought back to slices as acquired", "AcquiredSpacing", _acquired),
        ("Upsampling factor k", "UpsamplingFactor", plain),
        ("Choice of k", "Upsampling.Note", plain),
        ("In plane resampled to", "Upsampling.ResampledToMm", _edges),
        ("Voxel size of the enhanced volume", "VoxelSizeMm", _edges),
        ("Grid of the enhanced volume", "OutputGrid.Method", plain),
    ),
    "Model": (
        ("Name", "Model.Name", plain),
        ("SHA-256", "Model.SHA256", plain),
        ("Number of networks", "Model.Members", plain),
        ("Averaged with the mirrored scan", "MirroredAveraging", plain),
        ("Standard deviation map", "Uncertainty.Kind", plain),
        ("Contrast", "Model.Contrast", plain),
        ("Brain mask", "BrainMask.Method", plain),
        ("Skull stripped", "SkullStripped", plain),
        ("Intensity normalisation", "IntensityScale", lambda value: f"divided by {plain(value)}"),
        ("White matter, scan / enhanced volume", "WhiteMatter.ScanOverEstimate", plain),
        ("Usual range of this ratio", "WhiteMatter.UsualRange", _range),
        ("Enhanced volume multiplied by", "WhiteMatter.Factor", plain),
    ),
    "Run": (
        ("Device", "Device", plain),
        ("Precision", "Precision", plain),
        ("Threads", "NumThreads", plain),
        ("Sliding window", "Tiling", plain),
        ("Time", "Seconds", _in("s")),
        ("Peak memory", "PeakMemoryGB", _in("GB")),
        ("Predicted memory", "PredictedMemoryGB", _in("GB")),
        ("Random seed", "RandomSeed", plain),
        ("Version of iqtflow", "PackageVersion", plain),
    ),
}

#: Of a scan that was prepared for training: the details of its tissue maps, and its patch library.
PREPARED_TABLES: Tables = {
    "Tissue maps": (
        ("Engine", "Engine", plain),
        ("Version", "EngineVersion", plain),
        ("Choice of engine", "EngineChoice", plain),
        ("Brain mask", "mask_method", plain),
        ("Skull stripped", "skull_stripped", plain),
        ("Tissue volumes", "volumes_ml", _each("{} {:.0f} ml")),
        ("Brain volume", "brain_ml", _in("ml")),
        ("Mean intensity", "mean_intensity", _each("{} {:.0f}")),
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


def _two_decimals(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, (int, float)) else plain(value)


#: Of a model's card, as `card_tables` arranges it.
CARD_TABLES: Tables = {
    "Network": (
        ("Architecture", "network.name", plain),
        ("Settings", "network.kwargs", plain),
        ("Upsampling factor k", "k", plain),
        ("Number of networks", "n_members", plain),
        ("Contrast", "contrast", plain),
        ("Intensity normalisation", "normalisation.name", plain),
        ("Version of iqtflow", "package_version", plain),
    ),
    "Training": (
        ("Training subjects", "split.train", _subjects),
        ("Validation subjects", "split.validation", _subjects),
        ("Evaluation subjects", "split.evaluation", _subjects),
        ("Cross-validation of models trained in the same way", "cross_validation", plain),
        ("Licence of the data", "training.licence", plain),
        ("Fine-tuned from", "training.plan.start_from", plain),
        ("Steps", "steps", plain),
        ("Loss", "training.plan.loss", plain),
        ("Best validation loss", "best", plain),
        ("Simulated scans", "training.plan.draws", _draws),
        ("Slice thickness / slice spacing", "slice_profile.fwhm_over_spacing", _range),
        ("SNR prior", "snr_prior.name", plain),
    ),
    "Evaluation": (
        (
            "Difference from the slices of the scan / noise (1: as expected)",
            "figures.residual_rms.mean",
            _two_decimals,
        ),
    ),
}


def fact_tables(details: Mapping[str, Any], tables: Tables = SCAN_TABLES) -> dict[str, list[Row]]:
    """Return the rows (label, value in words) of each table, without those that the details do not have."""
    filled = {}
    for title, rows in tables.items():
        found = [(label, show, _look_up(details, key)) for label, key, show in rows]
        kept = [(label, show(value)) for label, show, value in found if value not in (None, "", [], {})]
        if kept:
            filled[title] = kept
    return filled


def card_tables(card: Card) -> dict[str, list[Row]]:
    """Return the tables of a model, from its card.

    Parameters
    ----------
    card
        The card. A joined model has the training of each network under
        ``training.members``, another one has it in ``training`` itself.
    """
    members = card.training.get("members") or [card.training]
    first = {**members[0], **card.training}
    split = {
        "train": first.get("training_subjects"),
        "validation": first.get("validation_subjects"),
        "evaluation": card.figures.get("subjects"),
        **first.get("split", {}),
    }
    each = {
        name: [member[key] for member in members if key in member]
        for name, key in (("steps", "steps"), ("best", "best_validation_loss"))
    }
    found = card.cross_validation
    folds = f"{len(found['folds'])} folds, {found['n']} subjects" if found else ""
    details = {**card, **each, "training": first, "split": split, "cross_validation": folds}
    return fact_tables(details, CARD_TABLES)


def brief(details: Mapping[str, Any]) -> str:
    """Return one line for the top of the page: factor, model, device, time."""
    parts = (
        ("Model.Name", "Model {}"),
        ("UpsamplingFactor", "k = {}"),
        ("Device", "on {}"),
        ("Seconds", "in {} s"),
    )
    known = ((words, _look_up(details, key)) for key, words in parts)
    return ", ".join(words.format(plain(value)) for words, value in known if value is not None)


def relative_path(path: Any) -> str:
    """Return a path from the root of its data set, ``sub-X/...``; without such a folder only the name."""
    parts = Path(str(path or "")).parts
    first = next((i for i, part in enumerate(parts[:-1]) if part.startswith("sub-")), -1)
    return Path(*parts[first:]).as_posix() if parts else ""


def stack_rows(details: Mapping[str, Any]) -> list[list[str]]:
    """Return the rows of the table of scans that a combined volume was made of."""
    rows = []
    for stack in details.get("Stacks") or ():
        moved = [stack.get("TranslationMm"), stack.get("RotationDegrees")]
        fit = [stack.get("BrainOverlap"), stack.get("Correlation")]
        rms = (stack.get("DataConsistency") or {}).get("ResidualRMS")
        rows.append(
            [
                Path(str(stack["Scan"])).name,
                f"{stack['SpacingMm']:.3g} mm" if "SpacingMm" in stack else "",
                "" if None in moved else f"{moved[0]:.1f} mm, {moved[1]:.1f}°",
                "" if None in fit else f"{fit[0]:.2f}, {fit[1]:.2f}",
                "" if stack.get("Weight") is None else f"{stack['Weight']:.0%}",
                "" if rms is None else f"{rms:.1f} × noise",
                "used" if stack["Used"] else "left out",
            ]
        )
    return rows


def find_warnings(details: Mapping[str, Any]) -> list[str]:
    """Return the ``Warnings`` of the details, each once, without the one that the verdict repeats."""
    given = details.get("Warnings") or ()
    listed = [str(v) for v in (given if isinstance(given, (list, tuple)) else [given])]
    return [text for text in dict.fromkeys(listed) if not text.startswith(WARNING_BEGINS)]


def metric_rows(metrics: Mapping[str, Mapping[str, float]]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of a table from ``{method: {metric: value}}``."""
    columns = list(dict.fromkeys(c for values in metrics.values() for c in values))
    rows = [[m, *(plain(values.get(c, "")) for c in columns)] for m, values in metrics.items()]
    return ["method", *(c.upper() for c in columns)], rows


def as_json(details: Mapping[str, Any]) -> str:
    """Return everything recorded, readable."""
    return json.dumps(details, indent=2, sort_keys=True, default=str, ensure_ascii=False)


def _look_up(details: Mapping[str, Any], key: str) -> Any:
    value: Any = details
    for part in key.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(part)
    return value


# --- whether a scan is like the training data ---


@dataclass(frozen=True)
class Familiar:
    """Whether a scan is like the training data.

    Attributes
    ----------
    badge
        Two or three words.
    style
        Name of the badge's style: ``enhanced`` (good), ``warn`` or ``skipped`` (not known).
    sentence
        What was found.
    reasons
        In what the scan differs.
    rows
        For each figure: label, value, range of the training data, score.
    """

    badge: str
    style: str
    sentence: str
    reasons: tuple[str, ...] = ()
    rows: tuple[tuple[str, str, str, str], ...] = ()


def judge(details: Mapping[str, Any]) -> Familiar | None:
    """Put the field ``OutOfDistribution`` of a sidecar into words.

    Returns
    -------
    Familiar or None
        None when there are no details at all. A missing or empty field gives a verdict that says so.
    """
    if not details:
        return None
    found = details.get("OutOfDistribution")
    if not isinstance(found, Mapping) or "Score" not in found:
        why = f"the sidecar has {plain(found)}" if found else "the model does not have their ranges"
        words = f"This scan was not compared with the training data: {why}."
        return Familiar("not compared", "skipped", words)
    score, threshold = float(found["Score"]), float(found.get("Threshold") or 1.0)
    features = found.get("Features")
    rows = [_row(*item) for item in features.items()] if isinstance(features, Mapping) else []
    rows.sort(key=lambda row: -float(row[3] or 0))
    if found.get("Flagged", score > threshold):
        badge, style = "unlike the training data", "warn"
        words = (
            "This scan differs from the training data. The enhanced volume may look good and be wrong: check "
            "each finding on the original scan."
        )
    elif score > 1:
        badge, style = "at the limit of the training data", "warn"
        words = "This scan is at the limit of the training data."
    else:
        badge, style = "like the training data", "enhanced"
        words = (
            "Contrast, noise, coverage and voxel size of this scan are like those of the training data. Its "
            "anatomy was not compared."
        )
    words = f"{words} Score {score:.1f} (training data: up to 1; warning: above {threshold:.1f})."
    return Familiar(badge, style, words, tuple(map(str, found.get("Reasons") or ())), tuple(rows))


def _row(name: str, feature: Any) -> tuple[str, str, str, str]:
    figure = FIGURES.get(name)
    label, show = (name, plain) if figure is None else (figure.label, figure.shown)
    try:
        span = " to ".join(show(float(v)) for v in feature["TrainingRange"])
        return label, show(float(feature["Value"])), span, plain(float(feature["Score"]))
    except (TypeError, KeyError, ValueError):  # somebody has edited the sidecar
        return label, plain(feature), "", ""


# --- what the standard deviation map shows ---


def spread_words(details: Mapping[str, Any]) -> str:
    """Return what the standard deviation map shows."""
    kind = kind_of_scan(details)
    if kind == "predicted":
        return "Predicted error (standard deviation)"
    if kind == "mirrored":
        return "Standard deviation of the enhanced volumes of the scan and of the mirrored scan"
    members = (details.get("Model") or {}).get("Members")
    count = f"{members} networks" if isinstance(members, int) and members > 1 else "networks"
    return f"Standard deviation over the {count} of the ensemble"


def spread_held(details: Mapping[str, Any]) -> str:
    """Return how such maps compare with the true error in unseen subjects; empty when it is not known."""
    stated = details.get("Uncertainty")
    try:
        return measured_words(stated.get("Measured")) if isinstance(stated, Mapping) else ""
    except (TypeError, KeyError, ValueError):  # somebody has edited the sidecar
        return ""


def spread_inside(details: Mapping[str, Any]) -> str:
    """Return what colour deep inside the brain means."""
    if kind_of_scan(details) == "predicted":
        return (
            "Colour in deep white matter: a large error is likely there. Look at the original scan. A lesion "
            "can be wrong without any colour."
        )
    return (
        "Colour in deep white matter or around a lesion: the results disagree there. Look at the original "
        "scan."
    )
