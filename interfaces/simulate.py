"""The simulator of low-field scans as a node."""

from __future__ import annotations

from nipype.interfaces.base import File, TraitedSpec, traits

from iqtflow.interfaces.base import ChildCommand, ChildCommandInputSpec, setting_trait


class _SimulateInputSpec(ChildCommandInputSpec):
    in_file = File(exists=True, mandatory=True, position=0, argstr="%s", desc="high-field T1w image")
    out_file = File(
        "lowfield.nii.gz", usedefault=True, position=1, argstr="%s", desc="name of the low-field image"
    )
    wm_file = File(
        exists=True, mandatory=True, argstr="--wm %s", desc="white-matter probability map on the image's grid"
    )
    gm_file = File(
        exists=True, mandatory=True, argstr="--gm %s", desc="grey-matter probability map on the image's grid"
    )
    upsampling_factor = traits.Int(
        argstr="--k %d",
        desc="upsampling factor k: slice spacing over the thin voxel edge; by default 4, or from thickness "
        "and gap",
    )
    slice_axis = traits.Enum(
        "z",
        "x",
        "y",
        usedefault=True,
        argstr="--slice-axis %s",
        desc="array axis along which thick slices are stacked",
    )
    thickness_mm = traits.Float(
        argstr="--thickness-mm %.6f", desc="slice thickness in mm; 3/4 of the spacing when not given"
    )
    gap_mm = traits.Float(argstr="--gap-mm %.6f", desc="gap between slices in mm")
    snr_prior = setting_trait("train", "snr_prior")
    fixed_tissue = traits.Enum(
        "WM", "GM", usedefault=True, argstr="--fixed-tissue %s", desc="tissue that keeps its intensity"
    )
    noise = traits.Enum(
        "gaussian", "rician", usedefault=True, argstr="--noise %s", desc="distribution of the noise"
    )
    seed = setting_trait("run", "seed")
    # No defaults below: inputs that are not set are not in the cache key and not on the command line.
    snr = traits.Tuple(
        traits.Float(), traits.Float(), argstr="--snr %g %g", desc="fixed SNR of (WM, GM) instead of a prior"
    )
    from_json = File(
        exists=True,
        argstr="--from-json %s",
        desc="JSON of a simulated scan: make the same voxels again; no other setting has an effect",
    )
    fwhm_jitter = traits.Float(
        argstr="--fwhm-jitter %.6g", desc="profile wider or narrower by a factor of up to 1 + this"
    )
    slice_offset_mm = traits.Float(argstr="--slice-offset-mm %.6g", desc="largest shift of the slices in mm")
    inplane_fwhm_mm = traits.Float(
        argstr="--inplane-fwhm-mm %.6g", desc="largest blur in the plane, FWHM in mm"
    )
    inplane_fwhm_least_mm = traits.Float(
        argstr="--inplane-fwhm-least-mm %.6g", desc="smallest blur in the plane, FWHM in mm"
    )
    bias_amplitude = setting_trait(
        "train", "bias_amplitude", usedefault=False, argstr="--bias-amplitude %.6g"
    )
    metadata_file = File(
        "lowfield.json",
        usedefault=True,
        argstr="--json %s",
        desc="name of the JSON with the settings of the simulated scan",
    )


class _SimulateOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="low-field image, slab-centred on the high-field one")
    metadata_file = File(exists=True, desc="JSON: drawn SNR, noise, thickness, gap, seed")


class SimulateLowField(ChildCommand):
    """Make a low-field scan from a high-field one and its tissue maps (Algorithm 1 of Lin et al., MLMI
    2019).
    """

    module = "simulate"
    input_spec = _SimulateInputSpec
    output_spec = _SimulateOutputSpec
