"""SPM's unified segmentation as a node that replaces ``nipype.interfaces.spm.NewSegment``."""

from __future__ import annotations

import os
import re
from pathlib import Path

import nibabel as nib
import numpy as np
from nipype.interfaces.base import (
    BaseInterface,
    BaseInterfaceInputSpec,
    Directory,
    File,
    InputMultiPath,
    OutputMultiPath,
    TraitedSpec,
    Tuple,
    isdefined,
    traits,
)

from iqtflow.segmentation.spm.checks import check_spm_input, judge, measure
from iqtflow.segmentation.spm.install import SpmInstallation, SpmNotFoundError, find_spm
from iqtflow.segmentation.spm.job import plain_stem, run_unified_segmentation
from iqtflow.segmentation.spm.script import (
    DEFAULT_TISSUES,
    TissueClass,
    UnifiedSegmentationSettings,
    expected_outputs,
)


class _UnifiedSegmentationInputSpec(BaseInterfaceInputSpec):
    channel_files = InputMultiPath(
        File(exists=True), mandatory=True, desc="images to segment, each by itself: .nii or .nii.gz"
    )
    channel_info = Tuple(
        traits.Float(),
        traits.Float(),
        Tuple(traits.Bool, traits.Bool),
        desc="bias regularisation (0-10), FWHM of the bias (mm), which to save (field, corrected)",
    )
    tissues = traits.List(
        Tuple(
            Tuple(File(exists=True), traits.Int()),
            traits.Int(),
            Tuple(traits.Bool, traits.Bool),
            Tuple(traits.Bool, traits.Bool),
        ),
        desc="per tissue: (priors, frame from 1), number of Gaussians, save (native, DARTEL), "
        "save (unmodulated, modulated)",
    )
    affine_regularization = traits.Enum("mni", "eastern", "subj", "none", desc="template space")
    warping_regularization = traits.Either(
        traits.List(traits.Float(), minlen=5, maxlen=5),
        traits.Float(),
        desc="SPM12's five weights; a single number multiplies its own five",
    )
    sampling_distance = traits.Float(desc="distance of the voxels that parameters are estimated from (mm)")
    write_deformation_fields = traits.List(
        traits.Bool(), minlen=2, maxlen=2, desc="which deformation fields to save (inverse, forward)"
    )
    spm_dir = traits.Str(desc="SPM compiled for Octave; found when not given")
    tpm = File(exists=True, desc="tissue priors where `tissues` are not given; SPM's own by default")
    octave = traits.Str(nohash=True, desc="Octave program; found when not given")
    check_plausibility = traits.Bool(
        True, usedefault=True, desc="fail when affine, volumes, contrast or coverage cannot be a head"
    )
    timeout = traits.Float(nohash=True, desc="give up on an image after so many seconds")
    paths = InputMultiPath(Directory(exists=True), desc="as spm_dir, as nipype names it")
    matlab_cmd = traits.Str(desc="command of standalone SPM, used with use_mcr")
    use_mcr = traits.Bool(requires=["matlab_cmd"], desc="run standalone SPM by matlab_cmd")
    mfile = traits.Bool(True, usedefault=True, nohash=True, desc="without effect: there always is an m-file")
    use_v8struct = traits.Bool(True, usedefault=True, nohash=True, desc="without effect")


class _UnifiedSegmentationOutputSpec(TraitedSpec):
    native_class_images = traits.List(traits.List(File(exists=True)), desc="native space probability maps")
    dartel_input_images = traits.List(traits.List(File(exists=True)), desc="DARTEL imported class images")
    normalized_class_images = traits.List(traits.List(File(exists=True)), desc="normalised class images")
    modulated_class_images = traits.List(
        traits.List(File(exists=True)), desc="modulated and normalised class images"
    )
    transformation_mat = OutputMultiPath(File(exists=True), desc="parameters, SPM's _seg8.mat")
    bias_corrected_images = OutputMultiPath(File(exists=True), desc="bias-corrected images")
    bias_field_images = OutputMultiPath(File(exists=True), desc="bias fields")
    forward_deformation_field = OutputMultiPath(File(exists=True), desc="image to template")
    inverse_deformation_field = OutputMultiPath(File(exists=True), desc="template to image")


#: Fields of `iqtflow.segmentation.spm.job.UnifiedSegmentationRun` by the outputs: one map per
#: class, and one file per image.
_CLASSES = {
    "native_class_images": "native",
    "dartel_input_images": "dartel",
    "normalized_class_images": "normalised",
    "modulated_class_images": "modulated",
}
_IMAGES = {
    "transformation_mat": "parameters",
    "bias_corrected_images": "bias_corrected",
    "bias_field_images": "bias_field",
    "forward_deformation_field": "forward_deformation",
    "inverse_deformation_field": "inverse_deformation",
}


