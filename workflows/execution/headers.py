"""Headers of scans, read once: planning asks for each several times."""

from __future__ import annotations

import os
from functools import lru_cache

import nibabel as nib

from iqtflow.image.nifti_file import peek_nifti


def peek(path: str | os.PathLike) -> nib.Nifti1Image:
    """Return an image of which the header is read and checked, and the voxels are not; the same one each
    time, as long as the file stays as it is. Not to be changed.

    Raises
    ------
    InputError
        As `iqtflow.image.validate.check_scan`, as far as the header tells.
    """
    try:
        changed = os.stat(path).st_mtime_ns
    except OSError:
        changed = 0  # not there, or closed: said below
    return _load(os.fspath(path), changed)


@lru_cache(maxsize=100_000)
def _load(path: str, _: int) -> nib.Nifti1Image:
    return peek_nifti(path)
