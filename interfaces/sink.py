"""Putting a file under its BIDS name, with its sidecar."""

from __future__ import annotations

import filecmp
import json
import os
import shutil
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
        desc="file to store; when undefined (some models have no standard deviation) an older one is removed",
    )
    base_directory = traits.Str(mandatory=True, desc="root of the derivatives")
    # Not as a file: it would be one where the current folder is the root.
    name = traits.Str(mandatory=True, hash_files=False, desc="path under the root")
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

    @property
    def always_run(self) -> bool:
        """Whether to run although nothing before has changed: a derivative that someone deleted or changed is
        put back, and one that is no more is removed.
        """
        if not isdefined(self.inputs.in_file):
            return self._path().exists()
        return not self._is_stored()

    def _run_interface(self, runtime):
        from iqtflow.bids import write_sidecar
        from iqtflow.utils.files import write_atomically

        out = self._path()
        if not isdefined(self.inputs.in_file):  # what lies there belongs to an estimate that was replaced
            for stale in (out, self._sidecar()):
                stale.unlink(missing_ok=True)
            return runtime
        source = Path(self.inputs.in_file)
        if not (out.exists() and filecmp.cmp(source, out, shallow=False)):
            with source.open("rb") as content:
                write_atomically(out, lambda stream: shutil.copyfileobj(content, stream, 1 << 20))
            # The time of the computation, by which the next run sees at a glance that this is it.
            os.utime(out, ns=(source.stat().st_atime_ns, source.stat().st_mtime_ns))
        fields = self._fields()
        if fields:
            write_sidecar(self._sidecar(), fields)
        self._results["out_file"] = os.fspath(out)
        return runtime

    def _path(self) -> Path:
        from iqtflow.utils.errors import UsageError

        name = Path(self.inputs.name)
        if name.is_absolute() or ".." in name.parts:
            raise UsageError(
                "name",
                found=repr(self.inputs.name),
                expected="a path within the output folder",
                next_step="Leave out leading slashes and '..'.",
            )
        return Path(self.inputs.base_directory, name)

    def _sidecar(self) -> Path:
        out = self._path()
        return out.with_name(f"{out.name.split('.')[0]}.json")

    def _fields(self) -> dict:
        fields = dict(self.inputs.metadata) if isdefined(self.inputs.metadata) else {}
        for name in self.inputs.metadata_files if isdefined(self.inputs.metadata_files) else []:
            fields.update(json.loads(Path(name).read_text()))
        fields.pop("GeneratedBy", None)  # of the JSON file in the work directory, with that file's digest
        return fields

    def _is_stored(self) -> bool:
        """Whether the derivative and its sidecar are there, as this node would write them."""
        from iqtflow.utils.files import read_text

        try:
            if not filecmp.cmp(self.inputs.in_file, self._path()):
                return False
            fields = {key: value for key, value in self._fields().items() if value is not None}
            return not fields or json.loads(read_text(self._sidecar())) == fields
        except (OSError, ValueError):
            return False