class UnifiedSegmentation(BaseInterface):
    """Segment images with SPM's unified segmentation under GNU Octave, or with standalone SPM.

    Inputs and outputs are those of ``nipype.interfaces.spm.NewSegment``; MATLAB is not needed. Three things
    differ: compressed images are accepted, outputs are written to the folder of the node instead of beside
    the input, and a run that did not complete is an error. SPM runs in a child process on one thread. Set
    ``mem_gb=2`` at the node for voxels of 0.7 mm, 1 for 1 mm.

    Examples
    --------
    >>> segment = UnifiedSegmentation()
    >>> segment.inputs.channel_files = "T1w.nii.gz"  # doctest: +SKIP
    >>> segment.inputs.channel_info = (0.001, 60, (False, True))
    >>> segment.run()  # doctest: +SKIP
    """

    input_spec = _UnifiedSegmentationInputSpec
    output_spec = _UnifiedSegmentationOutputSpec

    @property
    def version(self) -> str | None:
        """SPM's release and revision from its ``Contents.m``; no process is started."""
        try:
            return self._installation().version
        except SpmNotFoundError:
            return None

    def _run_interface(self, runtime):
        installation, settings = self._installation(), self._settings()
        for path, folder in self._places(Path(runtime.cwd)):
            scan = check_spm_input(path)
            run = run_unified_segmentation(
                path,
                folder,
                installation=installation,
                settings=settings,
                timeout_s=_given(self.inputs.timeout),
            )
            if self.inputs.check_plausibility and len(run.native) >= 3 and all(run.native[:3]):
                *maps, intensity = (
                    nib.load(file).get_fdata(dtype=np.float32)
                    for file in (*run.native[:3], run.bias_corrected)
                )
                judge(measure(run.parameters, scan, maps, intensity, run.tpm), path)
        return runtime

    def _list_outputs(self):
        settings = self._settings()
        files = [
            expected_outputs(folder, plain_stem(path), settings) for path, folder in self._places(Path.cwd())
        ]
        # SPM12 writes five of its six classes, and NewSegment lists five if no tissues are given.
        classes = range(len(settings.tissues) if isdefined(self.inputs.tissues) else 5)
        outputs = self.output_spec().get()
        for name, field in _CLASSES.items():
            outputs[name] = [[str(f[field][i]) for f in files if f[field][i]] for i in classes]
        for name, field in _IMAGES.items():
            outputs[name] = [str(f[field]) for f in files if f[field]]
        if not self._wants_corrected():
            outputs["bias_corrected_images"] = []
        return outputs

    def _installation(self) -> SpmInstallation:
        inputs = self.inputs
        environ = dict(os.environ)
        if _given(inputs.use_mcr):
            environ.update(FORCE_SPMMCR="1", SPMMCRCMD=inputs.matlab_cmd)
        spm_dir, tpm = _given(inputs.spm_dir), _given(inputs.tpm)
        if spm_dir is None and isdefined(inputs.paths):
            spm_dir = next((p for p in inputs.paths if (Path(p) / "spm.m").exists()), inputs.paths[0])
        if tpm is None and _given(inputs.tissues):
            tpm = inputs.tissues[0][0][0]
        try:
            return find_spm(spm_dir=spm_dir, tpm=tpm, octave=_given(inputs.octave), environ=environ)
        except SpmNotFoundError as fault:
            found, next_step = _for_nodes(fault.found), _for_nodes(fault.next_step)
            raise type(fault)(
                fault.path, found=found, expected=fault.expected, next_step=next_step
            ) from fault

    def _settings(self) -> UnifiedSegmentationSettings:
        inputs, default = self.inputs, UnifiedSegmentationSettings()
        tissues = DEFAULT_TISSUES
        if isdefined(inputs.tissues):
            tissues = tuple(
                TissueClass(frame, gaussians, tuple(native), tuple(warped), Path(tpm))
                for (tpm, frame), gaussians, native, warped in inputs.tissues
            )
        regularisation, fwhm_mm, (field, _) = _given(
            inputs.channel_info, (default.bias_regularisation, default.bias_fwhm_mm, (False, False))
        )
        weights = default.warping_regularisation
        given = _given(inputs.warping_regularization, weights)
        weights = tuple(given) if isinstance(given, (list, tuple)) else tuple(given * w for w in weights)
        return UnifiedSegmentationSettings(
            tissues=tissues,
            bias_regularisation=regularisation,
            bias_fwhm_mm=fwhm_mm,
            # The check of the maps needs the corrected image.
            write_bias=(field, self._wants_corrected() or inputs.check_plausibility),
            affine_regularisation=_given(inputs.affine_regularization, default.affine_regularisation),
            warping_regularisation=weights,
            sampling_mm=_given(inputs.sampling_distance, default.sampling_mm),
            write_deformation=tuple(_given(inputs.write_deformation_fields, (False, False))),
        )

    def _wants_corrected(self) -> bool:
        return bool(isdefined(self.inputs.channel_info) and self.inputs.channel_info[2][1])

    def _places(self, cwd: Path) -> list[tuple[str, Path]]:
        """Return each image with the folder of its outputs. Images of the same name get their own folders."""
        files = list(self.inputs.channel_files)
        stems = [plain_stem(path) for path in files]
        alone = len(set(stems)) == len(stems)
        return [(path, cwd if alone else cwd / f"image{i}") for i, path in enumerate(files)]


def _for_nodes(text: str) -> str:
    """Return words of a message with inputs of the node in place of options of the commands."""
    text = text.replace("choose --segmentation ants", 'use the node SegmentTissues(engine="ants")')
    return re.sub(r"--(spm-dir|octave|tpm)\b", lambda o: f"the input {o[1].replace('-', '_')}", text)


def _given(value, default=None):
    return value if isdefined(value) else default
