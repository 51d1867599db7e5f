"""A scan with its axes laid as in RAS, and the way back into its own file's order."""

from __future__ import annotations

import nibabel as nib
import numpy as np
from nibabel.orientations import inv_ornt_aff, ornt_transform

from iqtflow.image.orientation import placed_like


class LaidScan:
    """A scan with its axes laid as in RAS, and the way back for what is made of it.

    `data` and `affine` are the scan's, `axis` is where its slices now are.
    """

    def __init__(self, scan: nib.Nifti1Image, axis: int) -> None:
        data = np.asarray(scan.dataobj, dtype=np.float32).reshape(scan.shape[:3])
        to_ras = nib.io_orientation(scan.affine)
        self.scan = scan
        self.data = np.ascontiguousarray(nib.apply_orientation(data, to_ras))
        self.affine = scan.affine @ inv_ornt_aff(to_ras, data.shape)
        self.axis = int(to_ras[axis, 0])
        self._from_ras = ornt_transform([[0, 1], [1, 1], [2, 1]], to_ras)

    def put_back(self, data: np.ndarray, affine: np.ndarray) -> nib.Nifti1Image:
        """Return an image with axes as in the scan's file; qform and sform follow, each with its own code."""
        stored = np.ascontiguousarray(nib.apply_orientation(data, self._from_ras))
        return placed_like(stored, affine @ inv_ornt_aff(self._from_ras, data.shape), self.scan)
