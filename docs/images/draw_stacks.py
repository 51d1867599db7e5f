"""Draw ``stacks.png`` from the volumes that ``benchmarks/stacks.py --save DIR`` writes.

Usage: ``python docs/images/draw_stacks.py DIR/sub-NAME_k4 docs/images/stacks.png``
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np

from iqtflow.inference.rigid import resample


def main(stem: str, picture: Path) -> None:
    """Draw four volumes in an axial and a sagittal plane, front up or to the left."""
    truth = nib.load(f"{stem}_truth.nii.gz")
    scan = nib.load(f"{stem}_scan1.nii.gz")
    step = np.linalg.inv(scan.affine) @ truth.affine
    columns = {
        "acquired, cubic spline": resample(scan.get_fdata(dtype=np.float32), step, truth.shape),
        "best single enhanced": nib.load(f"{stem}_best.nii.gz").get_fdata(),
        "combined": nib.load(f"{stem}_combined.nii.gz").get_fdata(),
        "truth": truth.get_fdata(),
    }
    brain = nib.load(f"{stem}_brain.nii.gz").get_fdata() > 0.5
    reach = [np.flatnonzero(brain.any(axis=tuple({0, 1, 2} - {a}))) for a in range(3)]
    box = tuple(slice(max(int(r[0]) - 4, 0), int(r[-1]) + 5) for r in reach)
    x, _, z = (len(r) * share // 100 for r, share in zip(reach, (42, 0, 55), strict=True))
    figure, axes = plt.subplots(2, 4, figsize=(9, 5.2), facecolor="black")
    for column, (title, volume) in enumerate(columns.items()):
        top = np.percentile(volume[brain], 99.5)
        shown = volume[box]
        for axis, plane in zip(axes[:, column], (shown[:, :, z].T, shown[x].T[:, ::-1]), strict=True):
            axis.imshow(plane, origin="lower", cmap="gray", vmin=0, vmax=top, interpolation="nearest")
            axis.axis("off")
        axes[0, column].set_title(title, color="white", fontsize=11)
    figure.subplots_adjust(left=0.005, right=0.995, bottom=0.005, top=0.94, wspace=0.02, hspace=0.02)
    figure.savefig(picture, dpi=90, facecolor="black", metadata={"Software": None})


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
