"""Measure a model's training scans, to recognise scans that differ from them.

Simulates scans of the training and validation subjects with the settings in the model's card, and of the
evaluation subjects with the paper's setting (slice thickness 3/4 of the spacing, published SNR). Measures all
of them (`iqtflow.inference.ood.measure_scan`), and writes ranges and threshold under the model's name. The
model also enhances the middle of one scan of each evaluation subject, to find the usual range of white matter
in enhanced volumes (`iqtflow.inference.white_matter`).

Usage: ``python docs/model-cards/familiar.py MODEL BIDS DERIVATIVES [--output FILE]``, where DERIVATIVES is
what ``iqtflow BIDS DERIVATIVES participant --mode train`` wrote for all subjects.
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

from iqtflow.image.intensity import intensity_scale
from iqtflow.inference.ood import SHIPPED, make_reference, measure_scan
from iqtflow.inference.predict import enhance_volume
from iqtflow.inference.white_matter import white_matter_ratio
from iqtflow.models.model_file import Model, load_model, read_card
from iqtflow.simulation.artifacts import Extras
from iqtflow.simulation.simulate import SliceStack, draw_scan, prepare_subject, realise
from iqtflow.simulation.snr_prior import PUBLISHED

DRAWS = 1  #: scans for each subject and slice axis
MIDDLE = 96  #: edge of the part that is enhanced, in thin voxels


def main() -> None:
    """Measure all scans and write the ranges."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("bids", type=Path)
    parser.add_argument("derivatives", type=Path)
    parser.add_argument("--output", type=Path, default=SHIPPED)
    parser.add_argument("--keep", type=Path, help="write the measures of every scan here, as JSON lines")
    options = parser.parse_args()
    card = read_card(options.model)
    split = card.training["split"]
    wide = card.training["members"][0]["plan"]["degradation"]
    model = load_model(options.model)
    found: dict[str, list[dict[str, float]]] = {"training": [], "evaluation": []}
    ratios: list[float] = []
    for part, labels in split.items():
        side = "evaluation" if part == "evaluation" else "training"
        for label in labels:
            setting = None if side == "evaluation" else wide
            for number, (axis, scan, mask, sizes) in enumerate(scans_of(label, options, card.k, setting)):
                record = measure_scan(scan, mask, axis=axis, voxel_mm=sizes, k=card.k)
                found[side].append(record)
                if side == "evaluation" and number == 0:
                    ratios.append(ratio_of(scan, mask, axis, model))
                    record = {**record, "white_matter_ratio": ratios[-1]}
                if options.keep:
                    with open(options.keep, "a") as file:
                        print(json.dumps({"subject": label, "axis": axis, "side": side, **record}), file=file)
            print(label, flush=True)
    table = json.loads(options.output.read_text()) if options.output.exists() else {}
    table[card.name] = make_reference(
        found["training"],
        found["evaluation"],
        k=card.k,
        white_matter_ratio=[min(ratios), max(ratios)],
        source="simulated scans of the card's training and validation subjects; threshold from its "
        "evaluation subjects",
    )
    options.output.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")
    print({key: value for key, value in table[card.name].items() if key != "ranges"})


def scans_of(
    label: str, options: argparse.Namespace, k: int, wide: dict[str, Any] | None
) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """Simulate the scans of one subject: slice axis, scan, brain mask, voxel sizes."""
    folder = options.derivatives / f"sub-{label}" / "anat"
    image = nib.load(options.bids / f"sub-{label}" / "anat" / f"sub-{label}_T1w.nii.gz")
    data = np.asarray(image.dataobj, dtype=np.float32)
    wm, gm = (
        np.asarray(nib.load(next(folder.glob(f"*_label-{tissue}_probseg.nii.gz"))).dataobj, np.float32)
        for tissue in ("WM", "GM")
    )
    mask = np.asarray(nib.load(next(folder.glob("*_desc-brain_mask.nii.gz"))).dataobj) > 0
    sizes = voxel_sizes(image.affine)
    # The skull-stripped brains are blurred along their third axis (docs/training.md).
    axes = (0, 1, 2) if "B" in label else (0, 1)
    rng = np.random.default_rng([k, *label.encode()])
    prior = PUBLISHED["ibadan-0.36T"]
    for axis in axes:
        for _ in range(DRAWS):
            spacing = k * float(sizes[axis])
            thickness = spacing * (0.75 if wide is None else rng.uniform(*wide["thickness_fraction"]))
            extras = Extras() if wide is None else Extras(bias_amplitude=wide["bias_amplitude"])
            stack = SliceStack(axis, spacing, thickness)
            draw = draw_scan(prior, extras, stack, seed=int(rng.integers(2**31)))
            if wide is not None:
                loudness = rng.uniform(*wide["snr_scale"])
                draw = type(draw)(**{**vars(draw), "snr": tuple(loudness * s for s in draw.snr)})
            subject = prepare_subject(data, (wm, gm), image.affine, stack)
            scan = realise(subject, draw)
            n = scan.shape[axis]
            slabs = np.moveaxis(mask, axis, 2)[:, :, : n * k]
            thick = np.moveaxis(slabs.reshape(*slabs.shape[:2], n, k).mean(axis=3) > 0.5, 2, axis)
            yield axis, scan, thick, voxel_sizes(subject.affine)


def ratio_of(scan: np.ndarray, mask: np.ndarray, axis: int, model: Model) -> float:
    """White matter of the scan / of the enhanced volume, in the middle of the brain."""
    scan, mask = np.moveaxis(scan, axis, 2), np.moveaxis(mask, axis, 2)
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
