"""The record of a scan, from which its page is made, and the JSON file beside the figures of a page.

A page can be made again from the records in that file. Records of older versions can be read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import NoneType
from typing import Any
from urllib.parse import unquote, urlparse

from iqtflow import __version__
from iqtflow.bids.names import output_name, sidecar_name
from iqtflow.utils.errors import InputError
from iqtflow.utils.files import read_text

STATUSES = ("enhanced", "prepared", "skipped", "failed")
#: Fields of a record that are paths of volumes.
VOLUMES = ("input", "output", "spline", "std", "residual", "mask", "truth", "wm", "gm", "csf", "library")
TISSUES = ("wm", "gm", "csf")
#: In the names of derivatives from which pages can be made.
ENHANCED, PREPARED = "_desc-iqt_", "_label-GM_probseg"
COMBINED = "_desc-iqtcombined_"  #: in the name of a volume that was made of several scans

Place = str | os.PathLike[str]


@dataclass(frozen=True)
class Draw:
    """One simulated scan: its path, and the content of its sidecar."""

    image: Place
    sidecar: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """One scan, as its page is made from it.

    Attributes
    ----------
    status
        One of `STATUSES`.
    input
        Path of the scan.
    subject
        Label of the subject; `iqtflow.reports.assemble.index.write_pages` needs it.
    output, spline, std, residual, mask, truth
        Paths for an enhanced scan: enhanced volume, cubic spline, standard deviation, difference from the
        acquired slices, brain mask, and the high-field scan that it was simulated from. All but the first may
        be missing.
    wm, gm, csf, library
        Paths for a scan prepared for training: tissue maps, patch library.
    draws
        Simulated scans.
    details
        Content of the JSON sidecar: geometry, model, run, ``Warnings``.
    metrics
        ``{method: {metric: value}}``.
    message
        Why the scan failed or was skipped.
    log
        Text, or path of a text file.
    names
        ``{field: path}``: where a volume is stored, if it is drawn from another place.
    stem
        Of a prepared scan: beginning of the paths of its derivatives, ``OUTPUT/sub-X/anat/sub-X``.

    Raises
    ------
    InputError
        The status is unknown.
    """

    status: str
    input: Place | None = None
    subject: str = ""
    output: Place | None = None
    spline: Place | None = None
    std: Place | None = None
    residual: Place | None = None
    mask: Place | None = None
    truth: Place | None = None
    wm: Place | None = None
    gm: Place | None = None
    csf: Place | None = None
    library: Place | None = None
    draws: Sequence[Draw] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    message: str = ""
    log: Place = ""
    names: Mapping[str, Place] = field(default_factory=dict)
    stem: Place | None = None

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise InputError(
                f"record of {self.input or 'a scan'}",
                found=f"status {self.status!r}",
                expected=", ".join(STATUSES),
                next_step="Correct the record.",
            )

    @property
    def combined(self) -> bool:
        """Whether the enhanced volume was made of several scans; `input` is then the first of them."""
        return COMBINED in os.fspath(self.names.get("output") or self.output or "")

    @property
    def key(self) -> str:
        """What no other record of a subject has: the path of the scan, or that of a combined volume."""
        return os.fspath((self.names.get("output") or self.output if self.combined else self.input) or "")

    @classmethod
    def read(cls, fields: Record | Mapping[str, Any]) -> Record:
        """Make a record from a mapping, as nodes and JSON files have it; unknown keys are ignored."""
        if isinstance(fields, Record):
            return fields
        known = {f.name: fields[f.name] for f in dataclasses.fields(cls) if fields.get(f.name) is not None}
        known["draws"] = tuple(
            draw if isinstance(draw, Draw) else Draw(draw["image"], dict(draw.get("sidecar") or {}))
            for draw in known.get("draws", ())
        )
        return cls(**{"status": "", **known})

    def as_json(self) -> dict[str, Any]:
        """Return what JSON can hold of the fields that are set; a log that was given as text is left out."""
        kept = {name: value for name, value in dataclasses.asdict(self).items() if value}
        if "\n" in str(self.log):
            del kept["log"]
        return json.loads(json.dumps(kept, default=str))

    def files(self) -> Iterator[tuple[str, Path]]:
        """Yield the field and the path of each file that exists."""
        named = [(name, getattr(self, name)) for name in (*VOLUMES, "log")]
        for name, place in [*named, *(("draw", draw.image) for draw in self.draws)]:
            text = str(place or "")
            if text and "\n" not in text and len(text) < 4096 and Path(text).is_file():
                yield name, Path(text)


def enhanced_record(
    scan: Place,
    *,
    enhanced: Place,
    details: Place | None = None,
    stored_as: Place | None = None,
    std: Place | None = None,
    residual: Place | None = None,
    **volumes: Place | None,
) -> Record:
    """Return the record of an enhanced scan.

    Parameters
    ----------
    scan
        The scan as acquired.
    enhanced, std, residual
        Paths of the enhanced volume, of its standard deviation, and of its difference from the scan.
    details
        JSON file of the run.
    stored_as
        Where the enhanced volume is stored: the name that the page shows.
    **volumes
        Other paths, by their names in `Record`.
    """
    volumes |= {"std": std, "residual": residual}
    names = {} if stored_as is None else {"output": stored_as}
    if stored_as is not None:
        names |= {name: _beside(stored_as, name) for name in ("std", "residual") if volumes[name]}
    found = {} if details is None else read_details(details)
    return Record("enhanced", scan, output=enhanced, details=found, names=names, **volumes)  # type: ignore[arg-type]


def prepared_record(
    scan: Place,
    *,
    draws: Sequence[tuple[Place, Place]] = (),
    details: Place | None = None,
    stored_as: Place | None = None,
    **volumes: Place | None,
) -> Record:
    """Return the record of a high-field scan that was prepared for training.

    Parameters
    ----------
    scan
        The high-field scan.
    draws
        (image, sidecar) of each simulated scan.
    details
        JSON file of the tissue maps.
    stored_as
        Beginning of the paths under which the volumes are stored: ``OUTPUT/sub-X/anat/sub-X``.
    **volumes
        ``wm``, ``gm``, ``csf``, ``mask``, ``library``: paths, or None.
    """
    found = {} if details is None else read_details(details)
    library = volumes.get("library")
    if library:
        found["Library"] = describe_library(library)
    stored = {} if stored_as is None else _stored_maps(stored_as)
    return Record(
        "prepared",
        scan,
        draws=tuple(Draw(image, read_details(sidecar)) for image, sidecar in draws),
        details=found,
        names={name: path for name, path in stored.items() if volumes.get(name)},
        **volumes,  # type: ignore[arg-type]
    )


def stored_preparation(scan: Place, stem: Place) -> Record:
    """Return the record of a prepared scan from its derivatives.

    Parameters
    ----------
    scan
        The high-field scan.
    stem
        Beginning of the paths of the derivatives: ``OUTPUT/sub-X/anat/sub-X``.
    """
    stem = Path(stem)
    root = next((folder.parent for folder in stem.parents if folder.name.startswith("sub-")), stem.parent)
    volumes = {**_stored_maps(stem), "library": root / "patches" / f"{stem.name}_patches.safetensors"}
    images = sorted(stem.parent.glob(f"{stem.name}_desc-sim*_*.nii.gz"))
    details = Path(f"{stem}_label-GM_probseg.json")
    return prepared_record(
        scan,
        draws=[(image, sidecar_name(image)) for image in images if sidecar_name(image).is_file()],
        details=details if details.is_file() else None,
        stored_as=stem,
        **{name: path if path.is_file() else None for name, path in volumes.items()},
    )


def _stored_maps(stem: Place) -> dict[str, Path]:
    maps = {tissue: Path(f"{stem}_label-{tissue.upper()}_probseg.nii.gz") for tissue in TISSUES}
    return {**maps, "mask": Path(f"{stem}_desc-brain_mask.nii.gz")}


def describe_library(path: Place) -> dict[str, Any]:
    """Return the size of a patch library and its number of patches; only the header is read."""
    from safetensors import SafetensorError, safe_open

    facts: dict[str, Any] = {"MB": round(Path(path).stat().st_size / 1e6, 1)}
    try:
        with safe_open(path, framework="numpy") as file:
            facts["Patches"] = file.get_slice("corners").get_shape()[0]
    except (SafetensorError, OSError):
        facts["Patches"] = "the library cannot be read"
    return facts


def complete_record(record: Record, known: Record | None = None) -> Record:
    """Add what is stored beside the output of a scan, and what an earlier page was drawn from.

    Parameters
    ----------
    record
        With ``output`` of an enhanced scan, or ``stem`` of a prepared one. Others are returned as they are.
    known
        Record of the same scan on an earlier page.
    """
    if record.status == "prepared" and record.stem:
        return replace(stored_preparation(record.input or "", record.stem), subject=record.subject)
    if record.status != "enhanced" or not record.output:
        return record
    output = Path(record.output)
    sidecar = sidecar_name(output)
    found: dict[str, Any] = {}
    for name in ("spline", "mask", "truth"):
        earlier = known and getattr(known, name)
        if not getattr(record, name) and earlier and Path(earlier).is_file():
            found[name] = earlier
    for name in ("std", "residual"):
        beside = _beside(output, name)
        if not getattr(record, name) and beside != output and beside.is_file():
            found[name] = beside
    if not record.details and sidecar.is_file():
        found["details"] = read_details(sidecar)
    return replace(record, **found)


def _beside(output: Place, name: str) -> Path:
    """Return the path of the standard deviation (``std``) or ``residual`` beside an enhanced volume."""
    output = Path(output)
    marker = COMBINED if COMBINED in output.name else ENHANCED
    return output.with_name(output.name.replace(marker, f"{marker[:-1]}{name}_"))


def read_details(path: Place) -> dict[str, Any]:
    """Read a sidecar; if that fails, return a warning, which the page then shows."""
    try:
        return _read_json(path)
    except (OSError, ValueError, TypeError, RecursionError) as fault:
        return {"Warnings": [f"{os.fspath(path)} cannot be read ({type(fault).__name__})."]}


def _read_json(path: Place) -> dict[str, Any]:
    fields = dict(json.loads(read_text(path)))
    fields.pop("GeneratedBy", None)  # of the command that wrote it (`iqtflow.utils.outputs.signed`)
    return fields


# --- the JSON file beside the figures of a page ---


@dataclass(frozen=True)
class Shown:
    """What the index shows of a scan, and the record from which its part of the page was made."""

    title: str
    anchor: str
    status: str
    sentence: str
    warnings: Sequence[str]
    verdict: str
    verdict_style: str
    thumbnail: str | None
    alt: str
    record: Record


@dataclass(frozen=True)
class Summary:
    """What a subject's page shows: its scans, the names of its figures, and a digest of its sources."""

    scans: Sequence[Shown] = ()
    figures: Sequence[str] = ()
    fingerprint: str = ""

    def as_json(self, label: str) -> str:
        """Return the content of the file."""
        scans = [{**vars(scan), "record": scan.record.as_json()} for scan in self.scans]
        return json.dumps(
            {**vars(self), "scans": scans, "subject": label}, indent=1, sort_keys=True, ensure_ascii=False
        )


