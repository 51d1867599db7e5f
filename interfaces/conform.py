"""Check a scan before minutes of computing, as a node."""

from __future__ import annotations

import os

from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    isdefined,
    traits,
)


class _ConformInputSpec(BaseInterfaceInputSpec):
    in_file = File(mandatory=True, desc="scan to check; it may be missing or damaged")
    sidecar = traits.Dict(desc="BIDS metadata of the scan, with inherited fields")


class _ConformOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="the scan itself, after the check")
    sidecar_file = File(exists=True, desc="the metadata as one JSON file")


class ConformScan(SimpleInterface):
    """Fail early if a scan cannot be processed. The message names file, value found, value expected and next
    step.
    """

    input_spec = _ConformInputSpec
    output_spec = _ConformOutputSpec

    def _run_interface(self, runtime):
        from iqtflow.image.metadata import drop_invalid_fields
        from iqtflow.image.nifti import write_json
        from iqtflow.image.validate import check_scan

        check_scan(self.inputs.in_file)
        self._results["out_file"] = os.path.abspath(self.inputs.in_file)
        given = self.inputs.sidecar if isdefined(self.inputs.sidecar) else {}
        sidecar, notes = drop_invalid_fields(given, "sidecar")
        for note in notes:
            print(f"{self.inputs.in_file}: note: {note}", flush=True)
        self._results["sidecar_file"] = os.fspath(
            write_json(os.path.join(runtime.cwd, "sidecar.json"), sidecar)
        )
        return runtime
