"""All pages of a folder of derivatives, made again from what lies in it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from iqtflow.bids.names import sidecar_name
from iqtflow.reports.assemble.index import write_index_page
from iqtflow.reports.assemble.records import complete_record, read_json
from iqtflow.reports.assemble.subject import write_subject_page
from iqtflow.reports.assemble.summaries import find_labels, read_summary
from iqtflow.reports.assemble.training import write_training_page
from iqtflow.utils.errors import InputError

ENHANCED, PREPARED = "_desc-iqt_", "_label-GM_probseg"


def rebuild(output_dir: str | os.PathLike) -> Path:
    """Write the pages of all subjects, of the data set and of a training anew, from what is on disk.

    What each page was drawn from is read from the summary beside its figures; scans that no summary knows
    are found by the names of their derivatives. Volumes of a work directory that is gone are left out: the
    spline is computed from the scan again, and without its brain mask the grey scale is set on the
    foreground. A folder that was moved is understood; scans are looked for where the derivatives'
    ``DatasetLinks`` say.

    Parameters
    ----------
    output_dir
        Root of the derivatives.

    Returns
    -------
    Path
        ``index.html``.

    Raises
    ------
    InputError
        The folder holds nothing that a page could be made of.
    OutputError
        It cannot be written to.
    """
    output_dir = Path(output_dir).absolute()
    labels = sorted({*find_labels(output_dir), *_labels_of_derivatives(output_dir)})
    models = sorted((output_dir / "models").glob("*.safetensors"))
    if not labels and not models:
        raise InputError(
            output_dir,
            found="neither pages nor derivatives of iqtflow",
            expected="output of an earlier run",
            next_step="Give the output folder of a run, or run without this option first.",
        )
    for label in labels:
        write_subject_page(output_dir, label, find_records(output_dir, label))
    if models:  # the page shows one: the last that was trained
        name = max(models, key=lambda model: (model.stat().st_mtime_ns, model.name)).stem
        write_training_page(output_dir, name, scans=find_evaluated(output_dir, name))
    return write_index_page(output_dir, labels)


def find_records(output_dir: Path, label: str) -> list[dict[str, Any]]:
    """Records of a subject's scans: those that its page shows, completed, and those that only have
    derivatives.
    """
    records = []
    for scan in read_summary(output_dir, label).get("scans", []):
        known = _relocated(scan.get("record") or {}, output_dir)
        if known.get("status") == "enhanced":
            stored = (known.get("names") or {}).get("output")
            if stored and Path(stored).is_file():
                known = {**known, "output": stored, "std": None, "details": None}
            known = complete_record(known, known)
        elif known.get("status") == "prepared" and known.get("names"):
            stem = known["names"].get("gm", "").partition(PREPARED)[0]
            known = (
                complete_record({"status": "prepared", "input": known["input"], "stem": stem}, {})
                if stem
                else known
            )
        if known:
            records.append(known)
    shown = {str(Path(r["input"]).absolute()) for r in records if r.get("input")}
    folder = output_dir / f"sub-{label}"
    for marker, status in ((ENHANCED, "enhanced"), (PREPARED, "prepared")):
        for image in sorted(folder.rglob(f"*{marker}*.nii*")):
            scan = find_source(output_dir, image)
            if scan is not None and str(scan) in shown:
                continue
            record = {"status": status, "input": None if scan is None else os.fspath(scan)}
            if status == "enhanced":
                record["output"] = os.fspath(image)
            elif scan is not None:
                record["stem"] = str(image).partition(marker)[0]
            records.append(complete_record(record, {}))
    return records


def find_source(output_dir: Path, derivative: Path) -> Path | None:
    """The scan that a derivative names in ``Sources``, by the data set's ``DatasetLinks``; None when it is
    not there.
    """
    try:
        sidecar = read_json(sidecar_name(derivative))
        links = read_json(output_dir / "dataset_description.json")["DatasetLinks"]
        name, _, place = str(sidecar["Sources"][0]).removeprefix("bids:").partition(":")
        root = urlparse(links[name])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    base = Path(unquote(root.path)) if root.scheme == "file" else output_dir / links[name]
    found = Path(os.path.abspath(base / place))
    return found if found.is_file() else None


def find_evaluated(output_dir: Path, model_name: str) -> list[dict[str, Any]]:
    """Evaluation scans of a model whose estimate, simulated scan and truth are all there."""
    found = []
    for estimate in sorted(
        (output_dir / "models" / f"{model_name}_evaluation").glob("sub-*_desc-iqt_T1w.nii.gz")
    ):
        label = estimate.name.split("_")[0].removeprefix("sub-")
        simulated = estimate.name.replace("_desc-iqt_", "_desc-sim01_")
        for low in sorted((output_dir / f"sub-{label}").rglob(simulated)):
            truth = find_source(output_dir, low)
            mask = low.with_name(low.name.partition("_desc-sim01_")[0] + "_desc-brain_mask.nii.gz")
            if truth is not None:
                mask = mask if mask.is_file() else None
                found.append({"subject": label, "truth": truth, "input": low, "mask": mask})
    return found


def _labels_of_derivatives(output_dir: Path) -> set[str]:
    return {
        folder.name.removeprefix("sub-")
        for folder in output_dir.glob("sub-*")
        if folder.is_dir() and any(any(folder.rglob(f"*{marker}*.nii*")) for marker in (ENHANCED, PREPARED))
    }


def _relocated(record: Mapping[str, Any], output_dir: Path) -> dict[str, Any]:
    """A record whose files under the derivatives are looked for where the derivatives are now."""

    def moved(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: moved(part) for key, part in value.items()}
        if not isinstance(value, str) or os.sep not in value or os.path.exists(value):
            return value
        parts = Path(value).parts
        for i in range(len(parts) - 1, 0, -1):
            here = output_dir.joinpath(*parts[i:])
            if (parts[i].startswith("sub-") or parts[i] in ("logs", "patches")) and here.exists():
                return os.fspath(here)
        return value

    return {
        key: value if key == "details" else moved(value)
        for key, value in json.loads(json.dumps(record)).items()
    }
