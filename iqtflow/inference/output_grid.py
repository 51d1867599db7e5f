"""The grid of an enhanced volume: the scan's plane with thin slices, or cubic voxels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import nibabel as nib
import numpy as np

from iqtflow.image.geometry import Upsampling, slices_back
from iqtflow.image.orientation import ReorientedScan
from iqtflow.image.resampling import SAME, isotropic_grid, to_grid

NATIVE = "native"  #: the plane of the scan is kept


class OutputGrid:
    """The grid of an enhanced volume, and the way of volumes onto it.

    Parameters
    ----------
    laid
        The scan.
    own
        Affine of the scan, slices last.
    thin, thin_shape
        Affine and shape of the network's output.
    voxel_size
        "native", or the edge of cubic voxels in mm.

    Attributes
    ----------
    affine, shape
        The grid, slices last. Cubic voxels fill the field of view of the scan, whose centre stays in place.
    native
        Whether it is that of the network's output.
    """

    def __init__(
        self,
        laid: ReorientedScan,
        own: np.ndarray,
        thin: np.ndarray,
        thin_shape: Sequence[int],
        voxel_size: float | str,
    ) -> None:
        plane = [n for axis, n in enumerate(laid.data.shape) if axis != laid.axis]
        self.laid, self.own, self.thin = laid, own, thin
        self.scan_shape = (*plane, laid.data.shape[laid.axis])
        self.voxel_size, self.native = voxel_size, isinstance(voxel_size, str)
        self.shape, self.affine = tuple(thin_shape), thin
        if not isinstance(voxel_size, str):
            self.shape, self.affine = isotropic_grid(self.scan_shape, own, voxel_size)
        self.shown: np.ndarray | None = None

    def erase_outside(self, support: np.ndarray | None, missing: Sequence[int]) -> None:
        """Let volumes be 0 outside of a region, and in slices that the scan lacks.

        Parameters
        ----------
        support : ndarray of bool, optional
            The region, on the scan's grid with slices last; None: everywhere.
        missing
            Slices of the scan, counted from 0.
        """
        if support is None and not missing:
            return
        move, n_slices = np.linalg.inv(self.own) @ self.affine, self.scan_shape[2]
        where = move[2, 3] + move[2, 2] * np.arange(self.shape[2])
        nearest = np.clip(np.rint(where), 0, n_slices - 1).astype(int)
        self.shown = ~np.isin(nearest, missing)
        if support is not None:
            move[2] = (0, 0, 1, 0)  # the plane only
            inside = to_grid(support, self.own, (*self.shape[:2], n_slices), self.own @ move) > 0.1
            self.shown = self.shown & inside[:, :, nearest]

    def image(self, volume: np.ndarray, affine: np.ndarray | None = None) -> nib.Nifti1Image:
        """Return a volume as an image on the grid, axes as in the scan's file.

        Each axis that is not on the grid is resampled once; values below 0 then become 0.

        Parameters
        ----------
        volume : ndarray
            Slices last.
        affine
            Of the volume; None: that of the network's output.
        """
        if not self.native:
            volume = to_grid(volume, self.thin if affine is None else affine, self.shape, self.affine)
            volume = np.maximum(volume, 0)
        if self.shown is not None:
            volume = np.where(self.shown, volume, np.float32(0))
        return self.laid.put_back(*slices_back(volume, self.affine, self.laid.axis))

    def as_sidecar(self, upsampling: Upsampling) -> dict[str, Any]:
        """Return the field ``OutputGrid`` of a sidecar."""
        if self.native:
            method = f"The network made {upsampling.k} thin slices of each slice. "
            method += (
                "The plane is that of the scan."
                if upsampling.inplane_mm is None
                else "The plane was resampled before the network."
            )
            return {"VoxelSize": NATIVE, "Method": method}
        steps = np.diag(np.linalg.inv(self.thin) @ self.affine)[:3]
        differs = np.abs(steps - 1) * self.shape > SAME
        before = ["the plane"] if upsampling.inplane_mm is not None else []
        after = [*(["the plane"] if differs[:2].any() else []), *(["the slice axis"] if differs[2] else [])]
        method = "; ".join(
            f"{' and '.join(parts)} {when} the network"
            for parts, when in ((before, "before"), (after, "after"))
            if parts
        )
        return {
            "VoxelSize": self.voxel_size,
            "Method": f"Resampled by cubic B-splines: {method}." if method else "Not resampled.",
        }
