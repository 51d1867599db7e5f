"""Tissue maps without SPM as a node."""

from __future__ import annotations

import os

from nipype.interfaces.base import File, TraitedSpec, traits

from iqtflow.interfaces.base import ChildCommand, ChildCommandInputSpec


class _SegmentInputSpec(ChildCommandInputSpec):
    in_file = File(exists=True, mandatory=True, position=0, argstr="%s", desc="T1w image")
    out_prefix = traits.Str("tissue", usedefault=True, argstr="--out-prefix %s", desc="beginning of the outputs' names")
    skull_stripped = traits.Enum("auto", "yes", "no", usedefault=True, argstr="--skull-stripped %s", desc="whether the image shows the brain only")
    brain_mask = File(exists=True, argstr="--mask %s", desc="brain mask on the image's grid; found when not given")
    seed = traits.Int(0, usedefault=True, argstr="--seed %d", desc="seed of the segmentation")
    num_threads = traits.Int(1, usedefault=True, nohash=True, argstr="--num-threads %d", desc="threads that the child process may use")


class _SegmentOutputSpec(TraitedSpec):
    wm_file = File(exists=True, desc="white-matter probability map")
    gm_file = File(exists=True, desc="grey-matter probability map")
    csf_file = File(exists=True, desc="cerebrospinal-fluid probability map")
    mask_file = File(exists=True, desc="brain mask")
    preproc_file = File(exists=True, desc="bias-corrected image")
    details_file = File(exists=True, desc="JSON with engine, version, volumes and warnings")


class SegmentTissues(ChildCommand):
    """Segment a T1w image into white matter, grey matter and cerebrospinal fluid (ANTs N4 and Atropos)."""

    module = "segment"
    input_spec = _SegmentInputSpec
    output_spec = _SegmentOutputSpec

    def _list_outputs(self):
        names = {"wm_file": "label-WM_probseg.nii.gz", "gm_file": "label-GM_probseg.nii.gz", "csf_file": "label-CSF_probseg.nii.gz",
                 "mask_file": "desc-brain_mask.nii.gz", "preproc_file": "desc-preproc_T1w.nii.gz", "details_file": "segmentation.json"}
        return {field: os.path.abspath(f"{self.inputs.out_prefix}_{name}") for field, name in names.items()}
