"""Compare the simulator with the simple way: nibabel on full volumes, for each draw.

    python benchmarks/bench_simulator.py [--shape W H D] [--draws N]

Both run on one thread, in one process, on the same volumes in the memory order of NIfTI files. Times are
seconds of processor time, the shortest of the repetitions; the wall clock is printed, too. Memory is the
peak of the resident set above Python and its libraries, in float32 volumes of the input's size, including
the inputs, which the command reads from files.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.processing import resample_from_to, smooth_image
from scipy import ndimage

from iqtflow.simulation.artifacts import Extras
from iqtflow.simulation.simulate import (
    Draw,
    SliceStack,
    ThickSubject,
    draw_scan,
    prepare_subject,
    ratios_of,
    realise,
)
from iqtflow.simulation.slice_profile import FWHM_TO_SIGMA
from iqtflow.simulation.snr_prior import PUBLISHED

PRIOR = PUBLISHED["ibadan-0.36T"]


THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def main() -> None:
    if any(os.environ.get(name) != "1" for name in THREADS):  # the libraries read them once: start again
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **dict.fromkeys(THREADS, "1")})
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", type=int, nargs=3, default=(260, 311, 260))
    parser.add_argument("--k", type=int, nargs="+", default=(4, 8))
    parser.add_argument("--draws", type=int, default=5, help="repetitions of the draws of iqtflow")
    options = parser.parse_args()
    volumes = make_volumes(tuple(options.shape))
    print(f"volume {options.shape}, one thread; load average {os.getloadavg()[0]:.1f}")
    for k in options.k:
        compare(volumes, k, options.draws)
    print(
        f"peak memory of iqtflow-simulate, inputs included (volumes of float32): {peak_memory(volumes):.2f}"
    )


def make_volumes(shape: tuple[int, int, int]) -> list[nib.Nifti1Image]:
    """Return image, WM and GM: a textured image and smooth random maps, in the memory order of nibabel."""
    rng = np.random.default_rng(0)
    coarse = rng.standard_normal((2, *(n // 8 + 2 for n in shape))).astype(np.float32)
    maps = []
    for field in coarse:
        zoomed = ndimage.zoom(field, 8, order=1)[tuple(slice(0, n) for n in shape)]
        maps.append(np.clip(0.5 + zoomed, 0, 1) / 2)
    texture = rng.standard_normal(shape, dtype=np.float32)
    image = np.clip(1000 * maps[0] * 2 + 700 * maps[1] * 2 + 30 * texture, 0, None)
    affine = np.diag([-0.7, 0.7, 0.7, 1.0])
    return [nib.Nifti1Image(np.asfortranarray(v, dtype=np.float32), affine) for v in (image, *maps)]


def compare(volumes: list[nib.Nifti1Image], k: int, n_draws: int) -> None:
    """Print times, ratios and differences for one k."""
    edge = 0.7
    stack = SliceStack(axis=2, spacing_mm=k * edge, thickness_mm=0.75 * k * edge)
    draws = [draw_scan(PRIOR, Extras(), stack, seed=seed) for seed in range(n_draws)]
    arrays = [np.asarray(v.dataobj) for v in volumes]
    ours = [timed(lambda: realise(prepared(arrays, volumes, stack), draws[0])) for _ in range(3)]
    subject = prepared(arrays, volumes, stack)
    theirs = timed(lambda: straightforward(volumes, subject, stack, draws[0]))
    further = [timed(lambda draw=draw: realise(subject, draw)) for draw in draws]
    first, each = min(ours), min(further)
    print(f"k = {k}: straightforward {theirs[0]:.2f} s a draw (wall {theirs[1]:.2f})")
    for what, (seconds, wall) in (("first draw", first), ("further draw", each)):
        faster = theirs[0] / seconds
        print(f"  ours, {what}: {seconds:.3f} s (wall {wall:.3f}), {faster:.0f} times faster")
    for what, difference in differences(volumes[0], k).items():
        print(f"  largest difference {what}: {difference:.1e} of range")


def prepared(arrays: list[np.ndarray], volumes: list[nib.Nifti1Image], stack: SliceStack) -> ThickSubject:
    return prepare_subject(arrays[0], arrays[1:], volumes[0].affine, stack)


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Return seconds of processor time and of the wall clock."""
    began = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - began[0], time.perf_counter() - began[1]


