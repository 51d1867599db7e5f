"""From what the group level of training left on disk to its page."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from iqtflow.models.model_file import read_card
from iqtflow.reports.assemble.group import write_group_page


def write_training_page(
    output_dir: str | os.PathLike, model_name: str, *, scans: Sequence[Mapping[str, Any]] = ()
) -> Path:
    """Write ``group.html`` from the model, its curves and ``group_metrics.tsv``.

    Parameters
    ----------
    output_dir
        Root of the derivatives.
    model_name
        Name of the model under ``models``.
    scans
        Evaluation scans, if any: mappings with ``subject``, ``truth``, ``mask`` and ``input``, which is
        called ``..._desc-sim01_T1w.nii.gz``.

    Returns
    -------
    Path
        The page.
    """
    output_dir = Path(output_dir)
    models = output_dir / "models"
    card = read_card(models / f"{model_name}.safetensors")
    curves = sorted(models.glob(f"{model_name}_member-*_curves.csv"))
    summary: dict[str, Any] = {
        "name": model_name,
        "k": card.k,
        "card": card,
        "curves": {path.stem.removeprefix(f"{model_name}_").removesuffix("_curves"): path for path in curves},
    }
    if scans:
        evaluated = models / f"{model_name}_evaluation"
        summary["evaluation"] = _read_metrics(output_dir / "group_metrics.tsv")
        summary["reliability"] = card.reliability
        summary["uncertainty"] = card.uncertainty()
        summary["examples"] = [
            {
                **scan,
                "spline": evaluated / f"{stem}_desc-spline_T1w.nii.gz",
                "iqt": evaluated / f"{stem}_desc-iqt_T1w.nii.gz",
            }
            for scan in scans
            for stem in [Path(scan["input"]).name.partition("_desc-sim01_")[0]]
        ]
    return write_group_page(output_dir, summary)


def _read_metrics(path: Path) -> list[dict[str, Any]]:
    """One record for each subject: scores of the spline, of the averaged image, and of each network alone."""
    records: dict[str, dict[str, Any]] = {}
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            label = row.pop("participant_id").removeprefix("sub-")
            method = row.pop("method")
            record = records.setdefault(label, {"subject": label, "members": []})
            scores = {name: float(value) for name, value in row.items()}
            if method.startswith("member-"):
                record["members"].append(scores)
            else:
                record[{"iqt": "mean"}.get(method, method)] = scores
    return [record for record in records.values() if {"spline", "mean"} <= set(record)]
