"""Putting a file under its BIDS name, with its sidecar."""

from __future__ import annotations

import json
import os
from pathlib import Path

from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    isdefined,
    traits,
)


class _SinkInputSpec(BaseInterfaceInputSpec):
    in_file = File(
        exists=True,
        desc="file to store; nothing is stored when undefined (a single network has no standard deviation)",
    )
    base_directory = traits.Str(mandatory=True, desc="root of the derivatives")
    name = traits.Str(mandatory=True, desc="path under the root")
    metadata = traits.Dict(desc="fields of the JSON sidecar; no sidecar is written without any")
    metadata_files = traits.List(
        File(exists=True), desc="JSON files whose fields are added, later ones winning"
    )


class _SinkOutputSpec(TraitedSpec):
    out_file = File(desc="where it is now")


class SinkDerivative(SimpleInterface):
    """Copy a file to its place among the derivatives, whole or not at all; a file that is already there with
    the same bytes is left alone.
    """

    input_spec = _SinkInputSpec
    output_spec = _SinkOutputSpec
    # A derivative that someone deleted is put back even when everything before it is cached.
    _always_run = True

    def _run_interface(self, runtime):
        from iqtflow.bids import write_sidecar
        from iqtflow.files import write_atomically

        if not isdefined(self.inputs.in_file):
            return runtime
        out = Path(self.inputs.base_directory, self.inputs.name)
        content = Path(self.inputs.in_file).read_bytes()
        if not (out.exists() and out.read_bytes() == content):
            write_atomically(out, lambda stream: stream.write(content))
        fields = dict(self.inputs.metadata) if isdefined(self.inputs.metadata) else {}
        for name in self.inputs.metadata_files if isdefined(self.inputs.metadata_files) else []:
            fields.update(json.loads(Path(name).read_text()))
        if fields:
            stem = out.name.split(".")[0]
            write_sidecar(out.with_name(f"{stem}.json"), fields)
        self._results["out_file"] = os.fspath(out)
        return runtime
