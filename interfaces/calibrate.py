"""The SNR prior of a scanner as nodes: one measures a scan, one fits the prior to all scans."""

from __future__ import annotations

import json
from pathlib import Path

from nipype.interfaces.base import File, InputMultiObject, TraitedSpec, traits

from iqtflow.interfaces.base import ChildCommand, ChildCommandInputSpec


class _MeasureInputSpec(ChildCommandInputSpec):
    step = traits.Enum("scan", usedefault=True, position=0, argstr="%s", desc="part of the command")
    in_file = File(exists=True, mandatory=True, position=1, argstr="%s", desc="low-field T1w scan")
    out_file = File("snr.json", usedefault=True, position=2, argstr="%s", desc="name of the JSON to write")
    wm_file = File(exists=True, mandatory=True, argstr="--wm %s", desc="white-matter probability map")
    gm_file = File(exists=True, mandatory=True, argstr="--gm %s", desc="grey-matter probability map")
    mask_file = File(exists=True, mandatory=True, argstr="--mask %s", desc="brain mask")
    figure_file = File("snr.png", usedefault=True, argstr="--figure %s", desc="name of the picture")
    label = traits.Str(argstr="--label %s", desc="name of the scan")
    source = traits.Str(argstr="--source %s", desc="origin of the scan: a BIDS URI")


class _MeasureOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="JSON: SNR of WM and GM, noise and how it was estimated")
    figure_file = File(exists=True, desc="where tissue and noise were measured")


class MeasureSNR(ChildCommand):
    """Measure the SNR of white and grey matter of one scan (eq. (4) of Lin et al., MLMI 2019)."""

    module = "calibrate"
    input_spec = _MeasureInputSpec
    output_spec = _MeasureOutputSpec

    def _run_interface(self, runtime):
        from iqtflow.reports.run_summary import describe_measurement

        runtime = super()._run_interface(runtime)
        # The lines of the child process go to a file; this one goes to the terminal.
        record = json.loads(Path(runtime.cwd, self.inputs.out_file).read_text())
        print(describe_measurement(record), flush=True)
        return runtime


class _FitInputSpec(ChildCommandInputSpec):
    step = traits.Enum("fit", usedefault=True, position=0, argstr="%s", desc="part of the command")
    scans = InputMultiObject(
        File(exists=True), mandatory=True, position=1, argstr="%s", desc="JSON of each scan"
    )
    out_file = File("prior.json", usedefault=True, argstr="--output %s", desc="name of the prior")
    figure_file = File("prior.png", usedefault=True, argstr="--figure %s", desc="name of the picture")
    name = traits.Str("site", usedefault=True, argstr="--name %s", desc="name of the prior")


class _FitOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="prior as JSON, for --snr-prior")
    figure_file = File(exists=True, desc="the scans over the published prior and the fitted one")


class FitPrior(ChildCommand):
    """Fit the distribution of tissue SNR to the scans of one scanner."""

    module = "calibrate"
    input_spec = _FitInputSpec
    output_spec = _FitOutputSpec
