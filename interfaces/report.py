"""The pages of a subject as nodes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from nipype.interfaces.base import (
    DynamicTraitedSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    Undefined,
    isdefined,
    traits,
)

from iqtflow.config import SETTINGS
from iqtflow.reports.record import Record, enhanced_record, has_files, prepared_record, read_summary


class _ReportInputSpec(DynamicTraitedSpec):
    base_directory = traits.Str(
        mandatory=True, desc="root of the derivatives; gets sub-X.html and sub-X/figures"
    )
    subject = traits.Str(mandatory=True, desc="label of the subject")
    inputs_named = traits.List(traits.Str, mandatory=True, desc="the scans, one path for each")
    # Names, not files: nipype would hash the content of files that may not be stored yet.
    outputs_named = traits.List(
        traits.Str,
        hash_files=False,
        desc="for each scan, where its results are stored: the names that the page shows",
    )
    others = traits.List(traits.Dict, desc="records of scans that were skipped, shown on the same page")
    convention = traits.Enum(
        "radiological", "neurological", usedefault=True, desc="side of the patient that is drawn on the left"
    )


class _ReportSubjectInputSpec(_ReportInputSpec):
    viewer_mb = traits.Float(
        SETTINGS["run"]["viewer_mb"].default,
        usedefault=True,
        desc="most megabytes of the volumes for the viewer, for each scan; 0: no viewer",
    )


class _ReportOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="the page")


class _Report(SimpleInterface):
    """A page from files. The node has one input of each of its fields for every scan, numbered from 1."""

    input_spec = _ReportInputSpec
    output_spec = _ReportOutputSpec

    @property
    def always_run(self) -> bool:
        """Whether to run although no input has changed: the page was deleted, or shows another outcome."""
        out_dir, subject = self.inputs.base_directory, self.inputs.subject
        others = self.inputs.others if isdefined(self.inputs.others) else []
        statuses = ["enhanced"] * len(self.inputs.inputs_named) + [other["status"] for other in others]
        summary = read_summary(Path(out_dir), subject)
        told = [scan.status for scan in summary.scans]
        return told != statuses or not has_files(out_dir, subject, summary)

    def __init__(self, fields: Sequence[str], n_scans: int, **inputs) -> None:
        self._fields = tuple(fields)
        names = [f"{field}{i}" for i in range(1, n_scans + 1) for field in fields]
        super().__init__(**{name: value for name, value in inputs.items() if name not in names})
        for name in names:
            self.inputs.add_trait(name, File(exists=True, desc=f"{name} of its scan"))
        self.inputs.trait_set(trait_change_notify=False, **dict.fromkeys(names, Undefined))
        self.inputs.trait_set(**{name: value for name, value in inputs.items() if name in names})

    def _record(self, scan: str, stored: str | None, given: dict[str, str | None]) -> Record:
        raise NotImplementedError

    def _run_interface(self, runtime):
        from iqtflow.reports.assemble.subject import write_subject_page

        inputs = self.inputs.get()
        records = []
        for i, scan in enumerate(self.inputs.inputs_named):
            given = {field: inputs[f"{field}{i + 1}"] for field in self._fields}
            given = {field: path if isdefined(path) else None for field, path in given.items()}
            stored = self.inputs.outputs_named[i] if isdefined(self.inputs.outputs_named) else None
            records.append(self._record(scan, stored, given))
        if isdefined(self.inputs.others):
            records += map(Record.read, self.inputs.others)
        page = write_subject_page(
            self.inputs.base_directory,
            self.inputs.subject,
            records,
            convention=self.inputs.convention,
            viewer_mb=inputs.get("viewer_mb", 0.0),
        )
        self._results["out_file"] = os.fspath(page)
        return runtime


class ReportSubject(_Report):
    """Write the page of a subject from the volumes and the JSON details of its `n_scans` enhanced scans:
    inputs ``enhanced1``, ``std1``, ``residual1``, ``spline1``, ``mask1``, ``truth1``, ``details1``,
    ``enhanced2``, ...
    """

    input_spec = _ReportSubjectInputSpec

    def __init__(self, n_scans: int = 1, **inputs) -> None:
        fields = ("enhanced", "std", "residual", "spline", "mask", "truth", "details")
        super().__init__(fields, n_scans, **inputs)

    def _record(self, scan, stored, given):
        return enhanced_record(scan, **given, stored_as=stored)


class ReportPrepared(_Report):
    """Write the page of a subject whose `n_scans` high-field scans were prepared for training: inputs
    ``wm1``, ``gm1``, ``csf1``, ``mask1``, ``library1``, ``details1`` (JSON of the tissue maps), and for each
    of `n_draws` simulated scans ``draw01_1`` and ``draw01_metadata_1``.
    """

    def __init__(self, n_scans: int = 1, n_draws: int = 1, **inputs) -> None:
        self._draws = [f"draw{i:02d}" for i in range(1, n_draws + 1)]
        fields = ("wm", "gm", "csf", "mask", "library", "details")
        drawn = (f"{draw}{what}_" for draw in self._draws for what in ("", "_metadata"))
        super().__init__((*fields, *drawn), n_scans, **inputs)

    def _record(self, scan, stored, given):
        draws = [(given.pop(f"{draw}_"), given.pop(f"{draw}_metadata_")) for draw in self._draws]
        return prepared_record(scan, draws=[pair for pair in draws if all(pair)], stored_as=stored, **given)
