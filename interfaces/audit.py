"""Comparing an enhanced volume with its scan as a node."""

from __future__ import annotations

import json
from pathlib import Path

from nipype.interfaces.base import File, TraitedSpec, traits

from iqtflow.interfaces.base import SKULL_STRIPPED, ChildCommand, ChildCommandInputSpec


class _AuditInputSpec(ChildCommandInputSpec):
    in_file = File(exists=True, mandatory=True, position=0, argstr="%s", desc="thick-slice scan")
    enhanced = File(
        exists=True, mandatory=True, position=1, argstr="%s", desc="its enhanced volume, of any method"
    )
    mask = File(
        exists=True, argstr="--mask %s", desc="brain mask on the scan's grid; searched when not given"
    )
    std = File(
        exists=True,
        argstr="--std %s",
        desc="standard deviation on the grid of the enhanced volume; says where differences are usual",
    )
    sidecar_file = File(exists=True, argstr="--sidecar %s", desc="BIDS metadata of the scan (SliceThickness)")
    thickness = traits.Float(argstr="--thickness %g", desc="slice thickness in mm, in place of the sidecar's")
    skull_stripped = SKULL_STRIPPED
    residual_file = File(
        "residual.nii.gz", usedefault=True, argstr="--residual %s", desc="name of the residual map"
    )
    details_file = File("audit.json", usedefault=True, argstr="--json %s", desc="name of the JSON")


class _AuditOutputSpec(TraitedSpec):
    residual_file = File(
        exists=True,
        desc="scan minus the scan that the enhanced volume predicts, in standard deviations of the noise, on "
        "the scan's grid; 0 outside of the brain",
    )
    details_file = File(exists=True, desc="JSON: the field DataConsistency of a sidecar")
    residual_rms = traits.Float(
        desc="root mean square of the residual map in the brain, in standard deviations of the noise"
    )
    places = traits.List(
        traits.Dict,
        desc="places where the two differ more than usual: kind, position, volume, slices, contrast",
    )


class AuditEnhancement(ChildCommand):
    """Compare an enhanced volume with the slices that were acquired.

    Where does it lack something, and where does it show something that the slices do not support?
    """

    module = "audit"
    input_spec = _AuditInputSpec
    output_spec = _AuditOutputSpec

    def _list_outputs(self):
        outputs = super()._list_outputs()
        details = Path(outputs["details_file"])
        if details.exists():
            found = json.loads(details.read_text())["DataConsistency"]
            outputs.update(residual_rms=found["ResidualRMS"], places=found["Places"])
        return outputs
