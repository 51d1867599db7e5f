"""Programs and folders that imitate Octave and SPM."""

from __future__ import annotations

import stat
from pathlib import Path

#: Shell commands with the outputs of a completed default job.
SUCCESS = "; ".join(
    [
        "for f in c1 c2 c3 c4 c5 m; do echo new > ${f}T1.nii; done",
        "echo new > T1_seg8.mat",
        "echo",
        "echo IQTFLOW-SPM-DONE",
    ]
)


def make_program(path: Path, body: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def make_spm(
    folder: Path, *, contents: str = "% Version 7771 (SPM12) 13-Jan-20", compiled: bool = True
) -> Path:
    (folder / "tpm").mkdir(parents=True)
    (folder / "Contents.m").write_text(f"% Statistical Parametric Mapping\n{contents}\n")
    (folder / "tpm" / "TPM.nii").write_bytes(b"hello\n")
    for name in ("spm.m", "spm_preproc_run.m", *(["spm_bsplinc.mex"] if compiled else [])):
        (folder / name).touch()
    return folder
