"""Heads in thick and in thin slices, their records, and a reader of pages."""

from __future__ import annotations

import json
import os
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import nibabel as nib
import numpy as np

from iqtflow.cli.commands.calibrate import main as calibrate
from iqtflow.image.geometry import cubic_upsample, thin_affine
from iqtflow.reports.record import Draw, Record
from iqtflow.simulation.scanner import ScannerMeasure

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


def make_record(folder: Path) -> Record:
    """Record of an enhanced scan whose enhanced volume is the sharpened spline; all volumes are there."""
    data, brain, affine = make_head()
    thin = thin_affine(affine, K)
    spline = cubic_upsample(data, K)
    truth = np.repeat(data, K, axis=2)
    name = "sub-01_ses-1_T1w"
    return Record(
        "enhanced",
        input=save(folder / f"{name}.nii.gz", data, affine),
        output=save(folder / f"{name}_iqt.nii.gz", spline + 0.5 * (truth - spline), thin),
        spline=save(folder / f"{name}_spline.nii.gz", spline, thin),
        std=save(folder / f"{name}_std.nii.gz", np.abs(truth - spline), thin),
        mask=save(folder / f"{name}_mask.nii.gz", brain, affine),
        truth=save(folder / f"{name}_truth.nii.gz", truth, thin),
        metrics={"spline": {"psnr": 24.5, "mssim": 0.81}, "iqt": {"psnr": 30.25, "mssim": 0.9}},
        details={
            "SliceAxis": "k",
            "Geometry": {
                "SpacingMm": 8.0,
                "ThicknessMm": 6.0,
                "GapMm": 2.0,
                "InplaneMm": [2.0, 2.0],
                "Ratio": 4.0,
                "Source": "spacing 8 mm from the NIfTI header; thickness 6 mm from SliceThickness",
            },
            "UpsamplingFactor": K,
            "Model": {"Name": "aniso-k4", "SHA256": "ab" * 32, "Members": 3},
            "Device": "cpu",
            "Seconds": 31.4,
            "PeakMemoryGB": 4.2,
            "Warnings": ["Thickness and spacing differ."],
        },
    )


def failed(scan: str = "sub-01_T1w", message: str = "too dark", **fields) -> Record:
    """Record of a scan that failed."""
    return Record("failed", f"/d/{scan}.nii.gz", message=message, **fields)


#: SNR of (WM, GM) of each simulated scan: two inside the published prior, one outside.
DRAWN = ((67.6, 59.4), (58.7, 48.4), (90.0, 30.0))


def make_prepared_record(folder: Path, *, n_draws: int = 3) -> Record:
    """Record of a high-field head of 2 mm voxels with tissue maps and scans simulated along x and z."""
    shape = (48, 56, 48)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    radius = np.sqrt(x**2 + y**2 + z**2)
    wm, mask = np.clip((0.55 - radius) / 0.1 + 0.5, 0, 1), radius < 0.85
    gm = np.clip((0.75 - radius) / 0.1 + 0.5, 0, 1) - wm
    rng = np.random.default_rng(0)
    source = (1000 * wm + 680 * gm) * mask + rng.normal(0, 5, shape)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = -np.array(shape)
    draws = []
    for i, snr in enumerate(DRAWN[:n_draws], start=1):
        axis = (0, 2)[i % 2]
        thick = np.moveaxis(
            np.moveaxis(source * (wm + 1.3 * gm), axis, 2).reshape(*np.delete(shape, axis), 12, 4).mean(3),
            2,
            axis,
        )
        sigma = 1000 / snr[0]
        step, low = np.diag([4.0 if a == axis else 1.0 for a in (0, 1, 2, 3)]), affine.copy()
        low = affine @ step
        low[:3, 3] += affine[:3, axis] * 1.5
        sidecar = {
            "SliceThickness": 6.0,
            "SpacingBetweenSlices": 8.0,
            "SliceGap": 2.0,
            "SliceAxis": "ijk"[axis],
            "SNR": {"WM": snr[0], "GM": snr[1]},
            "NoiseStandardDeviation": sigma,
            "IntensityRatio": {"WM": 1.0, "GM": 1.3},
            "SNRPrior": {
                "name": "ibadan-0.36T",
                "mean": [64.5, 54.14],
                "covariance": [[78.47, 71.5], [71.5, 73.91]],
            },
            "Seed": 100 + i,
        }
        name = folder / f"sub-02_desc-sim{i:02d}_T1w.nii.gz"
        draws.append(Draw(save(name, thick + rng.normal(0, sigma, thick.shape), low), sidecar))
    return Record(
        "prepared",
        input=save(folder / "sub-02_T1w.nii.gz", source, affine),
        wm=save(folder / "wm.nii.gz", wm, affine),
        gm=save(folder / "gm.nii.gz", gm, affine),
        mask=save(folder / "mask.nii.gz", mask, affine),
        draws=draws,
        details={
            "Engine": "ANTs N4 + Atropos",
            "EngineVersion": "antspyx 0.6.3",
            "volumes_ml": {"CSF": 194.2, "GM": 793.3, "WM": 546.5},
            "seconds": {"mask": 2.8, "tissues": 109.6},
            "Library": {"Patches": 412, "MB": 9.5},
        },
    )


#: What `iqtflow.inference.ood` writes of a scan that is unlike the training data, and of one that is like it.
UNFAMILIAR = {
    "Flagged": True,
    "Score": 4.2,
    "Threshold": 1.4,
    "Reasons": ["the slices cover less of the brain (mm) than usual (40; expected 120 to 174)"],
    "Features": {
        "Coverage": {"Value": 40.0, "TrainingRange": [120.0, 174.0], "Score": 4.2},
        "Noise": {"Value": 0.02, "TrainingRange": [0.01, 0.04], "Score": 0.4},
    },
}
FAMILIAR = {"Flagged": False, "Score": 0.7, "Threshold": 1.4, "Reasons": [], "Features": {}}


def write_calibration(
    out: Path, snr: list[tuple[float, float]], methods: tuple[str, ...] = ("air-rayleigh",)
) -> Path:
    """Write the results of a calibration of scans with given SNR (WM, GM); no pictures of scans.

    Their slices are 0.7 to 0.8 of the spacing thick; their bias field could not be measured.
    """
    folder = out / "calibration"
    folder.mkdir(parents=True)
    for i, (wm, gm) in enumerate(snr):
        noise = {"method": methods[i % len(methods)], "sigma": 3.25, "note": "air", "region": "air"}
        scanner = ScannerMeasure("rician", 0.7 + 0.1 * (i % 2), 1.6, None, 0.0, ("Bias field not measured.",))
        fields = {"Scan": f"sub-{i:02d}_T1w", "SNR": {"WM": wm, "GM": gm}, "Noise": noise}
        fields["Scanner"] = scanner.as_dict()
        (folder / f"sub-{i:02d}_T1w_snr.json").write_text(json.dumps(fields))
    files = ["--output", str(folder / "prior.json"), "--figure", str(folder / "prior.png")]
    assert calibrate(["fit", *map(str, sorted(folder.glob("*_snr.json"))), *files]) == 0
    return out


def records(gains):
    """Scores of one subject for each gain in dB."""
    rows = []
    for i, gain in enumerate(gains):
        spline = {"psnr": 25.0 + i, "mssim": 0.7, "mssim_slicewise": 0.7}
        iqt = {"psnr": 25.0 + i + gain, "mssim": 0.8, "mssim_slicewise": 0.8}
        rows.append({"subject": f"{i:02d}", "methods": {"spline": spline, "iqt": iqt}})
    return rows