def straightforward(
    volumes: list[nib.Nifti1Image], subject: ThickSubject, stack: SliceStack, draw: Draw
) -> np.ndarray:
    """Smooth the full volumes, resample them (nibabel's default: cubic), change the contrast, add noise."""
    blurred = [smooth_image(v, [0, 0, draw.fwhm_mm], mode="nearest") for v in volumes]
    grid = (tuple(subject.intensity.shape), subject.affine)
    image, wm, gm = (np.asarray(resample_from_to(v, grid).dataobj) for v in blurred)
    ratios = ratios_of(subject, draw)
    clean = (ratios.wm * wm + ratios.gm * gm + (1 - wm - gm)) * image
    return clean + ratios.sigma * np.random.default_rng(0).standard_normal(clean.shape)


def differences(volume: nib.Nifti1Image, k: int) -> dict[str, float]:
    """Compare blurred and down-sampled intensities where both ways have the same definition.

    That is: slices centred on thin voxels (an even k centres them between two, where the straightforward way
    interpolates; half a voxel of offset puts them on one), and away from the ends of the stack.
    """
    edge = 0.7
    stack = SliceStack(axis=2, spacing_mm=k * edge, thickness_mm=0.75 * k * edge)
    data = np.asarray(volume.dataobj)
    offset = (0.5 - (k % 2) / 2) * edge
    ones = np.full(data.shape, 0.5, np.float32)
    subject = prepare_subject(data, (ones, ones), volume.affine, stack, offset_mm=offset)
    ours = subject.intensity.numpy()
    grid = (ours.shape, subject.affine)
    smoothed = smooth_image(volume, [0, 0, stack.thickness_mm], mode="nearest")
    nibabel = np.asarray(resample_from_to(smoothed, grid, order=1).dataobj)
    sigma = 0.75 * k * FWHM_TO_SIGMA
    exact = ndimage.gaussian_filter1d(data.astype(np.float64), sigma, axis=2, truncate=8, mode="nearest")
    exact = exact[:, :, k // 2 :: k][:, :, : ours.shape[2]]
    inner = (slice(None), slice(None), slice(3, -3))
    span = float(np.ptp(data))
    return {
        "from nibabel": float(np.abs(ours - nibabel)[inner].max()) / span,
        "from a Gaussian that is not cut at 4 sigma": float(np.abs(ours - exact)[inner].max()) / span,
    }


def peak_memory(volumes: list[nib.Nifti1Image]) -> float:
    """Return the peak memory of the command above that of an idle process with the same imports."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder, f"{name}.nii")) for name in ("image", "wm", "gm", "low")]
        for path, volume in zip(paths, volumes, strict=False):
            volume.to_filename(path)
        script = (
            "import sys, iqtflow.simulation.simulate, iqtflow.image.nifti, iqtflow.simulation.recipe\n"
            "from iqtflow.cli.commands.simulate import main\n"
            "if len(sys.argv) > 1 and main(sys.argv[1:]): raise SystemExit(1)\n"
            "print(next(l.split()[1] for l in open('/proc/self/status') if l.startswith('VmHWM')))\n"
        )
        call = [
            paths[0],
            paths[3],
            "--wm",
            paths[1],
            "--gm",
            paths[2],
            "--json",
            str(Path(folder, "low.json")),
        ]
        idle, busy = (
            int(
                subprocess.run(
                    [sys.executable, "-c", script, *a], check=True, capture_output=True, text=True
                ).stdout
            )
            for a in ([], call)
        )
    return (busy - idle) * 1024 / (4 * np.prod(volumes[0].shape))


if __name__ == "__main__":
    main()
