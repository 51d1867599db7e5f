"""Checking a scan before minutes are spent on it, as a node."""

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
    in_file = File(mandatory=True, desc="scan; may be missing or broken, which is what this node finds out")
    sidecar = traits.Dict(desc="BIDS metadata of the scan, all levels of inheritance merged")


class _ConformOutputSpec(TraitedSpec):
    out_file = File(
        exists=True,
        desc="the scan itself, now known to be one finite three-dimensional volume with an orientation",
    )
    sidecar_file = File(exists=True, desc="the metadata as one JSON file")


class ConformScan(SimpleInterface):
    """Fail early, naming file, value found, value expected and next step, when a scan cannot be worked
    with.
    """

    input_spec = _ConformInputSpec
    output_spec = _ConformOutputSpec

    def _run_interface(self, runtime):
        from iqtflow.image.metadata import settle_values
        from iqtflow.image.nifti import write_json
        from iqtflow.image.validate import check_scan

        check_scan(self.inputs.in_file)
        self._results["out_file"] = os.path.abspath(self.inputs.in_file)
        given = self.inputs.sidecar if isdefined(self.inputs.sidecar) else {}
        sidecar, notes = settle_values(given, "sidecar")
        for note in notes:
            print(f"{self.inputs.in_file}: note: {note}", flush=True)
        self._results["sidecar_file"] = os.fspath(
            write_json(os.path.join(runtime.cwd, "sidecar.json"), sidecar)
        )
        return runtime
