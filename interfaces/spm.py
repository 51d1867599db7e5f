"""SPM's unified segmentation as a node, in the place of ``nipype.interfaces.spm.NewSegment``."""

from __future__ import annotations

import os
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
from iqtflow.segmentation.spm.job import (
    UnifiedSegmentationRun,
    expected_outputs,
    plain_stem,
    run_unified_segmentation,
)
from iqtflow.segmentation.spm.script import DEFAULT_TISSUES, TissueClass, UnifiedSegmentationSettings


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


class UnifiedSegmentation(BaseInterface):
    """Segment images with SPM's unified segmentation under GNU Octave, or with standalone SPM.

    Inputs and outputs are those of ``nipype.interfaces.spm.NewSegment``, whose place it takes without
    MATLAB. It differs in what users do not ask for: compressed images are accepted, everything is written
    to the node's own folder instead of beside the input, and a run that did not complete is an error. SPM
    runs in a child process on one thread; state ``mem_gb=2`` at the node for voxels of 0.7 mm, 1 for 1 mm.

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
        """SPM's release and revision as its ``Contents.m`` states them; no process is started."""
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
                timeout_s=self.inputs.timeout if isdefined(self.inputs.timeout) else None,
            )
            if self.inputs.check_plausibility and len(run.native) >= 3 and all(run.native[:3]):
                _check(run, scan, path)
        return runtime

    def _list_outputs(self):
        settings = self._settings()
        files = [
            expected_outputs(folder, plain_stem(path), settings) for path, folder in self._places(Path.cwd())
        ]

        def per_class(field):
            return [[str(f[field][i]) for f in files if f[field][i]] for i in range(len(settings.tissues))]

        def per_image(field):
            return [str(f[field]) for f in files if f[field]]

        outputs = self.output_spec().get()
        # SPM12 writes five of its six classes, and NewSegment lists five where none are named.
        written = None if isdefined(self.inputs.tissues) else 5
        outputs["native_class_images"] = per_class("native")[:written]
        outputs["dartel_input_images"] = per_class("dartel")[:written]
        outputs["normalized_class_images"] = per_class("normalised")[:written]
        outputs["modulated_class_images"] = per_class("modulated")[:written]
        outputs["transformation_mat"] = per_image("parameters")
        outputs["bias_corrected_images"] = per_image("bias_corrected") if self._wants_corrected() else []
        outputs["bias_field_images"] = per_image("bias_field")
        outputs["forward_deformation_field"] = per_image("forward_deformation")
        outputs["inverse_deformation_field"] = per_image("inverse_deformation")
        return outputs

    def _installation(self) -> SpmInstallation:
        inputs = self.inputs
        environ = dict(os.environ)
        if isdefined(inputs.use_mcr) and inputs.use_mcr:
            environ.update(FORCE_SPMMCR="1", SPMMCRCMD=inputs.matlab_cmd)
        spm_dir = inputs.spm_dir if isdefined(inputs.spm_dir) else None
        if spm_dir is None and isdefined(inputs.paths):
            spm_dir = next((p for p in inputs.paths if (Path(p) / "spm.m").exists()), inputs.paths[0])
        tpm = inputs.tpm if isdefined(inputs.tpm) else None
        if tpm is None and isdefined(inputs.tissues) and inputs.tissues:
            tpm = inputs.tissues[0][0][0]
        octave = inputs.octave if isdefined(inputs.octave) else None
        return find_spm(spm_dir=spm_dir, tpm=tpm, octave=octave, environ=environ)

    def _settings(self) -> UnifiedSegmentationSettings:
        inputs, default = self.inputs, UnifiedSegmentationSettings()
        tissues = DEFAULT_TISSUES
        if isdefined(inputs.tissues):
            tissues = tuple(
                TissueClass(frame, gaussians, tuple(native), tuple(warped), Path(tpm))
                for (tpm, frame), gaussians, native, warped in inputs.tissues
            )
        regularisation, fwhm_mm, (field, _) = (
            inputs.channel_info
            if isdefined(inputs.channel_info)
            else (default.bias_regularisation, default.bias_fwhm_mm, (False, False))
        )
        weights = default.warping_regularisation
        if isdefined(inputs.warping_regularization):
            given = inputs.warping_regularization
            weights = tuple(given) if isinstance(given, (list, tuple)) else tuple(given * w for w in weights)
        return UnifiedSegmentationSettings(
            tissues=tissues,
            bias_regularisation=regularisation,
            bias_fwhm_mm=fwhm_mm,
            # The corrected image is always written: the maps are judged by it.
            write_bias=(field, self._wants_corrected() or inputs.check_plausibility),
            affine_regularisation=_given(inputs.affine_regularization, default.affine_regularisation),
            warping_regularisation=weights,
            sampling_mm=_given(inputs.sampling_distance, default.sampling_mm),
            write_deformation=tuple(_given(inputs.write_deformation_fields, (False, False))),
        )

    def _wants_corrected(self) -> bool:
        return bool(isdefined(self.inputs.channel_info) and self.inputs.channel_info[2][1])

    def _places(self, cwd: Path) -> list[tuple[str, Path]]:
        """Images and the folder of each one's outputs: its own where two images have the same name."""
        files = list(self.inputs.channel_files)
        stems = [plain_stem(path) for path in files]
        alone = len(set(stems)) == len(stems)
        return [(path, cwd if alone else cwd / f"image{i}") for i, path in enumerate(files)]


def _given(value, default):
    return value if isdefined(value) else default


def _check(run: UnifiedSegmentationRun, scan: nib.Nifti1Image, path: str) -> None:
    maps = [nib.load(run.native[i]).get_fdata(dtype=np.float32) for i in range(3)]
    intensity = nib.load(run.bias_corrected).get_fdata(dtype=np.float32)
    judge(measure(run.parameters, scan, maps, intensity, run.tpm), path)