def page_path(out_dir: Path, label: str) -> Path:
    """Return the path of a subject's page."""
    return out_dir / output_name("page", subject=label)


def summary_path(out_dir: Path, label: str) -> Path:
    """Return the path of the summary of a subject's page."""
    return out_dir / output_name("page_summary", subject=label)


def read_summary(out_dir: Path, label: str) -> Summary:
    """Read the summary of a subject's page; an empty one if there is none, or if it cannot be used."""
    types: dict[str, Any] = {"warnings": list, "thumbnail": (str, NoneType), "record": dict}
    try:
        found = json.loads(read_text(summary_path(out_dir, label)))
        scans = []
        for scan in found["scans"]:
            fields = {f.name: scan[f.name] for f in dataclasses.fields(Shown)}
            if not all(isinstance(value, types.get(name, str)) for name, value in fields.items()):
                return Summary()
            scans.append(Shown(**{**fields, "record": Record.read(fields["record"])}))
        if not all(isinstance(name, str) for name in found["figures"]):
            return Summary()
        return Summary(scans, found["figures"], str(found.get("fingerprint")))
    except (OSError, ValueError, LookupError, TypeError, RecursionError, InputError):
        return Summary()


def find_labels(out_dir: Path) -> list[str]:
    """Return the labels of all subjects in a folder that have a summary, sorted."""
    labels = (path.name.removeprefix("sub-") for path in out_dir.glob("sub-*"))
    return sorted(label for label in labels if summary_path(out_dir, label).is_file())


