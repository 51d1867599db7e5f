"""Draw ``demo.png``, the picture of the README, from the folder of ``make demo``.

Usage: ``python docs/images/draw_demo.py demo docs/images/demo.png``
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np


def main(folder: Path, picture: Path) -> None:
    """Draw the four volumes in a coronal and a sagittal plane; all have the template's orientation (RAS)."""
    scan = nib.load(folder / "bids/sub-mni/anat/sub-mni_T1w.nii.gz").get_fdata(dtype=np.float32)
    truth = nib.load(folder / "truth/T1w.nii.gz").get_fdata(dtype=np.float32)
    k = truth.shape[2] // scan.shape[2]
    columns = {
        f"low-field scan, {k} mm slices": np.repeat(scan, k, axis=2),
        "cubic spline": nib.load(folder / "truth/spline.nii.gz").get_fdata(dtype=np.float32),
        "iqtflow": nib.load(folder / "derivatives/sub-mni/anat/sub-mni_desc-iqt_T1w.nii.gz").get_fdata(),
        "truth": truth[:, :, : k * scan.shape[2]],
    }
    x, y = truth.shape[0] * 3 // 8, truth.shape[1] * 4 // 9
    top = np.percentile(truth[truth > 0], 99.5)
    figure, axes = plt.subplots(2, 4, figsize=(12, 6.1), facecolor="black")
    for column, (title, volume) in enumerate(columns.items()):
        for row, plane in enumerate((volume[:, y].T, volume[x].T)):
            axis = axes[row, column]
            axis.imshow(plane, origin="lower", cmap="gray", vmin=0, vmax=top, interpolation="nearest")
            axis.axis("off")
        axes[0, column].set_title(title, color="white", fontsize=13)
    figure.subplots_adjust(left=0.005, right=0.995, bottom=0.005, top=0.94, wspace=0.02, hspace=0.02)
    figure.savefig(picture, dpi=90, facecolor="black", metadata={"Software": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
