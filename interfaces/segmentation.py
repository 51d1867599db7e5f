"""Tissue maps as a node: from the embedded engine, from SPM, or ready-made."""

from __future__ import annotations

import json
import os

from nipype.interfaces.base import Directory, File, TraitedSpec, traits

from iqtflow.interfaces.base import SKULL_STRIPPED, ChildCommand, ChildCommandInputSpec, setting_trait

OUTPUTS = {
    "wm_file": "label-WM_probseg.nii.gz",
    "gm_file": "label-GM_probseg.nii.gz",
    "csf_file": "label-CSF_probseg.nii.gz",
    "mask_file": "desc-brain_mask.nii.gz",
    "preproc_file": "desc-preproc_T1w.nii.gz",
    "details_file": "segmentation.json",
}


class _SegmentInputSpec(ChildCommandInputSpec):
    in_file = File(exists=True, mandatory=True, position=0, argstr="%s", desc="T1w image")
    out_prefix = traits.Str(
        "tissue", usedefault=True, argstr="--out-prefix %s", desc="beginning of the outputs' names"
    )
    skull_stripped = SKULL_STRIPPED
    brain_mask = File(
        exists=True, argstr="--mask %s", desc="brain mask on the image's grid; found when not given"
    )
    seed = setting_trait("run", "seed")
    num_threads = setting_trait("run", "omp_nthreads", nohash=True)
    # No defaults below: undefined inputs are not in the cache key, and results of the embedded engine stay
    # valid.
    engine = traits.Enum(
        "ants", "spm", "derivatives", argstr="--engine %s", desc="undefined: ants, the embedded engine"
    )
    priors = traits.Enum(
        "atlas",
        "none",
        argstr="--priors %s",
        desc="where the embedded engine expects tissues: as in an atlas, or anywhere; undefined: none",
    )
    wm_map = File(exists=True, argstr="--wm-map %s", desc="ready-made white-matter map")
    gm_map = File(exists=True, argstr="--gm-map %s", desc="ready-made grey-matter map")
    csf_map = File(exists=True, argstr="--csf-map %s", desc="ready-made cerebrospinal-fluid map")
    ready_mask = File(exists=True, argstr="--mask-map %s", desc="brain mask that belongs to these maps")
    derivatives = Directory(
        nohash=True,
        argstr="--derivatives %s",
        desc="folder that was searched for ready-made maps, for messages",
    )
    tpm = File(exists=True, argstr="--tpm %s", desc="SPM's tissue priors")
    sampling_distance = setting_trait("segmentation", "sampling_mm", usedefault=False)
    spm_version = traits.Str(desc="release and revision; another one gives other maps")
    spm_dir = Directory(nohash=True, argstr="--spm-dir %s", desc="folder of SPM; found when not given")
    octave = File(nohash=True, argstr="--octave %s", desc="Octave program; found when not given")
    whole_head = File(
        exists=True, argstr="--whole-head %s", desc="the image before skull-stripping, for SPM to segment"
    )


class _SegmentOutputSpec(TraitedSpec):
    wm_file = File(exists=True, desc="white-matter probability map")
    gm_file = File(exists=True, desc="grey-matter probability map")
    csf_file = File(exists=True, desc="cerebrospinal-fluid probability map")
    mask_file = File(exists=True, desc="brain mask")
    preproc_file = File(exists=True, desc="bias-corrected image")
    details_file = File(exists=True, desc="JSON with engine, version, volumes and warnings")


class SegmentTissues(ChildCommand):
    """Segment a T1w image into white matter, grey matter and cerebrospinal fluid."""

    module = "segment"
    input_spec = _SegmentInputSpec
    output_spec = _SegmentOutputSpec

    def _run_interface(self, runtime, correct_return_codes=(0,)):
        runtime = super()._run_interface(runtime, correct_return_codes)
        with open(os.path.join(runtime.cwd, f"{self.inputs.out_prefix}_{OUTPUTS['details_file']}")) as stream:
            record = json.load(stream)
        print(summarise(self.inputs.in_file, record), flush=True)
        return runtime

    def _list_outputs(self):
        return {field: os.path.abspath(f"{self.inputs.out_prefix}_{name}") for field, name in OUTPUTS.items()}


def summarise(image: str, record: dict) -> str:
    """Return a line on how the tissue maps of an image were made, and a line for each warning.

    Parameters
    ----------
    image
        The image.
    record
        The JSON of ``iqtflow-segment``.
    """
    facts = [f"{record['Engine']} ({record['EngineVersion']})"]
    if "sampling_distance_mm" in record:
        facts.append(f"sampling {record['sampling_distance_mm']:g} mm")
    if "tpm_genuine" in record:
        facts.append("SPM's own priors" if record["tpm_genuine"] else "priors that are not SPM's own")
    facts.append(", ".join(f"{label} {ml:.0f} ml" for label, ml in sorted(record["volumes_ml"].items())))
    if record.get("seconds"):
        facts.append(f"{sum(record['seconds'].values()):.0f} s")
    lines = [f"{image}: tissue maps by {'; '.join(facts)}"]
    return "\n".join(lines + [f"  note: {note}" for note in record["Warnings"]])
