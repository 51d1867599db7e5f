"""The patch library of one subject as a node."""

from __future__ import annotations

import os

from nipype.interfaces.base import BaseInterfaceInputSpec, File, SimpleInterface, TraitedSpec, traits

AXES = {"x": 0, "y": 1, "z": 2}


class _ExtractInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="high-field T1w image")
    wm_file = File(exists=True, mandatory=True, desc="white-matter probability map on the image's grid")
    gm_file = File(exists=True, mandatory=True, desc="grey-matter probability map on the image's grid")
    mask_file = File(exists=True, mandatory=True, desc="brain mask on the image's grid")
    subject = traits.Str(mandatory=True, desc="participant label, without sub-")
    upsampling_factor = traits.Int(4, usedefault=True, desc="k: slice spacing over the thin voxel edge")
    slice_axes = traits.List(
        traits.Enum("x", "y", "z"),
        value=["z"],
        minlen=1,
        usedefault=True,
        desc="array axes that may hold the thick slices",
    )
    step = traits.Tuple((8, 16, 16), usedefault=True, desc="distance between patch corners, in thin voxels")
    background_limit = traits.Range(
        0.0, 1.0, value=0.8, usedefault=True, desc="largest share of background in a patch"
    )
    seed = traits.Int(0, usedefault=True, desc="seed of the reference voxels")


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
        from iqtflow.nifti import read_volume
        from iqtflow.patches import GridSettings, write_library

        image, intensity = read_volume(self.inputs.in_file)
        wm, gm, mask = (
            read_volume(f, like=image)[1]
            for f in (self.inputs.wm_file, self.inputs.gm_file, self.inputs.mask_file)
        )
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
        )
        self._results["out_file"] = out
        return runtime
