"""Enhance a volume with blended tiles and with the paper's sliding window: time, PSNR, memory.

    python benchmarks/bench_inference.py [--image T1w --wm WM --gm GM] [--model NAME] [--shape W H D]

Each way runs in a process of its own, on one thread, on the same simulated scan. Times are seconds of
processor time, so that other programs hardly change them; the wall clock is printed, too. Memory is the
largest growth of the resident set while the networks run. Without a high-field image the volume is a
phantom, for which PSNR means little.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
from nibabel.processing import resample_from_to
from scipy import ndimage

from iqtflow.image.nifti_file import open_nifti
from iqtflow.simulation.artifacts import Extras
from iqtflow.simulation.simulate import SliceStack, draw_scan, prepare_subject, realise
from iqtflow.simulation.snr_prior import PUBLISHED

EDGE_MM = 0.7
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
#: Sliding window, precision, and whether the mirrored scan is averaged in.
WAYS = {
    "paper": ("paper", "float32", False),
    "paper-bf16": ("paper", "bfloat16", False),
    "tiles": ("tiles", "float32", False),
    "tiles-bf16": ("tiles", "bfloat16", False),
    "whole": ("whole", "float32", False),
    "whole-bf16": ("whole", "bfloat16", False),
    "tiles-mirror": ("tiles", "bfloat16", True),
    "auto": ("auto", None, False),
}


def main() -> None:
    if any(os.environ.get(name) != "1" for name in THREADS):  # the libraries read them once: start again
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **dict.fromkeys(THREADS, "1")})
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--image", type=Path, help="high-field T1w image")
    parser.add_argument("--wm", type=Path, help="its white-matter map")
    parser.add_argument("--gm", type=Path, help="its grey-matter map")
    parser.add_argument("--shape", type=int, nargs=3, default=(260, 311, 260))
    parser.add_argument("--model", default="iqt-k4")
    parser.add_argument("--ways", nargs="+", choices=tuple(WAYS), default=("tiles", "tiles-bf16", "paper"))
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)  # a child: folder and way
    options = parser.parse_args()
    if options.run:
        print(json.dumps(measure(Path(options.run[0]), options.run[1], options.model)))
        return
    print(f"model {options.model}, one thread; load average {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        spline = prepare(Path(folder), options)
        print(f"cubic spline: PSNR {spline:.2f} dB")
        seconds = {}
        for way in options.ways:
            command = [sys.executable, __file__, "--model", options.model, "--run", folder, way]
            child = subprocess.run(command, check=True, capture_output=True, text=True)
            found = json.loads(child.stdout.splitlines()[-1])
            seconds[way] = found["cpu"]
            print(
                f"{way:12s} {found['cpu']:7.1f} s (wall {found['wall']:.1f}), PSNR {found['psnr']:.3f} dB, "
                f"memory {found['peak_gb']:.3f} GB, {found['predicted_gb']:.3f} predicted "
                f"({found['predicted_gb'] / found['peak_gb'] - 1:+.0%}); {found['tiling']}",
                flush=True,
            )
    for slow in seconds:
        for fast in seconds:
            if slow.startswith("paper") and not fast.startswith("paper"):
                print(f"{fast}: {seconds[slow] / seconds[fast]:.1f} times faster than {slow}")


def prepare(folder: Path, options: argparse.Namespace) -> float:
    """Simulate the scan; write it, the truth and the brain to a folder; return the PSNR of the spline."""
    from iqtflow.evaluation.metrics import psnr
    from iqtflow.image.geometry import cubic_upsample
    from iqtflow.models.model_file import read_card

    k = read_card(options.model)["k"]
    image, wm, gm = volumes(options)
    stack = SliceStack(axis=2, spacing_mm=k * EDGE_MM, thickness_mm=0.75 * k * EDGE_MM)
    subject = prepare_subject(image, (wm, gm), np.diag([EDGE_MM, EDGE_MM, EDGE_MM, 1.0]), stack)
    draw = draw_scan(PUBLISHED["ibadan-0.36T"], Extras(), stack, seed=0)
    scan = np.asarray(realise(subject, draw), dtype=np.float32)
    truth = image[..., : scan.shape[2] * k]
    brain = truth > 0.02 * truth.max()
    for name, array in (("scan", scan), ("truth", truth), ("brain", brain)):
        np.save(folder / f"{name}.npy", array)
    print(f"scan of {scan.shape}, {brain.mean():.0%} of the volume is brain")
    return psnr(truth, np.clip(cubic_upsample(scan, k), 0, None), brain)


def volumes(options: argparse.Namespace) -> list[np.ndarray]:
    """Image, WM and GM with this shape: from files, resampled about their centre, or a phantom."""
    shape = tuple(options.shape)
    if options.image is None:
        return phantom(shape)
    grid = np.diag([EDGE_MM, EDGE_MM, EDGE_MM, 1.0])
    found = []
    for path, order in ((options.image, 3), (options.wm, 1), (options.gm, 1)):
        source = nib.as_closest_canonical(open_nifti(path))
        centre = source.affine @ [*((np.array(source.shape) - 1) / 2), 1]
        grid[:3, 3] = centre[:3] - EDGE_MM * (np.array(shape) - 1) / 2
        volume = resample_from_to(source, (shape, grid), order=order)
        found.append(np.clip(np.asarray(volume.dataobj, dtype=np.float32), 0, None))
    return found


def phantom(shape: tuple[int, int, int]) -> list[np.ndarray]:
    """Nested, wavy ellipsoids: WM 1000, GM 700."""
    coarse = np.random.default_rng(0).standard_normal([n // 8 + 2 for n in shape]).astype(np.float32)
    wave = ndimage.zoom(coarse, 8, order=1)[tuple(slice(0, n) for n in shape)]
    axes = np.ogrid[tuple(slice(-1, 1, n * 1j) for n in shape)]
    radius = np.sqrt(sum(a.astype(np.float32) ** 2 for a in axes)) + 0.03 * wave
    wm = (radius < 0.55).astype(np.float32)
    gm = ((radius < 0.7) & (radius >= 0.55)).astype(np.float32)
    return [1000 * wm + 700 * gm, wm, gm]


def measure(folder: Path, way: str, name: str) -> dict[str, float | str]:
    """Run one way in this process: seconds, PSNR, growth of the resident set."""
    import torch

    from iqtflow.evaluation.metrics import psnr
    from iqtflow.image.intensity import intensity_scale
    from iqtflow.inference.predict import enhance_volume
    from iqtflow.models.model_file import load_model
    from iqtflow.utils.system import peak_memory_gb

    torch.set_num_threads(1)
    tiling, precision, mirror = WAYS[way]
    scan, truth, brain = (np.load(folder / f"{n}.npy") for n in ("scan", "truth", "brain"))
    model = load_model(name)
    scale = intensity_scale(scan[brain.reshape(*scan.shape, model.k).mean(axis=3) > 0.5])
    # Load what the first use loads (MONAI, oneDNN); it does not count.
    enhance_volume(scan[:40, :40, :9], model, scale=scale, tiling="tiles", precision=precision)
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak, see proc_pid_clear_refs(5)
    before = psutil.Process().memory_info().rss / 1e9
    began, wall = time.process_time(), time.perf_counter()
    result = enhance_volume(
        scan, model, scale=scale, tiling=tiling, precision=precision, mirror_axis=0 if mirror else None
    )
    cpu, wall = time.process_time() - began, time.perf_counter() - wall
    return {
        "cpu": cpu,
        "wall": wall,
        "peak_gb": peak_memory_gb() - before,
        "predicted_gb": result.predicted_gb,
        "psnr": psnr(truth, result.mean, brain),
        "tiling": result.details["Tiling"],
    }


if __name__ == "__main__":
    main()
