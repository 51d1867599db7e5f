"""Measure how fast training data are read, and how memory grows with the number of subjects.

    python benchmarks/bench_patches.py [--subjects 1 10 100] [--pairs 200] [--seconds 5]

Synthetic subjects (k = 4). Each kind of reading runs in a process of its own, on one thread, with the files
in the page cache: *explicit* reads shuffled pairs from the paper's library (.npy, float16); *stored* cuts
stored pairs out of memory-mapped volumes; *fresh* reads slabs for draws on the training device. Memory is
what belongs to the process alone (RssAnon of Linux), above its value before the libraries were opened.
Pages of mapped files belong to the cache of the system, which can drop them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

BATCH, K = 32, 4
KINDS = ("explicit", "stored", "fresh")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--subjects", type=int, nargs="+", default=(1, 10, 100))
    parser.add_argument("--pairs", type=int, default=200, help="pairs for each subject")
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--measure", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.folder, options.subjects[0], options.seconds)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_subjects(folder, max(options.subjects), options.pairs)
        print(f"batches of {BATCH}, load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
        print("reading   subjects   data on disk   pairs/s   pairs/s of processor time   memory added")
        for kind in KINDS:
            for n in options.subjects:
                command = [sys.executable, __file__, "--measure", kind, "--folder", name]
                command += ["--subjects", str(n), "--seconds", str(options.seconds)]
                one_thread = dict.fromkeys(
                    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"
                )
                run = subprocess.run(
                    command, check=True, capture_output=True, text=True, env={**os.environ, **one_thread}
                )
                found = json.loads(run.stdout)
                print(
                    f"{kind:9} {n:8} {found['disk_mb']:11.0f} MB {found['per_second']:9,.0f}"
                    f" {found['per_cpu_second']:27,.0f} {found['memory_mb']:11.1f} MB",
                    flush=True,
                )


def make_subjects(folder: Path, count: int, pairs: int) -> None:
    """Write the patch library and pairs of one subject, and copy both for the others."""
    from training_phantoms import write_libraries

    from iqtflow.training.pairs import pair_dtype

    (library,) = write_libraries(folder, subjects=1, n_draws=1, k=K)
    rng = np.random.default_rng(0)
    explicit = np.zeros(pairs, pair_dtype(K))
    for side in ("low", "high"):
        explicit[side] = rng.random((64, *explicit[side].shape[1:]), dtype=np.float32)[np.arange(pairs) % 64]
    np.save(folder / "sub-0_pairs.npy", explicit)
    header = {"format": 1, "subject": "0", "k": K, "patch": 32, "counts": [pairs], "prior": {}}
    (folder / "sub-0_pairs.json").write_text(json.dumps(header))
    for i in range(1, count):
        shutil.copy(library, folder / f"sub-{i}_patches.safetensors")
        for extension in ("npy", "json"):
            shutil.copy(folder / f"sub-0_pairs.{extension}", folder / f"sub-{i}_pairs.{extension}")


def measure(kind: str, folder: Path, subjects: int, seconds: float) -> dict[str, float]:
    """Read everything once, then measure for some seconds."""
    from iqtflow.training.library import read_library
    from iqtflow.training.pairs import PairSampler, read_pairs
    from iqtflow.training.samplers import Degradation, DrawSampler, StoredSampler

    end = "pairs.npy" if kind == "explicit" else "patches.safetensors"
    paths = [folder / f"sub-{i}_{end}" for i in range(subjects)]
    for path in paths:  # into the page cache
        path.read_bytes()
    before = anonymous_mb()
    same = {"k": K, "batch_size": BATCH, "seed": 0}
    sources = [read_pairs(path) if kind == "explicit" else read_library(path) for path in paths]
    if kind == "explicit":
        sampler = PairSampler(sources, n_draws=1, **same)
        whole = int(sampler.ends[-1]) // BATCH + 1
    elif kind == "stored":
        sampler, whole = StoredSampler(sources, n_draws=1, **same), 5
    else:
        sampler, whole = DrawSampler(sources, degradation=Degradation(), **same), 5
    for number in range(whole):  # map every page once
        sampler.batch(number)
    count, began, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - began < seconds:
        sampler.batch(whole + count)
        count += 1
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    return {
        "per_second": BATCH * count / wall,
        "per_cpu_second": BATCH * count / cpu,
        "memory_mb": anonymous_mb() - before,
        "disk_mb": sum(path.stat().st_size for path in paths) / 1e6,
    }


def anonymous_mb() -> float:
    """Return the memory that belongs to this process alone, in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1e3
    raise RuntimeError("no RssAnon in /proc/self/status: this benchmark needs Linux")


if __name__ == "__main__":
    main()
