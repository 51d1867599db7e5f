"""A head with known tissues, made from SPM's tissue priors without a download."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine, from_matvec
from scipy.ndimage import map_coordinates

VOXEL_MM = 5.0  #: coarse: a run takes about ten seconds
SAMPLING_MM = 20.0
#: T1-weighted intensities of GM, WM, CSF, bone, soft tissue, air.
INTENSITIES = (65, 100, 30, 15, 70, 2)
HEAD_SCALE = 0.92  #: the priors' brain is that of an average of large heads


@dataclass(frozen=True)
class Phantom:
    """A head whose tissues are known: `image` and probabilities `gm`, `wm`, `csf` on its grid."""

    image: nib.Nifti1Image
    gm: np.ndarray
    wm: np.ndarray
    csf: np.ndarray


def make_phantom(tpm: Path) -> Phantom:
    priors = nib.load(tpm)
    extent = np.array(priors.shape[:3]) * np.abs(np.diag(priors.affine)[:3])
    shape = tuple((extent // VOXEL_MM).astype(int))
    in_template = np.diag([*(np.sign(np.diag(priors.affine)[:3]) * VOXEL_MM), 1])
    in_template[:3, 3] = priors.affine[:3, 3]
    voxels = apply_affine(np.linalg.inv(priors.affine) @ in_template, np.indices(shape).reshape(3, -1).T)
    # The fourth power makes averaged priors as distinct as the tissues of one subject.
    maps = (np.asarray(priors.dataobj[..., i], dtype=np.float32) for i in range(6))
    tissues = [map_coordinates(tissue, voxels.T, order=1, mode="nearest") for tissue in maps]
    tissues = np.stack(tissues).reshape(6, *shape) ** 4
    tissues /= tissues.sum(axis=0)
    data = np.tensordot(INTENSITIES, tissues, axes=1) + np.random.default_rng(0).normal(0, 2, shape)
    affine = from_matvec(HEAD_SCALE * np.eye(3)) @ in_template
    return Phantom(make_image(np.clip(data, 0, None) + 0.1, affine), *tissues[:3])


def make_image(data: np.ndarray, affine: np.ndarray) -> nib.Nifti1Image:
    image = nib.Nifti1Image(np.ascontiguousarray(data, dtype=np.float32), affine)
    image.header.set_xyzt_units("mm")
    return image
