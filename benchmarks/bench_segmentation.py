"""Test the embedded engine on brains with known tissues: Dice, volumes, and seconds of processor time.

    python benchmarks/bench_segmentation.py [--snr 20 40] [--priors none atlas] [--maps GM WM CSF]

A digital phantom is made from tissue fractions. By default these are the maps of the ICBM 152 template from
nilearn (1 mm), raised to the fourth power: this gives averaged maps the sharp borders of a single person.
Or give maps of a person. Tissues get T1-weighted intensities (WM 1000, GM 700, CSF 250) with 3 % of
texture, a bias field of +-15 %, and Gaussian noise. The phantom follows the assumptions of the engine, so
it does not replace brains with manual labels.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from iqtflow.image.nifti_file import open_nifti
from iqtflow.segmentation.atropos import segment_tissues

MEAN = {"WM": 1000.0, "GM": 700.0, "CSF": 250.0}
TEXTURE = 0.03
SHADING = 0.15


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--snr", type=float, nargs="+", default=(20, 40), help="of white matter")
    parser.add_argument("--priors", nargs="+", default=("none",), choices=("none", "atlas"))
    parser.add_argument("--maps", type=Path, nargs=3, metavar=("GM", "WM", "CSF"))
    options = parser.parse_args()
    truth, affine = read_maps(options.maps) if options.maps else template_maps()
    print("priors\tSNR\tDice GM\tDice WM\tDice CSF\tGM ml\tWM ml\tCSF ml\ts")
    for snr in options.snr:
        image = make_image(truth, affine, snr)
        for priors in options.priors:
            began = time.process_time()
            maps = segment_tissues(image, skull_stripped=True, priors=priors)
            seconds = time.process_time() - began
            found = {"GM": maps.gm, "WM": maps.wm, "CSF": maps.csf}
            voxel_ml = abs(np.linalg.det(affine[:3, :3])) / 1000
            dices = "\t".join(f"{dice(found[t], truth[t]):.3f}" for t in found)
            volumes = "\t".join(
                f"{found[t].sum() * voxel_ml:.0f} / {truth[t].sum() * voxel_ml:.0f}" for t in found
            )
            print(f"{priors}\t{snr:g}\t{dices}\t{volumes}\t{seconds:.0f}", flush=True)


def template_maps() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return the fractions of GM, WM and CSF in the brain of the template."""
    from nilearn import datasets

    names = {"GM": "gm_template", "WM": "wm_template", "mask": "brain_mask"}
    images = {name: getattr(datasets, f"load_mni152_{file}")(resolution=1) for name, file in names.items()}
    gm, wm, mask = (image.get_fdata(dtype=np.float32) for image in images.values())
    maps = np.stack([gm, wm, np.clip(1 - gm - wm, 0, 1)]) ** 4 * (mask > 0)
    maps /= np.maximum(maps.sum(axis=0), 1e-6)
    return dict(zip(("GM", "WM", "CSF"), maps, strict=True)), images["GM"].affine


def read_maps(paths: list[Path]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return fractions from probability maps."""
    images = [open_nifti(path) for path in paths]
    maps = [image.get_fdata(dtype=np.float32) for image in images]
    return dict(zip(("GM", "WM", "CSF"), maps, strict=True)), images[0].affine


def make_image(truth: dict[str, np.ndarray], affine: np.ndarray, snr: float) -> nib.Nifti1Image:
    """Return a T1-weighted image of the fractions, zero outside the brain."""
    rng = np.random.default_rng(0)
    shape = truth["GM"].shape
    texture = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), 1.5)
    texture = 1 + TEXTURE * texture / texture.std()
    axes = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in shape), indexing="ij")
    shading = 1 + SHADING * np.sin(1.5 * axes[0]) * np.cos(1.2 * axes[1]) + SHADING / 2 * axes[2]
    signal = sum(MEAN[tissue] * fraction for tissue, fraction in truth.items()) * texture * shading
    noise = MEAN["WM"] / snr * rng.standard_normal(shape, dtype=np.float32)
    brain = sum(truth.values()) > 0.5
    return nib.Nifti1Image(np.where(brain, np.maximum(signal + noise, 1), 0).astype(np.float32), affine)


def dice(found: np.ndarray, true: np.ndarray) -> float:
    """Return the Dice of the voxels above one half."""
    a, b = found > 0.5, true > 0.5
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


if __name__ == "__main__":
    main()
