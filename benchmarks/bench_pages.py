"""Measure time and size of the pages of an enhanced scan and of a training subject.

    python benchmarks/bench_pages.py [--nilearn]

The head is the MNI template from nilearn (1 mm, 152 people): in 4 mm slices for the enhanced scan; whole,
with the tissue maps of the template and eight simulated scans, for the training subject. Every possible
figure is drawn. Times are seconds of processor time on one thread, in a process of its own; the wall clock
is printed, too. Goals: 10 s, and 6 MB without the viewer, for a subject.

With ``--nilearn``, `nilearn.plotting` also draws the tissue contours (three planes of nine slices, two
maps), to compare.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BARS = {"seconds": 10.0, "megabytes": 6.0}
K, N_DRAWS = 4, 8


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nilearn", action="store_true", help="also draw the contours with nilearn")
    parser.add_argument("--only", choices=("enhanced", "prepared", "nilearn"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(_measure(options.only, options.folder)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _make_volumes(folder)
        for kind in ("enhanced", "prepared", *(("nilearn",) if options.nilearn else ())):
            done = subprocess.run(
                [sys.executable, __file__, "--only", kind, "--folder", str(folder)],
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                capture_output=True,
                text=True,
                check=True,
            )
            found = json.loads(done.stdout.splitlines()[-1])
            print(
                f"{kind:9} {found['seconds']:6.1f} s of processor ({found['wall']:.1f} s on the clock)  "
                f"{found['megabytes']:5.2f} MB in {found['files']} files, viewer {found['viewer']:.1f} MB  "
                f"{found['gigabytes']:.2f} GB of memory"
            )
            if kind != "nilearn":
                for what, bar in BARS.items():
                    print(f"          {what} {'met' if found[what] <= bar else 'NOT MET'} (bar {bar:g})")


def _measure(kind: str, folder: Path) -> dict[str, float]:
    began, wall = time.process_time(), time.monotonic()
    out = folder / f"out-{kind}"
    if kind == "nilearn":
        out.mkdir()
        _draw_with_nilearn(folder, out)
    else:
        from iqtflow.reports.assemble.subject import write_subject_page
        from iqtflow.reports.record import Record

        record = Record.read(json.loads((folder / f"{kind}.json").read_text()))
        write_subject_page(out, "mni", [record])
    viewer, files = [], []
    for path in out.rglob("*"):
        if path.is_file():
            (viewer if path.suffix == ".js" or path.parent.name == "viewer" else files).append(path)
    return {
        "seconds": time.process_time() - began,
        "wall": time.monotonic() - wall,
        "megabytes": sum(path.stat().st_size for path in files) / 1e6,
        "viewer": sum(path.stat().st_size for path in viewer) / 1e6,
        "files": len(files),
        "gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }


def _make_volumes(folder: Path) -> None:
    """Write the images for both pages, and their records."""
    import numpy as np

    from iqtflow.cli.commands.demo import make_truth
    from iqtflow.image.geometry import cubic_upsample, thin_affine
    from iqtflow.image.nifti import read_volume, write_volume
    from iqtflow.reports.record import Draw, Record

    image_file, mask_file = make_truth(folder)
    image, truth = read_volume(image_file)
    depth = truth.shape[2] // K * K
    truth, affine = truth[..., :depth], image.affine
    rng = np.random.default_rng(0)

    def thicken(axis: int, sigma: float) -> tuple[np.ndarray, np.ndarray]:
        n = truth.shape[axis] // K * K
        moved = np.moveaxis(truth, axis, 2)[..., :n]
        thick = np.moveaxis(moved.reshape(*moved.shape[:2], n // K, K).mean(3), 2, axis)
        low = affine.copy()
        low[:3, axis] *= K
        low[:3, 3] += affine[:3, axis] * (K - 1) / 2
        return (thick + rng.normal(0, sigma, thick.shape)).astype(np.float32), low

    low, low_affine = thicken(2, 12.0)
    spline = cubic_upsample(low, K)
    volumes = {
        "input": (low, low_affine),
        "output": (spline + 0.6 * (truth - spline), thin_affine(low_affine, K)),
        "spline": (spline, thin_affine(low_affine, K)),
        "std": (np.abs(truth - spline) * 0.4, thin_affine(low_affine, K)),
        "truth": (truth, affine),
    }
    for name, (data, grid) in volumes.items():
        write_volume(folder / f"{name}.nii.gz", np.asarray(data, np.float32), grid)
    draws = []
    for i in range(N_DRAWS):
        file = folder / f"draw{i}.nii.gz"
        write_volume(file, *thicken(i % 3, 15.0))
        snr = {"WM": 60.0 + i, "GM": 50.0 + i}
        draws.append(Draw(file, {"SNR": snr, "SliceAxis": "ijk"[i % 3]}))
    maps = {name: folder / f"{name}.nii.gz" for name in ("wm", "gm")}
    for record in (
        Record("enhanced", mask=mask_file, **{name: folder / f"{name}.nii.gz" for name in volumes}),
        Record("prepared", image_file, mask=mask_file, draws=draws, **maps),
    ):
        (folder / f"{record.status}.json").write_text(json.dumps(record.as_json()))


def _draw_with_nilearn(folder: Path, out: Path) -> None:
    from nilearn import plotting

    for mode in "xyz":
        display = plotting.plot_anat(
            folder / "T1w.nii.gz", display_mode=mode, cut_coords=9, radiological=True
        )
        for key, colour in (("wm", "orange"), ("gm", "cyan")):
            display.add_contours(folder / f"{key}.nii.gz", levels=[0.5], colors=colour, linewidths=0.7)
        display.savefig(out / f"{mode}.png", dpi=150)
        display.close()


if __name__ == "__main__":
    main()
