"""Enhancing one scan as a node."""

from __future__ import annotations

import json
from pathlib import Path

from nipype.interfaces.base import File, TraitedSpec, traits

from iqtflow.config import SETTINGS
from iqtflow.interfaces.base import SKULL_STRIPPED, ChildCommand, NetworkInputSpec, setting_trait


class _EnhanceInputSpec(NetworkInputSpec):
    in_file = File(exists=True, mandatory=True, position=0, argstr="%s", desc="thick-slice T1w scan")
    out_file = File(
        "enhanced.nii.gz", usedefault=True, position=1, argstr="%s", desc="name of the enhanced volume"
    )
    std_file = File(
        "std.nii.gz",
        usedefault=True,
        argstr="--std %s",
        desc="name of the predicted error (standard deviation), if the model has one",
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
    residual_file = File(
        "residual.nii.gz",
        usedefault=True,
        argstr="--residual %s",
        desc="name of the map of scan minus expected scan, in standard deviations of the noise",
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
        desc="model file, or name of a shipped model; chosen by slice spacing when not given",
    )
    skull_stripped = SKULL_STRIPPED
    force = setting_trait("run", "force")
    tiling = setting_trait("enhance", "tiling")
    precision = setting_trait("enhance", "precision")
    slice_intensity = setting_trait("enhance", "slice_intensity")
    keep_white_matter = traits.Enum(
        "yes",
        "no",
        usedefault=True,
        argstr="--keep-white-matter %s",
        desc=SETTINGS["enhance"]["keep_white_matter"].help,
    )
    data_consistency = setting_trait("enhance", "data_consistency")
    voxel_size = setting_trait("enhance", "voxel_size")
    acquired_spacing = setting_trait("enhance", "acquired_spacing")
    acquired_axis = setting_trait("enhance", "acquired_axis")
    mirror = setting_trait("enhance", "mirror")
    max_memory_gb = traits.Float(
        nohash=True,
        argstr="--max-memory-gb %g",
        desc="memory for the networks, in GB; the volume is enhanced in tiles if one pass needs more",
    )


class _EnhanceOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="enhanced volume in the scan's orientation and world space")
    std_file = File(
        exists=True,
        desc="predicted error (standard deviation) on the same grid; undefined if the model has none",
    )
    spline_file = File(exists=True, desc="cubic B-spline interpolation on the same grid")
    mask_file = File(exists=True, desc="brain mask on the scan's grid")
    residual_file = File(
        exists=True,
        desc="scan minus the scan that the enhanced volume predicts, in standard deviations of the noise, on "
        "the scan's grid; 0 outside of the brain",
    )
    details_file = File(
        exists=True, desc="JSON with geometry, model, audit (DataConsistency), device, seconds, memory"
    )


class EnhanceVolume(ChildCommand):
    """Enhance a thick-slice scan with a trained network (image quality transfer)."""

    module = "enhance"
    optional = ("std_file",)
    input_spec = _EnhanceInputSpec
    output_spec = _EnhanceOutputSpec

    def _run_interface(self, runtime, correct_return_codes=(0,)):
        from iqtflow.reports.run_summary import describe_enhancement

        runtime = super()._run_interface(runtime, correct_return_codes)
        # The child process prints to a file. The user sees these lines on the terminal.
        details = Path(runtime.cwd, self.inputs.details_file)
        if details.exists():
            for line in describe_enhancement(json.loads(details.read_text())):
                print(f"{self.inputs.in_file}: {line}", flush=True)
        return runtime
