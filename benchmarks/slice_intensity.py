"""Are stripes of interleaved slices found and removed, and are scans without stripes left alone?

    python benchmarks/slice_intensity.py MODEL HIGHFIELD DERIVATIVES [--output PAGE]

HIGHFIELD is a BIDS data set of people that the model was not trained on; DERIVATIVES is what
``iqtflow HIGHFIELD DERIVATIVES participant --mode train`` wrote for them (brain mask, first simulated scan).

Three measurements. *Clean scans*: thick slices (mean of k thin ones) along each axis and from two starting
slices, with noise of 2 % of white matter; how often is a difference of odd and even slices found? *Stripes*:
every other slice of the simulated scan is made brighter by 2, 4 and 8 %; how large is the measured
difference, and what is the PSNR of the enhanced volume in the brain with ``--slice-intensity keep`` and
``auto``? The middle of the brain is enhanced (96 thin voxels along each axis). *Tissue*: share of grey and
of white matter in the enhanced brain, split by two thresholds of Otsu's method.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import nibabel as nib
import numpy as np

from iqtflow.image.geometry import slices_last, thin_box
from iqtflow.image.intensity import intensity_scale
from iqtflow.image.slice_intensity import equalise_slices, measure_slice_intensity
from iqtflow.inference.predict import enhance_volume
from iqtflow.models.model_file import Model, load_model

SHARES = (0.0, 0.02, 0.04, 0.08)
MIDDLE = 96  #: edge of the part that is enhanced, in thin voxels
NOISE = 0.02


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("model", "highfield", "derivatives"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    model = load_model(options.model)
    clean, rows = [], []
    for mask_file in sorted(options.derivatives.glob("sub-*/anat/*_desc-brain_mask.nii.gz")):
        subject = mask_file.parents[1].name
        simulated = next(mask_file.parent.glob("*_desc-sim01_T1w.nii.gz"), None)
        if simulated is None:
            continue
        truth = nib.load(options.highfield / subject / "anat" / f"{subject}_T1w.nii.gz")
        volume, mask = np.asarray(truth.dataobj, np.float32), np.asarray(nib.load(mask_file).dataobj) > 0
        clean += clean_scans(volume, mask, model.k)
        rows.append(stripes(nib.load(simulated), volume, mask, model))
        print(subject, rows[-1], sum(clean), len(clean), flush=True)
    text = report(options, model, clean, rows)
    print(text)
    if options.output:
        options.output.write_text(text)


def clean_scans(volume: np.ndarray, mask: np.ndarray, k: int) -> list[bool]:
    """Return for each clean scan whether stripes were found."""
    rng = np.random.default_rng(0)
    found = []
    for axis in range(3):
        for first in (0, k // 2):
            scan, brain = (thick(np.moveaxis(v, axis, 2)[..., first:], k) for v in (volume, mask))
            brain = brain > 0.5
            scan += rng.normal(0, NOISE * np.percentile(scan[brain], 80), scan.shape).astype(np.float32)
            found.append(measure_slice_intensity(scan, brain, 2).striped)
    return found


def stripes(
    image: nib.Nifti1Image, volume: np.ndarray, mask: np.ndarray, model: Model
) -> dict[float, dict[str, float]]:
    """Return, for each share of brightness, what was measured and how well the scan was enhanced."""
    axis = int(np.argmax(image.header.get_zooms()[:3]))
    scan = slices_last(np.asarray(image.dataobj, np.float32), image.affine, axis)[0]
    truth, thin = (
        slices_last(v, image.affine, axis)[0][..., : scan.shape[2] * model.k] for v in (volume, mask)
    )
    brain = thick(thin, model.k) > 0.5
    centre = [round(float(np.mean(c))) for c in np.nonzero(brain)]
    half = (MIDDLE // 2, MIDDLE // 2, MIDDLE // 2 // model.k)
    part = tuple(slice(max(c - h, 0), c + h) for c, h in zip(centre, half, strict=True))
    fine = thin_box(part, model.k)
    truth, thin = truth[fine], thin[fine]
    found = {}
    for share in SHARES:
        striped = scan.copy()
        striped[..., ::2] *= np.float32((1 + share) ** 0.5)
        striped[..., 1::2] /= np.float32((1 + share) ** 0.5)
        measured = measure_slice_intensity(striped, brain, 2)
        row = {"share": measured.share or 0.0, "striped": float(measured.striped)}
        corrected = equalise_slices(striped, 2, measured) if measured.striped else striped
        for name, given in (("keep", striped), ("auto", corrected)):
            if name == "auto" and not measured.striped:
                row |= {f"{value}_auto": row[f"{value}_keep"] for value in ("psnr", "grey", "white")}
                continue
            block = np.ascontiguousarray(given[part])
            mean = enhance_volume(block, model, scale=intensity_scale(given[brain])).mean
            row[f"psnr_{name}"] = psnr(mean, truth, thin)
            row[f"grey_{name}"], row[f"white_{name}"] = tissue_shares(mean[thin])
        found[share] = row
    return found


def psnr(estimate: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> float:
    """PSNR in dB inside the mask; the peak is the largest value of the truth inside it."""
    error = np.mean((estimate[mask] - truth[mask]) ** 2, dtype=np.float64)
    return float(10 * np.log10(float(truth[mask].max()) ** 2 / error))


def tissue_shares(values: np.ndarray) -> tuple[float, float]:
    """Share of voxels between the two thresholds of Otsu's method, and above them."""
    from skimage.filters import threshold_multiotsu

    low, high = threshold_multiotsu(values[:: max(values.size // 200_000, 1)], classes=3)
    return float(np.mean((values > low) & (values <= high))), float(np.mean(values > high))


def thick(volume: np.ndarray, k: int) -> np.ndarray:
    """Mean of k thin slices each; slices last."""
    n = volume.shape[2] // k
    return volume[..., : n * k].reshape(*volume.shape[:2], n, k).mean(axis=3, dtype=np.float32)


def report(
    options: argparse.Namespace, model: Model, clean: list[bool], rows: list[dict[float, dict[str, float]]]
) -> str:
    """Return the page."""
    lines = [
        "# Stripes of interleaved slices",
        "",
        f"`python benchmarks/slice_intensity.py {options.model.name} HIGHFIELD DERIVATIVES`: {len(rows)} "
        f"unseen people, k = {model.k}. The script says what is measured.",
        "",
        f"Clean scans (thick slices along each axis, two starts): stripes found in {sum(clean)} of "
        f"{len(clean)}.",
        "",
        "Stripes in the simulated scans of the same people, means over people. `auto` corrects a difference "
        "that is significant; the PSNR is that of the enhanced volume.",
        "",
        "| brighter by | found | measured | PSNR, clean scan | PSNR, `keep` | PSNR, `auto` | grey / white, "
        "clean | `keep` | `auto` |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for share in SHARES:
        mean = {name: np.mean([row[share][name] for row in rows]) for name in rows[0][share]}
        base = {name: np.mean([row[0.0][name] for row in rows]) for name in rows[0][0.0]}
        tissue = [
            f"{100 * values[f'grey_{name}']:.1f} / {100 * values[f'white_{name}']:.1f} %"
            for values, name in ((base, "keep"), (mean, "keep"), (mean, "auto"))
        ]
        lines.append(
            f"| {share:.0%} | {round(mean['striped'] * len(rows))} of {len(rows)} | {mean['share']:.1%} | "
            f"{base['psnr_keep']:.2f} dB | {mean['psnr_keep']:.2f} dB | {mean['psnr_auto']:.2f} dB | "
            f"{' | '.join(tissue)} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
