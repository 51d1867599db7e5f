"""Headers of scans, read once: planning asks for each several times."""

from __future__ import annotations

import os
from functools import lru_cache

import nibabel as nib


def peek(path: str | os.PathLike) -> nib.Nifti1Image:
    """Return an image of which the header is read and the voxels are not; the same one each time, as long as
    the file stays as it is. Not to be changed.
    """
    return _load(os.fspath(path), os.stat(path).st_mtime_ns)


@lru_cache(maxsize=100_000)
def _load(path: str, _: int) -> nib.Nifti1Image:
    return nib.load(path)
