"""A head in thick slices, the record of its enhancement, and a reader of pages: what report tests share."""

from __future__ import annotations

import os
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import nibabel as nib
import numpy as np

from iqtflow.geometry import cubic_upsample, thin_affine

K = 4
THICK = (44, 52, 12)  # 88 x 104 x 96 mm in voxels of 2 x 2 x 8 mm


class Page(HTMLParser):
    """What a page consists of: pictures, captions, links, scripts, text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.source = path, path.read_text(encoding="utf-8")
        self.images: list[dict] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "img":
            self.images.append(dict(attrs))
        if tag == "a":
            self.links.append(dict(attrs).get("href"))

    def handle_data(self, data):
        self.text += f"{data} "

    def image_files(self) -> set[Path]:
        return {self.path.parent / unquote(image["src"]) for image in self.images}

    def says(self, words: str) -> bool:
        return words in " ".join(self.text.split())


def oblique(voxel_mm: tuple[float, float, float]) -> np.ndarray:
    """Affine of a scan tilted by 12 degrees about x, with its centre near the world's origin."""
    c, s = np.cos(np.deg2rad(12)), np.sin(np.deg2rad(12))
    affine = np.eye(4)
    affine[:3, :3] = np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) * voxel_mm
    affine[:3, 3] = -affine[:3, :3] @ (np.array(THICK) / 2)
    return affine


def save(path: Path, data: np.ndarray, affine: np.ndarray) -> str:
    nib.save(nib.Nifti1Image(np.asarray(data, np.float32), affine), path)
    return os.fspath(path)


def make_head() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Thick-slice head with a bright spot on the patient's right, its brain mask, and its affine."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in THICK), indexing="ij")
    radius = np.sqrt(x**2 + y**2 + z**2)
    data = 100.0 * (radius < 0.85) + 60.0 * (radius < 0.6)
    data[(x - 0.45) ** 2 + y**2 + z**2 < 0.03] = 300  # +x is the patient's right
    data += np.random.default_rng(0).normal(0, 2, THICK) ** 2
    return data.astype(np.float32), (radius < 0.75), oblique((2, 2, 8))


def make_record(folder: Path) -> dict:
    """Record of an enhanced scan whose estimate is the spline, sharpened; all volumes there."""
    data, brain, affine = make_head()
    thin = thin_affine(affine, K)
    spline = cubic_upsample(data, K)
    truth = np.repeat(data, K, axis=2)
    name = "sub-01_ses-1_T1w"
    return {
        "status": "enhanced",
        "input": save(folder / f"{name}.nii.gz", data, affine),
        "output": save(folder / f"{name}_iqt.nii.gz", spline + 0.5 * (truth - spline), thin),
        "spline": save(folder / f"{name}_spline.nii.gz", spline, thin),
        "std": save(folder / f"{name}_std.nii.gz", np.abs(truth - spline), thin),
        "mask": save(folder / f"{name}_mask.nii.gz", brain, affine),
        "truth": save(folder / f"{name}_truth.nii.gz", truth, thin),
        "metrics": {"spline": {"psnr": 24.5, "mssim": 0.81}, "iqt": {"psnr": 30.25, "mssim": 0.9}},
        "details": {
            "SliceAxis": "k",
            "SliceSpacing": 8.0,
            "SliceThickness": 6.0,
            "SliceGap": 2.0,
            "GeometrySource": "spacing 8 mm from the NIfTI header; thickness 6 mm from SliceThickness",
            "UpsamplingFactor": K,
            "Model": {"Name": "aniso-k4", "SHA256": "ab" * 32, "Members": 3},
            "Device": "cpu",
            "Seconds": 31.4,
            "PeakMemoryGB": 4.2,
            "Warnings": ["Thickness and spacing differ."],
        },
    }
