"""Measure a model's training scans, to recognise scans that differ from them; writes ``familiar.json``.

    python benchmarks/familiar.py MODEL LIBRARIES EVALUATION [--output FILE] [--only-white-matter]

LIBRARIES is what ``iqtflow BIDS LIBRARIES participant --mode train`` wrote for the training and validation
subjects, EVALUATION the same for unseen subjects. From each subject the first simulated scan is measured
(`iqtflow.inference.ood.measure_scan`): as it is, and once more with the degradation that the model's card
states (noise, grey matter, bias field; voxel sizes widen the range of their figure). The
threshold comes from the evaluation subjects. The model also enhances the middle of their scans: the usual
ratio of white matter in scan and enhanced volume (`iqtflow.inference.white_matter`).

The last table is a leave-one-scanner-out test: the first letter of a label is the scanner, and the scans of
each scanner are compared with the ranges of the others.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes

from iqtflow.image.geometry import RATIO_OVER_K, slices_last
from iqtflow.image.intensity import intensity_scale
from iqtflow.inference.ood import FIGURES, SHIPPED, compare, make_reference, measure_scan
from iqtflow.inference.predict import enhance_volume
from iqtflow.inference.white_matter import white_matter_ratio
from iqtflow.models.model_file import Model, load_model
from iqtflow.simulation.artifacts import bias_field, draw_bias

MIDDLE = 96  #: edge of the part that is enhanced, in thin voxels
#: Degradation of a model that was trained without one, as in the paper.
PLAIN: dict[str, Any] = {
    "snr_scale": [1, 1],
    "contrast_jitter": 0,
    "bias_amplitude": 0,
    "zoom": [1, 1],
}


def main() -> None:
    """Measure all scans and write the ranges."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("libraries", type=Path)
    parser.add_argument("evaluation", type=Path)
    parser.add_argument("--output", type=Path, default=SHIPPED)
    parser.add_argument("--keep", type=Path, help="write the measures of every scan here, as JSON lines")
    parser.add_argument(
        "--only-white-matter",
        action="store_true",
        help="after a training on like scans: keep the ranges, measure the ratio of white matter",
    )
    options = parser.parse_args()
    model = load_model(options.model)
    if options.only_white_matter:
        table = json.loads(options.output.read_text())
        rows = measure_all(options.evaluation, model, None)
        table[model.card.name]["white_matter_ratio"] = usual_ratio(rows)
        options.output.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")
        print(usual_ratio(rows))
        return
    wide = PLAIN | degradation_of(model)
    training = measure_all(options.libraries, model, wide)
    evaluation = measure_all(options.evaluation, model, None)
    rows = [*training, *evaluation]
    if options.keep:
        options.keep.write_text("".join(json.dumps(row) + "\n" for row in rows))
    reference = make_reference(
        widen(training, wide),
        [row["figures"] for row in evaluation],
        k=model.k,
        white_matter_ratio=usual_ratio(evaluation),
        source="simulated scans of the card's training and validation subjects; threshold from evaluation "
        "subjects",
    )
    table = json.loads(options.output.read_text()) if options.output.exists() else {}
    table[model.card.name] = reference
    options.output.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")
    print(json.dumps(reference, indent=1))
    for scanner in sorted({row["subject"][0] for row in training}):
        others = [row for row in training if row["subject"][0] != scanner]
        left = [row["figures"] for row in training if row["subject"][0] == scanner and not row["wide"]]
        if not others or not left:
            continue
        known = make_reference(widen(others, wide), left)
        # The threshold of a model, not one that these scans set.
        scores = [compare(scan, {**known, "threshold": reference["threshold"]}) for scan in left]
        worst = {name: round(max(found.scores[name] for found in scores), 2) for name in FIGURES}
        flagged = sum(found.unfamiliar for found in scores)
        print(
            f"scanner {scanner} against the others: {flagged} of {len(left)} flagged; largest scores {worst}"
        )


def usual_ratio(evaluation: list[dict[str, Any]]) -> list[float]:
    """Return the smallest and the largest ratio of white matter of the evaluation scans."""
    return [pick(row["white_matter_ratio"] for row in evaluation) for pick in (min, max)]


def degradation_of(model: Model) -> dict[str, Any]:
    """Return what the card says of the degradation of the training scans."""
    training = model.card.training
    members = training.get("members") or [training]
    return members[0].get("plan", {}).get("degradation") or {}


