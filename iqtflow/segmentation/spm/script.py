"""Unified segmentation: settings, the m-code of a job, and the names of its files."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DONE = "IQTFLOW-SPM-DONE"  #: last line of a completed run
FAULT = "IQTFLOW-SPM-ERROR"  #: before identifier and message of an error in the m-code
TPM_USED = "IQTFLOW-SPM-TPM"  #: before the tissue priors that a compiled SPM has found in itself
RUNNER = "IQTFLOW-SPM-RUNNER"  #: before name and version of Octave or the MATLAB Runtime

STEM = "T1"  #: name of the image in the m-code, whatever the user's name is


@dataclass(frozen=True)
class TissueClass:
    """One tissue of the mixture model.

    Attributes
    ----------
    frame
        Volume of the priors, counted from 1.
    gaussians
        Number of Gaussians for its intensities.
    native, warped
        Maps to write: (native space, DARTEL import) and (normalised, modulated).
    tpm
        Priors of this class; None: those of the installation.
    """

    frame: int
    gaussians: int
    native: tuple[bool, bool] = (True, False)
    warped: tuple[bool, bool] = (False, False)
    tpm: Path | None = None


#: Classes of SPM12: GM, WM, CSF, bone, soft tissue, and air, which is not written.
DEFAULT_TISSUES = tuple(
    TissueClass(frame, gaussians, native=(frame < 6, False))
    for frame, gaussians in enumerate((1, 1, 2, 3, 4, 2), start=1)
)


@dataclass(frozen=True)
class UnifiedSegmentationSettings:
    """Settings of unified segmentation (doi:10.1016/j.neuroimage.2005.02.018). Defaults are SPM12's.

    Attributes
    ----------
    tissues
        The classes, in the order of the priors.
    bias_regularisation
        Weight of the smoothness of the bias field.
    bias_fwhm_mm
        FWHM of the smoothness of the bias field.
    write_bias
        Write (bias field, bias-corrected image).
    affine_regularisation
        ``"mni"``, ``"eastern"``, ``"subj"`` or ``"none"``.
    warping_regularisation
        Five weights: absolute displacement, membrane, bending, and two of linear elasticity.
    sampling_mm
        Distance between the voxels that parameters are estimated from. It changes the result: grey matter
        with 3 and with 2 mm agrees with a Dice of only .94.
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
    """Return the m-code of one job. It is ASCII, with numbers and fixed names only, so no path can break it.

    Parameters
    ----------
    settings
        What to compute and to write.
    tpm_names
        File of the priors of each class, in the folder of the job; None: SPM's own priors.
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
        # Not through the batch system, in which a failing job crashes Octave up to 10.1.
        "spm_preproc_run(job);",
    ]
    return _guarded(lines)


def self_test_script(tpm_name: str | None) -> str:
    """Return m-code that calls each MEX file of unified segmentation and reads the priors."""
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


def expected_outputs(
    folder: str | os.PathLike, stem: str, settings: UnifiedSegmentationSettings
) -> dict[str, Any]:
    """Return the paths of a run's outputs, by the fields of `UnifiedSegmentationRun`. No file is opened.

    Parameters
    ----------
    folder
        Folder of the outputs.
    stem
        Name of the image without extension.
    settings
        They state what is written; None stands for what is not.
    """

    def files(names: Iterable[str], wanted: Iterable[bool]) -> list[Path | None]:
        return [Path(folder, name) if one else None for name, one in zip(names, wanted, strict=True)]

    def classes(prefix: str, wanted: list[bool]) -> list[Path | None]:
        return files((f"{prefix}{i}{stem}.nii" for i in range(1, len(wanted) + 1)), wanted)

    field, corrected = files((f"BiasField_{stem}.nii", f"m{stem}.nii"), settings.write_bias)
    inverse, forward = files((f"iy_{stem}.nii", f"y_{stem}.nii"), settings.write_deformation)
    return {
        "native": classes("c", [t.native[0] for t in settings.tissues]),
        "dartel": classes("rc", [t.native[1] for t in settings.tissues]),
        "normalised": classes("wc", [t.warped[0] for t in settings.tissues]),
        "modulated": classes("mwc", [t.warped[1] for t in settings.tissues]),
        "bias_field": field,
        "bias_corrected": corrected,
        "inverse_deformation": inverse,
        "forward_deformation": forward,
        "parameters": Path(folder, f"{stem}_seg8.mat"),
    }


def _guarded(body: Iterable[str]) -> str:
    """Wrap m-code so that it prints how it ended, in Octave and in the MATLAB Runtime."""
    lines = [
        "if exist('OCTAVE_VERSION', 'builtin')",
        # Without these, a stopped Octave leaves octave-workspace files behind.
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
