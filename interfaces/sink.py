"""Storing of results under their BIDS names, with their sidecars."""

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
        desc="file to store; undefined (if a model predicts no standard deviation) removes an older file",
    )
    base_directory = traits.Str(mandatory=True, desc="root of the derivatives")
    # Not hashed as a file: nipype would take a relative name for one in the current folder.
    name = traits.Str(mandatory=True, hash_files=False, desc="path under the root")
    metadata = traits.Dict(desc="fields of the JSON sidecar; no sidecar is written without any")
    metadata_files = traits.List(
        File(exists=True), desc="JSON files whose fields are added; of equal names the last counts"
    )


class _SinkOutputSpec(TraitedSpec):
    out_file = File(desc="the stored file")


class SinkDerivative(SimpleInterface):
    """Copy a file to its place among the derivatives. It appears there only when complete. A file with the
    same bytes is not written again.
    """

    input_spec = _SinkInputSpec
    output_spec = _SinkOutputSpec

    @property
    def always_run(self) -> bool:
        """Whether to run even if no input has changed: a derivative that was deleted or changed is stored
        again, and one without an input file is removed.
        """
        if not isdefined(self.inputs.in_file):
            return self._path().exists()
        return not self._is_stored()

    def _run_interface(self, runtime):
        from iqtflow.bids import write_sidecar
        from iqtflow.utils.files import write_atomically

        out = self._path()
        if not isdefined(self.inputs.in_file):  # an older file belongs to an earlier result
            for stale in (out, self._sidecar()):
                stale.unlink(missing_ok=True)
            return runtime
        source = Path(self.inputs.in_file)
        if not (out.exists() and filecmp.cmp(source, out, shallow=False)):
            with source.open("rb") as content:
                write_atomically(out, lambda stream: shutil.copyfileobj(content, stream, 1 << 20))
            # With the time of the original, the next run can compare the two files without reading them.
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
        from iqtflow.bids.names import sidecar_name

        return sidecar_name(self._path())

    def _fields(self) -> dict:
        fields = dict(self.inputs.metadata) if isdefined(self.inputs.metadata) else {}
        for name in self.inputs.metadata_files if isdefined(self.inputs.metadata_files) else []:
            fields.update(json.loads(Path(name).read_text()))
        fields.pop("GeneratedBy", None)  # it has the digest of the JSON file in the work directory
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
