"""Cubic B-spline interpolation of a scan to nearly isotropic voxels: python spline.py SCAN OUTPUT."""

from __future__ import annotations

import sys

import nibabel as nib
import numpy as np

from iqtflow.image.geometry import cubic_upsample, slices_back, slices_last, thin_affine
from iqtflow.image.nifti import read_volume


def main(scan: str, output: str) -> None:
    """Interpolate."""
    image, data = read_volume(scan)
    sizes = np.array(image.header.get_zooms()[:3])
    axis = int(np.argmax(sizes))
    k = round(float(sizes[axis] / np.delete(sizes, axis).mean()))
    slices, affine = slices_last(data, image.affine, axis)
    thin, affine = slices_back(cubic_upsample(slices, k), thin_affine(affine, k), axis)
    nib.Nifti1Image(np.ascontiguousarray(thin), affine).to_filename(output)


if __name__ == "__main__":
    main(*sys.argv[1:])
