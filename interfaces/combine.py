"""Combining several enhanced scans of one head as a node."""

from __future__ import annotations

import json
from pathlib import Path

from nipype.interfaces.base import File, InputMultiPath, TraitedSpec, traits

from iqtflow.interfaces.base import ChildCommand, ChildCommandInputSpec, setting_trait


def _files(option: str, desc: str, **more):
    return InputMultiPath(File(exists=True), argstr=f"--{option} %s...", desc=f"{desc}, one for each", **more)


class _CombineInputSpec(ChildCommandInputSpec):
    in_files = _files("scan", "thick-slice scans of one head; the first is the reference", mandatory=True)
    enhanced_files = _files("enhanced", "enhanced volumes (EnhanceVolume: out_file)", mandatory=True)
    mask_files = _files("mask", "brain masks on the grids of the scans", mandatory=True)
    details_files = _files("details", "JSON files of the enhancements", mandatory=True)
    std_files = _files("std", "predicted errors; none if a model predicts none")
    sidecar_files = _files("sidecar", "BIDS metadata of the scans (SliceThickness)")
    names = traits.List(
        traits.Str, argstr="--name %s...", desc="names of the scans in messages and in the JSON file"
    )
    voxel_size = setting_trait("enhance", "voxel_size")
    out_file = File(
        "combined.nii.gz", usedefault=True, position=0, argstr="%s", desc="name of the combined volume"
    )
    std_file = File(
        "std.nii.gz",
        usedefault=True,
        argstr="--std-out %s",
        desc="name of its predicted error (standard deviation)",
    )
    single_file = File(
        "single.nii.gz",
        usedefault=True,
        argstr="--single %s",
        desc="name of the best single enhanced volume on the same grid",
    )
    residual_file = File(
        "residual.nii.gz",
        usedefault=True,
        argstr="--residual %s",
        desc="name of the map of first scan minus expected scan, in standard deviations of the noise",
    )
    details_file = File(
        "details.json",
        usedefault=True,
        argstr="--json %s",
        desc="name of the JSON with registration, weights, grid and audits",
    )


class _CombineOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="combined volume in the axes and the world space of the first scan")
    std_file = File(
        exists=True,
        desc="its predicted error (standard deviation) on the same grid; undefined if a model predicts none",
    )
    single_file = File(
        exists=True, desc="the enhanced volume with the smallest predicted error, on the same grid"
    )
    residual_file = File(
        exists=True,
        desc="first scan minus the scan that the combined volume predicts, in standard deviations of the "
        "noise, on the first scan's grid; 0 outside of the brain",
    )
    details_file = File(exists=True, desc="JSON; its field Stacks has an entry for each scan")


class CombineStacks(ChildCommand):
    """Make one volume of several enhanced scans of one head: register, judge, combine, compare with the
    slices.
    """

    module = "combine"
    optional = ("std_file",)
    input_spec = _CombineInputSpec
    output_spec = _CombineOutputSpec

    def _run_interface(self, runtime, correct_return_codes=(0,)):
        runtime = super()._run_interface(runtime, correct_return_codes)
        # The child process prints to a file. The user sees these lines on the terminal.
        details = Path(runtime.cwd, self.inputs.details_file)
        if details.exists():
            for line in json.loads(details.read_text())["Warnings"]:
                print(f"combined volume: note: {line}", flush=True)
        return runtime
