"""Pages as nodes."""

from __future__ import annotations

import os

from nipype.interfaces.base import (
    DynamicTraitedSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    Undefined,
    isdefined,
    traits,
)

from iqtflow.report import write_pages

__all__ = ["ReportSubject", "write_pages"]

#: Volumes and details of each scan; the node has one input of each for every scan: ``enhanced1``, ``std1``,
#: ... ``details2``.
FIELDS = ("enhanced", "std", "spline", "mask", "truth", "details")


class _ReportInputSpec(DynamicTraitedSpec):
    base_directory = traits.Str(
        mandatory=True, desc="root of the derivatives; gets sub-X.html and sub-X/figures"
    )
    subject = traits.Str(mandatory=True, desc="label of the subject")
    inputs_named = traits.List(traits.Str, mandatory=True, desc="the scans, one path for each")
    outputs_named = traits.List(
        traits.Str, desc="where the enhanced volumes are stored, the names that the page shows"
    )
    others = traits.List(traits.Dict, desc="records of scans that were skipped, shown on the same page")
    convention = traits.Enum(
        "radiological", "neurological", usedefault=True, desc="side of the patient that is drawn on the left"
    )


class _ReportOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="the page")


class ReportSubject(SimpleInterface):
    """Write the page of a subject from the volumes and the JSON details of its `n_scans` enhanced scans."""

    input_spec = _ReportInputSpec
    output_spec = _ReportOutputSpec

    @property
    def always_run(self) -> bool:
        """Whether to run although nothing before has changed: a page that someone deleted, or that tells of a
        failure since, is written again.
        """
        from iqtflow.report.summaries import is_complete

        others = self.inputs.others if isdefined(self.inputs.others) else []
        statuses = ["enhanced"] * len(self.inputs.inputs_named) + [other["status"] for other in others]
        return not is_complete(self.inputs.base_directory, self.inputs.subject, statuses)

    def __init__(self, n_scans: int = 1, **inputs) -> None:
        names = [f"{field}{i}" for i in range(1, n_scans + 1) for field in FIELDS]
        super().__init__(**{name: value for name, value in inputs.items() if name not in names})
        for name in names:
            self.inputs.add_trait(name, File(exists=True))
        self.inputs.trait_set(trait_change_notify=False, **dict.fromkeys(names, Undefined))
        self.inputs.trait_set(**{name: value for name, value in inputs.items() if name in names})

    def _run_interface(self, runtime):
        from iqtflow.report.records import enhanced_record
        from iqtflow.report.subject import write_subject_page

        records = []
        for i, scan in enumerate(self.inputs.inputs_named):
            given = {field: getattr(self.inputs, f"{field}{i + 1}") for field in FIELDS}
            stored = self.inputs.outputs_named[i] if isdefined(self.inputs.outputs_named) else None
            records.append(
                enhanced_record(
                    scan, **{k: v if isdefined(v) else None for k, v in given.items()}, stored_as=stored
                )
            )
        records += self.inputs.others if isdefined(self.inputs.others) else []
        page = write_subject_page(
            self.inputs.base_directory, self.inputs.subject, records, convention=self.inputs.convention
        )
        self._results["out_file"] = os.fspath(page)
        return runtime
