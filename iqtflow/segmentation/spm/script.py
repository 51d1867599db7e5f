"""What is asked of SPM's unified segmentation: settings, the m-code that states them, its files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DONE = "IQTFLOW-SPM-DONE"  #: the last line of a run that completed
FAULT = "IQTFLOW-SPM-ERROR"  #: precedes identifier and message of an error caught in the m-code
TPM_USED = "IQTFLOW-SPM-TPM"  #: precedes the tissue priors that a compiled SPM found in itself
RUNNER = "IQTFLOW-SPM-RUNNER"  #: precedes name and version of what ran SPM

STEM = "T1"  #: the only name of an image that ever appears in m-code


@dataclass(frozen=True)
class TissueClass:
    """One tissue of the mixture model.

    Attributes
    ----------
    frame
        Which volume of the priors, from 1.
    gaussians
        Number of Gaussians that describe its intensities.
    native, warped
        Maps to write: (native space, DARTEL import) and (normalised, modulated).
    tpm
        Priors of this class; None for those of the installation.
    """

    frame: int
    gaussians: int
    native: tuple[bool, bool] = (True, False)
    warped: tuple[bool, bool] = (False, False)
    tpm: Path | None = None


#: SPM12's own classes: GM, WM, CSF, bone, soft tissue, and air, which is not written.
DEFAULT_TISSUES = tuple(
    TissueClass(frame, gaussians, native=(frame < 6, False))
    for frame, gaussians in enumerate((1, 1, 2, 3, 4, 2), start=1)
)


@dataclass(frozen=True)
class UnifiedSegmentationSettings:
    """Settings of unified segmentation (doi:10.1016/j.neuroimage.2005.02.018), with SPM12's defaults.

    Attributes
    ----------
    tissues
        The classes, in the order of the priors.
    bias_regularisation
        Weight of the bias field's smoothness.
    bias_fwhm_mm
        FWHM of the bias field's smoothness.
    write_bias
        Write (bias field, bias-corrected image).
    affine_regularisation
        ``"mni"``, ``"eastern"``, ``"subj"`` or ``"none"``.
    warping_regularisation
        Five weights: absolute displacement, membrane, bending, and two of linear elasticity.
    sampling_mm
        Distance between the voxels that the parameters are estimated from. Grey matter of 3 and 2 mm agrees
        with a Dice of .94 only: a part of the method, not only of its speed.
    write_deformation
        Write (inverse, forward) deformation field.
    """

    tissues: tuple[TissueClass, ...] = DEFAULT_TISSUES
    bias_regularisation: float = 0.001
    bias_fwhm_mm: float = 60.0
    write_bias: tuple[bool, bool] = (False, True)
    affine_regularisation: str = "mni"
    warping_regularisation: tuple[float, ...] = (0.0, 0.001, 0.5, 0.05, 0.2)
    sampling_mm: float = 3.0
    write_deformation: tuple[bool, bool] = (False, False)


def job_script(settings: UnifiedSegmentationSettings, tpm_names: Iterable[str | None]) -> str:
    """Write the m-code of one job, in plain ASCII: numbers and fixed names only, so no path can break it.

    Parameters
    ----------
    settings
        What to compute and to write.
    tpm_names
        File of the priors of each class, in the job's folder; None for the priors that SPM has itself.
    """
    lines = [
        f"job.channel.vols = {{'{STEM}.nii,1'}};",
        f"job.channel.biasreg = {settings.bias_regularisation!r};",
        f"job.channel.biasfwhm = {settings.bias_fwhm_mm!r};",
        f"job.channel.write = {_flags(settings.write_bias)};",
    ]
    for number, (tissue, tpm) in enumerate(zip(settings.tissues, tpm_names, strict=True), start=1):
        if tpm is None and number == 1:
            lines.append("own_tpm = fullfile(spm('Dir'), 'tpm', 'TPM.nii');")
            lines.append(f"fprintf('{TPM_USED} %s\\n', own_tpm);")
        priors = f"'{tpm},{tissue.frame}'" if tpm else f"[own_tpm ',{tissue.frame}']"
        lines += [
            f"job.tissue({number}).tpm = {{{priors}}};",
            f"job.tissue({number}).ngaus = {tissue.gaussians};",
            f"job.tissue({number}).native = {_flags(tissue.native)};",
            f"job.tissue({number}).warped = {_flags(tissue.warped)};",
        ]
    lines += [
        "job.warp.mrf = 1;",
        "job.warp.cleanup = 1;",
        f"job.warp.reg = [{' '.join(repr(float(w)) for w in settings.warping_regularisation)}];",
        f"job.warp.affreg = '{settings.affine_regularisation}';",
        "job.warp.fwhm = 0;",
        f"job.warp.samp = {settings.sampling_mm!r};",
        f"job.warp.write = {_flags(settings.write_deformation)};",
        "job.warp.bb = NaN(2, 3);",
        "job.warp.vox = NaN;",
        # Not through the batch system: a job that fails in there crashes Octave up to 10.1.
        "spm_preproc_run(job);",
    ]
    return _guarded(lines)


def self_test_script(tpm_name: str | None) -> str:
    """Write m-code that calls each kind of MEX file that unified segmentation needs, and reads the priors."""
    tpm = f"'{tpm_name},1'" if tpm_name else "[fullfile(spm('Dir'), 'tpm', 'TPM.nii') ',1']"
    return _guarded(
        [
            "flat = spm_bsplinc(ones(4, 4, 4), [1 1 1 0 0 0]);",
            "spm_bsplins(flat, 2, 2, 2, [1 1 1 0 0 0]);",
            "spm_diffeo('boundary');",
            "spm_conv_vol(ones(4, 4, 4), zeros(4, 4, 4), 1, 1, 1, [0 0 0]);",
            "P = zeros(4, 4, 4, 2, 'uint8'); Q = ones(4, 4, 4, 2, 'single');",
            "spm_mrf(P, Q, ones(2, 1, 'single'), ones(1, 3, 'single'));",
            f"spm_sample_vol(spm_vol({tpm}), 20, 20, 20, 1);",
        ]
    )


def wanted_files(settings: UnifiedSegmentationSettings) -> dict[str, Any]:
    """Names that SPM gives to what was asked for, by the fields of `UnifiedSegmentationRun`."""

    def classes(prefix: str, wanted: Iterable[bool]) -> list[str | None]:
        return [f"{prefix}{i}{STEM}.nii" if w else None for i, w in enumerate(wanted, start=1)]

    return {
        "native": classes("c", (t.native[0] for t in settings.tissues)),
        "dartel": classes("rc", (t.native[1] for t in settings.tissues)),
        "normalised": classes("wc", (t.warped[0] for t in settings.tissues)),
        "modulated": classes("mwc", (t.warped[1] for t in settings.tissues)),
        "bias_field": f"BiasField_{STEM}.nii" if settings.write_bias[0] else None,
        "bias_corrected": f"m{STEM}.nii" if settings.write_bias[1] else None,
        "inverse_deformation": f"iy_{STEM}.nii" if settings.write_deformation[0] else None,
        "forward_deformation": f"y_{STEM}.nii" if settings.write_deformation[1] else None,
        "parameters": f"{STEM}_seg8.mat",
    }


def _guarded(body: Iterable[str]) -> str:
    """Wrap m-code so that it says how it ended, in Octave and in the MATLAB Runtime."""
    lines = [
        "if exist('OCTAVE_VERSION', 'builtin')",
        # An Octave that is stopped leaves octave-workspace files behind unless told otherwise.
        "  crash_dumps_octave_core(false);",
        "  sighup_dumps_octave_core(false);",
        "  sigterm_dumps_octave_core(false);",
        f"  fprintf('{RUNNER} GNU Octave %s\\n', version);",
        "else",
        f"  fprintf('{RUNNER} MATLAB Runtime %s\\n', version);",
        "end",
        "status = 3;",
        "try",
        "  spm_get_defaults('cmdline', true);",  # no progress windows
        "  spm_get_defaults('mat.format', '-v7');",
        *(f"  {line}" for line in body),
        f"  fprintf('\\n{DONE}\\n');",
        "  status = 0;",
        "catch fault",
        f"  fprintf('\\n{FAULT} %s | %s\\n', fault.identifier, strrep(fault.message, char(10), ' '));",
        "end",
        "exit(status);",
    ]
    return "\n".join(lines) + "\n"


def _flags(values: Iterable[bool]) -> str:
    return f"[{' '.join('1' if value else '0' for value in values)}]"
