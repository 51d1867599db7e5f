"""Compare the tissue maps of two engines: Dice of each tissue where its probability is above .5, and volumes.

    python benchmarks/compare_segmentations.py FIRST SECOND [--participant-label LABEL ...]

FIRST and SECOND are outputs of ``iqtflow ... participant --mode train``. Prints a Markdown table. Volumes
(ml) are sums of probabilities.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from iqtflow.image.nifti_file import open_nifti

TISSUES = ("GM", "WM", "CSF")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("--participant-label", nargs="+")
    options = parser.parse_args()
    found = options.first.glob("sub-*/anat/*_label-GM_probseg.json")
    labels = options.participant_label or sorted(path.parents[1].name.removeprefix("sub-") for path in found)
    print("| subject | skull | " + " | ".join(f"Dice {t} | {t} ml" for t in TISSUES) + " | seconds |")
    print("|---" * (3 + 2 * len(TISSUES)) + "|")
    scores = []
    for label in labels:
        cells, record = [], {}
        for tissue in TISSUES:
            dice, volumes_ml, record = compare(options.first, options.second, label, tissue)
            cells += [f"{dice:.3f}", f"{volumes_ml[0]:.0f} / {volumes_ml[1]:.0f}"]
            scores.append(dice)
        skull = "stripped" if record["skull_stripped"] else "there"
        seconds = sum(record["seconds"].values())
        print(f"| {label} | {skull} | {' | '.join(cells)} | {seconds:.0f} |")
    means = np.mean(np.reshape(scores, (-1, len(TISSUES))), axis=0)
    print(f"| mean | | {' | '.join(f'{mean:.3f} | ' for mean in means)}| |")


def compare(first: Path, second: Path, label: str, tissue: str) -> tuple[float, list[float], dict]:
    """Return Dice, both volumes (ml), and the sidecar of the first map."""
    name = f"sub-{label}/anat/sub-{label}_label-{tissue}_probseg"
    images = [open_nifti(root / f"{name}.nii.gz") for root in (first, second)]
    if images[0].shape != images[1].shape or not np.allclose(images[0].affine, images[1].affine, atol=1e-3):
        raise SystemExit(f"{name}: the two are not on the same grid")
    maps = [image.get_fdata(dtype=np.float32) for image in images]
    a, b = (m > 0.5 for m in maps)
    dice = 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))
    voxel_ml = abs(np.linalg.det(images[0].affine[:3, :3])) / 1000
    record = json.loads((first / f"{name}.json").read_text())
    return dice, [float(m.sum(dtype=np.float64) * voxel_ml) for m in maps], record


if __name__ == "__main__":
    main()
