"""Which measures of a scan (`iqtflow.inference.ood`) say that its enhanced volume has a larger error?

    python benchmarks/out_of_distribution.py MODEL HIGHFIELD DERIVATIVES [--people LABEL ...] [--output PAGE]

HIGHFIELD is a BIDS data set of people that the model was not trained on; DERIVATIVES is what
``iqtflow HIGHFIELD DERIVATIVES participant --mode train`` wrote for them. From the middle of each brain (64
thin voxels along each axis) thick slices are simulated with the mean of the published prior, and then with
one property changed at a time, far beyond what models are trained on. For each: the measures, and PSNR in
the brain of the enhanced volume and of the cubic spline.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from scipy import ndimage

from iqtflow.image.geometry import cubic_upsample
from iqtflow.image.intensity import intensity_scale
from iqtflow.inference.ood import FIGURES, measure_scan
from iqtflow.inference.predict import enhance_volume
from iqtflow.models.model_file import Model, load_model
from iqtflow.simulation.simulate import Draw, SliceStack, prepare_subject, realise

EDGE = 64  #: of the part that is enhanced, in thin voxels
SNR = (64.5, 54.14)  #: mean of the published prior, white and grey matter
THICKNESS = 0.75  #: over spacing

#: Property -> its values; the scan without a change comes first.
CHANGES: dict[str, tuple[float, ...]] = {
    "nothing": (1,),
    "SNR x": (2, 0.6, 0.4, 0.25, 0.15),
    "grey matter x": (0.8, 0.9, 1.1, 1.2, 1.35),
    "CSF + (white matter = 1)": (0.1, 0.2, 0.4),
    "shading, log amplitude": (0.2, 0.4, 0.8),
    "slice thickness / spacing": (0.4, 1.0, 1.4),
    "head x, spacing x": (0.6, 0.8, 1.25, 1.6),
    "pixels x": (0.6, 0.8, 1.25, 1.6),
    "slices": (2, 4, 8),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("model", "highfield", "derivatives"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--people", nargs="+", default=["hfA58", "hfA60", "hfB01", "hfB12"])
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    model = load_model(options.model)
    rows: dict[tuple[str, float], list[dict[str, float]]] = {}
    for label in options.people:
        volumes, affine = read_middle(options.highfield, options.derivatives, label)
        for name, values in CHANGES.items():
            for value in values:
                rows.setdefault((name, value), []).append(judge(volumes, affine, name, value, model))
        print(label, flush=True)
    text = report(options, rows)
    print(text)
    if options.output:
        options.output.write_text(text)


def read_middle(highfield: Path, derivatives: Path, label: str) -> tuple[list[np.ndarray], np.ndarray]:
    """Return image, WM, GM, CSF and brain of the middle of a head, slices last, and the affine."""
    folder = derivatives / f"sub-{label}" / "anat"
    image = nib.load(highfield / f"sub-{label}" / "anat" / f"sub-{label}_T1w.nii.gz")
    files = [next(folder.glob(f"*_label-{t}_probseg.nii.gz")) for t in ("WM", "GM", "CSF")]
    files.append(next(folder.glob("*_desc-brain_mask.nii.gz")))
    mask = np.asarray(nib.load(files[-1]).dataobj) > 0
    centre = [round(float(np.flatnonzero(mask.any(axis=o)).mean())) for o in ((1, 2), (0, 2), (0, 1))]
    middle = tuple(slice(c - EDGE // 2, c + EDGE // 2) for c in centre)
    volumes = [np.asarray(nib.load(f).dataobj[middle], np.float32) for f in files[:-1]]
    volumes = [np.asarray(image.dataobj[middle], np.float32), *volumes, mask[middle].astype(np.float32)]
    # Slices along the first axis: the third one of some of these people is blurred.
    affine = np.diag([*np.roll(voxel_sizes(image.affine), -1), 1.0])
    return [np.ascontiguousarray(np.moveaxis(v, 0, 2)) for v in volumes], affine


def judge(
    volumes: list[np.ndarray], affine: np.ndarray, name: str, value: float, model: Model
) -> dict[str, float]:
    """Return measures and PSNR of a scan with one property changed."""
    sizes = voxel_sizes(affine).astype(float)
    if name in ("head x, spacing x", "pixels x"):
        # The same voxel sizes show a larger or smaller head; or the plane has other pixels.
        factors = (value,) * 3 if name.startswith("head") else (1 / value, 1 / value, 1)
        volumes = [ndimage.zoom(v, factors, order=1) for v in volumes]
        if name == "pixels x":
            sizes[:2] *= value
    n = volumes[0].shape[2] // model.k * model.k
    truth, wm, gm, csf, brain = (v[..., :n] for v in volumes)
    affine = np.diag([*sizes, 1.0])
    spacing = model.k * float(sizes[2])
    snr = [s * (value if name == "SNR x" else 1) for s in SNR]
    snr[1] *= value if name == "grey matter x" else 1
    thickness = value if name == "slice thickness / spacing" else THICKNESS
    draw = Draw(snr=(snr[0], snr[1]), noise_seed=1, fwhm_mm=thickness * spacing)
    stack = SliceStack(2, spacing, min(thickness, 1.0) * spacing)
    subject = prepare_subject(truth, (wm, gm), affine, stack, fwhm_mm=draw.fwhm_mm)
    scan = realise(subject, draw)
    inside = brain > 0.5
    thick = brain.reshape(*brain.shape[:2], -1, model.k).mean(axis=3) > 0.5
    if name.startswith("CSF"):
        white = np.median(truth[wm > 0.9])
        scan = scan + value * white * csf.reshape(*csf.shape[:2], -1, model.k).mean(axis=3)
    if name.startswith("shading"):
        ramp = np.exp(np.linspace(-value, value, truth.shape[0], dtype=np.float32))[:, None, None]
        scan, truth = scan * ramp, truth * ramp
    if name == "slices":
        first = (scan.shape[2] - int(value)) // 2
        part = slice(first, first + int(value))
        fine = slice(part.start * model.k, part.stop * model.k)
        scan, thick, truth, inside = scan[..., part], thick[..., part], truth[..., fine], inside[..., fine]
    scan = np.ascontiguousarray(scan, np.float32)
    found = measure_scan(scan, thick, axis=2, voxel_mm=(*sizes[:2], spacing), k=model.k)
    mean = enhance_volume(scan, model, scale=intensity_scale(scan[thick])).mean
    found["psnr"] = psnr(mean, truth, inside)
    found["gain"] = found["psnr"] - psnr(np.maximum(cubic_upsample(scan, model.k), 0), truth, inside)
    return found


def psnr(estimate: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> float:
    """PSNR in dB inside the mask; the peak is the 99.9th percentile of the truth inside it."""
    error = np.mean((estimate[mask] - truth[mask]) ** 2, dtype=np.float64)
    return float(10 * np.log10(float(np.percentile(truth[mask], 99.9)) ** 2 / error))


def lines_of(rows: dict[tuple[str, float], list[dict[str, float]]]) -> Iterator[str]:
    """Yield the table, means over people."""
    shown = [f for f in FIGURES if f in ("GreyLevel", "DarkLevel", "BrightLevel", "Noise", "SpacingRatio")]
    yield f"| change | value | {' | '.join(FIGURES[f].label for f in shown)} | PSNR | gain over spline |"
    yield "|---" * (len(shown) + 4) + "|"
    for (name, value), people in rows.items():
        mean = {f: float(np.mean([p[f] for p in people])) for f in (*shown, "psnr", "gain")}
        numbers = " | ".join(FIGURES[f].shown(mean[f]) for f in shown)
        yield f"| {name} | {value:g} | {numbers} | {mean['psnr']:.2f} dB | {mean['gain']:+.2f} dB |"


def report(options: argparse.Namespace, rows: dict[tuple[str, float], list[dict[str, float]]]) -> str:
    """Return the page."""
    return "\n".join(
        [
            "# Scans unlike the training scans",
            "",
            f"`python benchmarks/out_of_distribution.py {options.model.name} HIGHFIELD DERIVATIVES`: means "
            f"over {len(options.people)} unseen people ({', '.join(options.people)}).",
            "",
            *lines_of(rows),
            "",
        ]
    )


if __name__ == "__main__":
    main()
