"""Enhancing one scan as a node."""

from __future__ import annotations

import json
import os
from pathlib import Path

from nipype.interfaces.base import File, TraitedSpec, isdefined, traits

from iqtflow.interfaces.base import ChildCommand, ChildCommandInputSpec


class _EnhanceInputSpec(ChildCommandInputSpec):
    in_file = File(exists=True, mandatory=True, position=0, argstr="%s", desc="thick-slice T1w scan")
    out_file = File(
        "enhanced.nii.gz", usedefault=True, position=1, argstr="%s", desc="name of the enhanced volume"
    )
    std_file = File(
        "std.nii.gz",
        usedefault=True,
        argstr="--std %s",
        desc="name of the standard deviation, of models that have one",
    )
    spline_file = File(
        "spline.nii.gz",
        usedefault=True,
        argstr="--spline %s",
        desc="name of the cubic B-spline interpolation on the same grid",
    )
    mask_file = File(
        "mask.nii.gz",
        usedefault=True,
        argstr="--mask-out %s",
        desc="name of the brain mask on the scan's grid",
    )
    details_file = File(
        "details.json",
        usedefault=True,
        argstr="--json %s",
        desc="name of the JSON with geometry, model, device, seconds, memory",
    )
    sidecar_file = File(
        exists=True,
        argstr="--sidecar %s",
        desc="BIDS metadata of the scan (SliceThickness, SpacingBetweenSlices)",
    )
    model = traits.Either(
        File(exists=True),
        traits.Str,
        argstr="--model %s",
        desc="model file, or name of a shipped model; chosen by k when not given",
    )
    skull_stripped = traits.Enum(
        "auto",
        "yes",
        "no",
        usedefault=True,
        argstr="--skull-stripped %s",
        desc="whether the scan shows the brain only",
    )
    force = traits.Bool(False, usedefault=True, argstr="--force", desc="enhance a near-isotropic scan too")
    tiling = traits.Enum(
        "auto",
        "whole",
        "tiles",
        "paper",
        usedefault=True,
        argstr="--tiling %s",
        desc="way through the volume: one pass, blended tiles, or the paper's patches",
    )
    precision = traits.Enum(
        "auto",
        "float32",
        "bfloat16",
        usedefault=True,
        argstr="--precision %s",
        desc="of the convolutions; auto: bfloat16 where the hardware multiplies it",
    )
    keep_white_matter = traits.Enum(
        "yes",
        "no",
        usedefault=True,
        argstr="--keep-white-matter %s",
        desc="scale an estimate whose white matter left the scan's",
    )
    mirror = traits.Bool(
        False,
        usedefault=True,
        argstr="--average-mirrored",
        desc="average with the estimate of the left-right mirrored scan",
    )
    max_memory_gb = traits.Float(
        nohash=True,
        argstr="--max-memory-gb %g",
        desc="memory that networks may take, in GB; the volume is tiled when one pass takes more",
    )
    num_threads = traits.Int(
        1, usedefault=True, nohash=True, argstr="--num-threads %d", desc="CPU threads of the network"
    )
    device = traits.Enum(
        "cpu", "cuda", usedefault=True, nohash=True, argstr="--device %s", desc="where to run the network"
    )
    use_gpu = traits.Bool(
        False, usedefault=True, nohash=True, desc="count this node against the scheduler's GPU slots"
    )


class _EnhanceOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="enhanced volume in the scan's orientation and world space")
    std_file = File(
        exists=True,
        desc="standard deviation of the error to be expected, on the same grid; undefined for a single "
        "network that does not predict it",
    )
    spline_file = File(exists=True, desc="cubic B-spline interpolation on the same grid")
    mask_file = File(exists=True, desc="brain mask on the scan's grid")
    details_file = File(exists=True, desc="JSON with geometry, model, device, seconds, memory")


class EnhanceVolume(ChildCommand):
    """Turn a thick-slice scan into a thin-slice one with a trained network (image quality transfer)."""

    module = "enhance"
    input_spec = _EnhanceInputSpec
    output_spec = _EnhanceOutputSpec

    def _run_interface(self, runtime, correct_return_codes=(0,)):
        from iqtflow.reports.run_summary import describe_enhancement

        runtime = super()._run_interface(runtime, correct_return_codes)
        # What the child says goes to files; people look at the terminal.
        details = Path(runtime.cwd, self.inputs.details_file)
        if details.exists():
            for line in describe_enhancement(json.loads(details.read_text())):
                print(f"{self.inputs.in_file}: {line}", flush=True)
        return runtime

    def _list_outputs(self):
        outputs = {
            name: os.path.abspath(getattr(self.inputs, name))
            for name in ("out_file", "spline_file", "mask_file", "details_file")
        }
        std = os.path.abspath(self.inputs.std_file) if isdefined(self.inputs.std_file) else ""
        if std and os.path.exists(std):
            outputs["std_file"] = std
        return outputs
