"""Scores of enhanced volumes against the high-field truth, as nodes."""

from __future__ import annotations

import json
import os
from pathlib import Path

from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    InputMultiObject,
    SimpleInterface,
    TraitedSpec,
    isdefined,
    traits,
)


class _EvaluateInputSpec(BaseInterfaceInputSpec):
    subject = traits.Str(mandatory=True, desc="participant label")
    reference = File(
        exists=True,
        mandatory=True,
        desc="high-field truth; it may be longer than the other volumes (the simulator crops to a "
        "multiple of k)",
    )
    mask = File(exists=True, mandatory=True, desc="brain mask on the truth's grid")
    enhanced = File(exists=True, mandatory=True, desc="volume enhanced by the network")
    spline = File(exists=True, mandatory=True, desc="cubic B-spline interpolation of the same scan")
    std = File(exists=True, desc="standard deviation of the enhanced volume, to compare with the error")
    details = File(exists=True, desc="JSON of the enhancement; its audit is part of the record")
    members = InputMultiObject(
        File(exists=True), desc="the same scan enhanced by each network of the ensemble alone"
    )


class _EvaluateOutputSpec(TraitedSpec):
    out_file = File(
        exists=True, desc="JSON: PSNR and MSSIM of each method, and reliability of the standard deviation"
    )


class EvaluateVolume(SimpleInterface):
    """PSNR and MSSIM of the enhanced volume and of the cubic spline inside the brain (Lin et al. 2019,
    section 3.1). With a standard deviation map, also how well it matches the error.
    """

    input_spec = _EvaluateInputSpec
    output_spec = _EvaluateOutputSpec

    def _run_interface(self, runtime):
        from iqtflow.evaluation.scores import evaluate_files, reliability_of_files
        from iqtflow.evaluation.uncertainty_calibration import NoVariation, in_percent
        from iqtflow.image.nifti import write_json

        methods = {"spline": self.inputs.spline, "iqt": self.inputs.enhanced}
        if isdefined(self.inputs.members):
            methods.update({f"member-{i}": path for i, path in enumerate(self.inputs.members, start=1)})
        scores = evaluate_files(self.inputs.reference, self.inputs.mask, methods)
        record = {"subject": self.inputs.subject, "methods": scores}
        if isdefined(self.inputs.std):
            try:
                found = reliability_of_files(
                    self.inputs.reference, self.inputs.mask, self.inputs.enhanced, self.inputs.std
                )
                record["reliability"] = in_percent(found)
            except NoVariation as fault:  # PSNR and MSSIM are valid without it
                print(f"sub-{self.inputs.subject}: reliability not measured: {fault}", flush=True)
        if isdefined(self.inputs.details):
            audit = json.loads(Path(self.inputs.details).read_text()).get("DataConsistency") or {}
            record["residual_rms"] = audit.get("ResidualRMS")
        out = os.path.join(runtime.cwd, "metrics.json")
        write_json(out, record)
        self._results["out_file"] = out
        return runtime


class _SummariseInputSpec(BaseInterfaceInputSpec):
    in_files = InputMultiObject(File(exists=True), mandatory=True, desc="metrics of each evaluation subject")
    folds = traits.Dict(
        traits.Str, traits.Int, desc="of a cross-validation: the fold of each subject, counted from 1"
    )


class _SummariseOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="table (.tsv), one row for each subject and method")
    dictionary_file = File(exists=True, desc="data dictionary of the table (.json)")
    summary_file = File(
        exists=True,
        desc="JSON: mean and standard deviation of each method, gain, Wilcoxon test, reliability",
    )


class SummariseMetrics(SimpleInterface):
    """Join the scores of the evaluation subjects; Wilcoxon signed-rank test of network and spline."""

    input_spec = _SummariseInputSpec
    output_spec = _SummariseOutputSpec

    def _run_interface(self, runtime):
        from iqtflow.evaluation.scores import columns_of, summarise, table
        from iqtflow.image.nifti import write_json
        from iqtflow.utils.files import write_text

        records = sorted(
            (json.loads(Path(f).read_text()) for f in self.inputs.in_files), key=lambda r: r["subject"]
        )
        if isdefined(self.inputs.folds):
            records = [{**record, "fold": self.inputs.folds[record["subject"]]} for record in records]
        folder = Path(runtime.cwd)
        self._results["out_file"] = os.fspath(write_text(folder / "group_metrics.tsv", table(records)))
        self._results["dictionary_file"] = os.fspath(
            write_json(folder / "group_metrics.json", columns_of(records))
        )
        self._results["summary_file"] = os.fspath(write_json(folder / "summary.json", summarise(records)))
        return runtime
