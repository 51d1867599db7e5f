"""The patch library of one subject as a node, and the pairs of patches of the paper."""

from __future__ import annotations

import json
import os
from pathlib import Path

from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    InputMultiObject,
    SimpleInterface,
    TraitedSpec,
    isdefined,
    traits,
)

from iqtflow.config import SETTINGS, TrainSettings
from iqtflow.interfaces.base import ChildCommand, ChildCommandInputSpec, setting_trait

SLICE_AXES = SETTINGS["train"]["slice_axes"]
#: Array axes, as options and as sidecars name them.
AXES = {"x": 0, "y": 1, "z": 2, "i": 0, "j": 1, "k": 2}


class _ExtractInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="high-field T1w image")
    wm_file = File(exists=True, mandatory=True, desc="white-matter probability map on the image's grid")
    gm_file = File(exists=True, mandatory=True, desc="grey-matter probability map on the image's grid")
    mask_file = File(exists=True, mandatory=True, desc="brain mask on the image's grid")
    subject = traits.Str(mandatory=True, desc="participant label, without sub-")
    upsampling_factor = setting_trait("train", "upsampling_factor", argstr=None)
    slice_axes = traits.List(
        traits.Enum(*SLICE_AXES.choices),
        value=list(SLICE_AXES.default),
        minlen=1,
        usedefault=True,
        desc="array axes that may hold the thick slices",
    )
    step = setting_trait("train", "patch_step", argstr=None)
    background_limit = traits.Range(
        0.0,
        1.0,
        value=SETTINGS["train"]["background_limit"].default,
        usedefault=True,
        desc="largest share of background in a patch",
    )
    seed = setting_trait("run", "seed", argstr=None)
    draw_files = InputMultiObject(
        File(exists=True), desc="simulated scans to store, for training on N draws; fresh draws need none"
    )
    draw_metadata_files = InputMultiObject(
        File(exists=True), requires=["draw_files"], desc="JSON of each simulated scan"
    )


class _ExtractOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="patch library (.safetensors)")
    n_patches = traits.Int(desc="patches in its index")


class ExtractPatches(SimpleInterface):
    """Index the patches of a subject that hold enough brain, and store its volumes for memory-mapped reading
    (Lin et al. 2019, section 3.1).
    """

    input_spec = _ExtractInputSpec
    output_spec = _ExtractOutputSpec

    def _run_interface(self, runtime):
        import numpy as np

        from iqtflow.image.nifti import read_volume
        from iqtflow.image.validate import check_scan
        from iqtflow.training.library import GridSettings, StoredDraw, write_library

        image = check_scan(self.inputs.in_file)
        intensity = np.asarray(image.dataobj)
        wm, gm, mask = (
            read_volume(f, like=image)[1]
            for f in (self.inputs.wm_file, self.inputs.gm_file, self.inputs.mask_file)
        )
        draws = []
        if isdefined(self.inputs.draw_files):
            for scan, metadata in zip(self.inputs.draw_files, self.inputs.draw_metadata_files, strict=True):
                record = json.loads(Path(metadata).read_text(encoding="utf-8"))
                draws.append(StoredDraw(read_volume(scan)[1], AXES[record["SliceAxis"]], record=record))
        out = os.path.join(runtime.cwd, "patches.safetensors")
        self._results["n_patches"] = write_library(
            out,
            subject=self.inputs.subject,
            intensity=intensity,
            wm=wm,
            gm=gm,
            mask=mask > 0,
            k=self.inputs.upsampling_factor,
            seed=self.inputs.seed,
            slice_axes=tuple(AXES[a] for a in self.inputs.slice_axes),
            grid=GridSettings(tuple(self.inputs.step), self.inputs.background_limit),
            draws=draws,
        )
        self._results["out_file"] = out
        return runtime


class _PairsInputSpec(ChildCommandInputSpec):
    library = File(
        exists=True, mandatory=True, position=0, argstr="%s", desc="patch library with stored draws"
    )
    out_file = File("pairs.npy", usedefault=True, position=1, argstr="%s", desc="name of the file of pairs")
    n_draws = traits.Int(1, usedefault=True, argstr="--draws %d", desc="N: pairs of the first N draws")
    fraction = setting_trait("train", "patch_fraction", argstr="--fraction %.6g")
    patch_size = traits.Int(
        TrainSettings().patch_edge,
        usedefault=True,
        argstr="--patch-size %d",
        desc=SETTINGS["train"]["patch_size"].help,
    )
    seed = setting_trait("run", "seed")


class _PairsOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="pairs (.npy)")
    header_file = File(exists=True, desc="description of the pairs (.json)")


class WritePairs(ChildCommand):
    """Write the pairs of patches of a subject, or a random part (Lin et al. 2019, sections 3.1 and 3.3)."""

    module = "pairs"
    input_spec = _PairsInputSpec
    output_spec = _PairsOutputSpec

    def _list_outputs(self):
        outputs = super()._list_outputs()
        return {**outputs, "header_file": os.path.splitext(outputs["out_file"])[0] + ".json"}