def measure_all(derivatives: Path, model: Model, wide: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Measure the scans of all subjects: degraded ones, too, or else with the ratio of white matter."""
    rows = []
    for file in sorted(derivatives.glob("sub-*/anat/*_desc-sim01_T1w.nii.gz")):
        label = file.parents[1].name.removeprefix("sub-")
        for number, (scan, mask, affine) in enumerate(read_scans(file, model.k, wide)):
            row: dict[str, Any] = {"subject": label, "wide": number > 0}
            sizes = voxel_sizes(affine)
            row["lengths_mm"] = [
                float(n * size) for n, size in zip(mask.shape, sizes, strict=True)
            ]  # the scan is cropped to the brain
            row["figures"] = measure_scan(scan, mask, axis=2, voxel_mm=sizes.tolist(), k=model.k)
            if wide is None:
                row["white_matter_ratio"] = ratio_of(scan, mask, model)
            rows.append(row)
        print(label, flush=True)
    if not rows:
        raise SystemExit(f"{derivatives}: found no sub-*/anat/*_desc-sim01_T1w.nii.gz")
    return rows


def read_scans(
    file: Path, k: int, wide: dict[str, Any] | None
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield the simulated scan of a subject, and a degraded one: slices last, brain mask, affine."""
    image = nib.load(file)
    axis = int(np.argmax(image.header.get_zooms()[:3]))
    scan, affine = slices_last(np.asarray(image.dataobj, np.float32), image.affine, axis)
    mask_file = next(file.parent.glob("*_desc-brain_mask.nii.gz"))
    mask = thick(nib.load(mask_file), image.affine, axis, k, scan.shape[2]) > 0.5
    box = tuple(slice(int(i.min()), int(i.max()) + 1) for i in np.nonzero(mask))
    scan, mask = scan[box], mask[box]
    yield scan, mask, affine
    if wide is None or all(wide[name] == PLAIN[name] for name in PLAIN):
        return
    rng = np.random.default_rng(list(file.name.encode()))
    grey = thick(nib.load(next(file.parent.glob("*_label-GM_probseg.nii.gz"))), image.affine, axis, k, None)
    grey = grey[..., : image.shape[axis]][box]
    other = scan * (1 + wide["contrast_jitter"] * rng.uniform(-1, 1) * grey)
    sigma = json.loads(file.with_name(file.name.replace(".nii.gz", ".json")).read_text())[
        "NoiseStandardDeviation"
    ]
    more = rng.uniform(*wide["snr_scale"]) ** -2 - 1
    other += rng.normal(0, sigma * max(more, 0) ** 0.5, scan.shape)
    bias = draw_bias(rng, wide["bias_amplitude"])
    if bias:
        other *= bias_field(bias, scan.shape)
    yield other.astype(np.float32), mask, affine


def thick(image: Any, affine: np.ndarray, axis: int, k: int, n: int | None) -> np.ndarray:
    """Average k thin voxels each along the slice axis; slices last."""
    volume = slices_last(np.asarray(image.dataobj, np.float32), affine, axis)[0]
    n = volume.shape[2] // k if n is None else n
    return volume[..., : n * k].reshape(*volume.shape[:2], n, k).mean(axis=3)


def widen(rows: list[dict[str, Any]], wide: dict[str, Any]) -> list[dict[str, float]]:
    """Return the figures of scans, and of the same with other voxels, slice axes, and all spacings for which
    a gain was measured (`benchmarks/any_ratio.py`).
    """
    found = [row["figures"] for row in rows]
    for row in rows:
        scan = row["figures"]
        for zoom, ratio in zip(wide["zoom"], RATIO_OVER_K, strict=True):
            found.append({**scan, "PixelMm": scan["PixelMm"] * zoom, "SpacingRatio": ratio})
        found += [{**scan, "Coverage": length} for length in row["lengths_mm"]]
    return found


def ratio_of(scan: np.ndarray, mask: np.ndarray, model: Model) -> float:
    """White matter of the scan / of the enhanced volume, in the middle of the brain."""
    scale = intensity_scale(scan[mask])
    half = (MIDDLE // 2, MIDDLE // 2, MIDDLE // 2 // model.k)
    centre = [round(float(c.mean())) for c in np.nonzero(mask)]
    middle = tuple(slice(max(c - h, 0), c + h) for c, h in zip(centre, half, strict=True))
    scan, mask = np.ascontiguousarray(scan[middle]), mask[middle]
    ratio = white_matter_ratio(scan, enhance_volume(scan, model, scale=scale).mean, mask)
    if ratio is None:
        raise SystemExit("no white matter in the middle of the brain: is the mask one of a brain?")
    return ratio


if __name__ == "__main__":
    main()
