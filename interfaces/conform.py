"""Checking a scan before minutes are spent on it, as a node."""

from __future__ import annotations

import os

from nipype.interfaces.base import BaseInterfaceInputSpec, File, SimpleInterface, TraitedSpec


class _ConformInputSpec(BaseInterfaceInputSpec):
    in_file = File(mandatory=True, desc="scan; may be missing or broken, which is what this node finds out")


class _ConformOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="the scan itself, now known to be one finite three-dimensional volume with an orientation")


class ConformScan(SimpleInterface):
    """Fail early, naming file, value found, value expected and next step, when a scan cannot be worked with."""

    input_spec = _ConformInputSpec
    output_spec = _ConformOutputSpec

    def _run_interface(self, runtime):
        from iqtflow.conform import check_scan

        check_scan(self.inputs.in_file)
        self._results["out_file"] = os.path.abspath(self.inputs.in_file)
        return runtime