def fingerprint(records: Sequence[Record], options: Mapping[str, Any]) -> str:
    """Return a SHA-256 over all that a page depends on: records, size and time of files, options, version."""
    stats = [
        (name, path.stat().st_size, path.stat().st_mtime_ns)
        for record in records
        for name, path in record.files()
    ]
    fields = [dataclasses.asdict(record) for record in records]
    content = json.dumps([fields, stats, options, __version__], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()


def has_files(out_dir: Place, label: str, summary: Summary) -> bool:
    """Return whether the page of a summary is there with all its figures."""
    folder = summary_path(Path(out_dir), label).parent
    return page_path(Path(out_dir), label).is_file() and all(
        (folder / name).is_file() for name in summary.figures
    )


# --- records from what is on disk ---


def find_records(output_dir: Path, label: str) -> list[Record]:
    """Return the records of a subject's scans: those of its page, and those that only have derivatives.

    Parameters
    ----------
    output_dir
        Root of the derivatives. It may have been moved.
    label
        Of the subject.
    """
    records = []
    for scan in read_summary(output_dir, label).scans:
        known = _relocated(scan.record, output_dir)
        output, grey = known.names.get("output"), str(known.names.get("gm", ""))
        if known.status == "enhanced":
            if output and Path(output).is_file():
                known = replace(known, output=output, std=None, residual=None, details={})
            known = complete_record(known, known)
        elif known.status == "prepared" and PREPARED in grey:
            known = stored_preparation(known.input or "", grey.partition(PREPARED)[0])
        records.append(known)
    shown = {Path(r.key).absolute() for r in records if r.key}
    for marker, status in ((ENHANCED, "enhanced"), (COMBINED, "enhanced"), (PREPARED, "prepared")):
        for image in sorted((output_dir / f"sub-{label}").rglob(f"*{marker}*.nii*")):
            source = find_source(output_dir, image)
            if (image.absolute() if marker == COMBINED else source) in shown:
                continue
            if status == "enhanced":
                records.append(complete_record(Record(status, source, output=image)))
            else:
                stem = str(image).partition(marker)[0] if source else None
                records.append(complete_record(Record(status, source, stem=stem)))
    return records


def find_source(output_dir: Path, derivative: Path) -> Path | None:
    """Return the scan that a derivative was made from, by its ``Sources`` and the ``DatasetLinks`` of the
    data set; None when it is not there.
    """
    try:
        sidecar = _read_json(sidecar_name(derivative))
        links = _read_json(output_dir / "dataset_description.json")["DatasetLinks"]
        name, _, place = str(sidecar["Sources"][0]).removeprefix("bids:").partition(":")
        root = urlparse(links[name])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    base = Path(unquote(root.path)) if root.scheme == "file" else output_dir / links[name]
    found = Path(os.path.abspath(base / place))
    return found if found.is_file() else None


def labels_of_derivatives(output_dir: Path) -> set[str]:
    """Return the labels of all subjects that have derivatives from which a page can be made."""
    return {
        folder.name.removeprefix("sub-")
        for folder in output_dir.glob("sub-*")
        if folder.is_dir() and any(any(folder.rglob(f"*{marker}*.nii*")) for marker in (ENHANCED, PREPARED))
    }


def _relocated(record: Record, output_dir: Path) -> Record:
    """Return a record whose files are looked for where the derivatives are now."""

    def moved(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: moved(part) for key, part in value.items()}
        if isinstance(value, (list, tuple)):
            return [moved(part) for part in value]
        if not isinstance(value, str) or os.sep not in value or os.path.exists(value):
            return value
        parts = Path(value).parts
        for i in range(len(parts) - 1, 0, -1):
            here = output_dir.joinpath(*parts[i:])
            if (parts[i].startswith("sub-") or parts[i] in ("logs", "patches")) and here.exists():
                return os.fspath(here)
        return value

    fields = record.as_json()
    return Record.read({name: v if name == "details" else moved(v) for name, v in fields.items()})
