"""Pack patch libraries into a small file for a machine without the images, and unpack them there.

    python benchmarks/pack.py pack LIBRARY... --output FOLDER [--limit-mib 38] [--steps 64] [--processes 2]
    python benchmarks/pack.py unpack PACK... --output FOLDER --k 4 8 [--processes 16]

The participant level of ``iqtflow --mode train`` writes patch libraries from any BIDS data set. A library
takes about 35 MB; packed it takes about 1.3 MB. One pack serves all factors k: `unpack` measures what depends
on k, and writes FOLDER/k4, FOLDER/k8, ... People are packed in the order given; where `--limit-mib` is
reached, another pack begins (pack-1.zip, pack-2.zip, ...). List the validation subjects first, so that the
first pack has them.

What is lost: intensities are rounded to 1 / steps of the mean of white matter (largest value 255 / steps),
tissue probabilities to 1 / 15. `pack` prints both errors. Skull-stripped images stay so, whole heads, too.
"""

from __future__ import annotations

import argparse
import bz2
import json
import os
import sys
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from safetensors import safe_open

from iqtflow.training.library import GridSettings, read_library, write_library

COARSEST = 16  #: distance of the voxels that are stored as they are; all others are predicted
MAP_STEPS = 15  #: tissue probabilities have 4 bits


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, what in (("pack", "LIBRARY"), ("unpack", "PACK")):
        command = commands.add_parser(name)
        command.add_argument("files", nargs="+", type=Path, metavar=what)
        command.add_argument("--output", type=Path, required=True, metavar="FOLDER")
        command.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    commands.choices["pack"].add_argument("--limit-mib", type=float, default=38.0)
    commands.choices["pack"].add_argument("--steps", type=int, default=64)
    commands.choices["unpack"].add_argument("--k", type=int, nargs="+", required=True)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    if options.command == "pack":
        pack(options.files, options.output, options.limit_mib, options.steps, options.processes)
    else:
        unpack(options.files, options.output, options.k, options.processes)
    print(f"{options.command}: {time.monotonic() - begin:.0f} s with {options.processes} process(es)")


def pack(files: list[Path], folder: Path, limit_mib: float, steps: int, processes: int) -> None:
    """Write packs of these libraries, each at most `limit_mib` MiB."""
    limit, room, number, archive = limit_mib * 2**20, 0.0, 0, None
    with ProcessPoolExecutor(processes) as pool:
        for path, (parts, told) in zip(files, pool.map(encode, files, [steps] * len(files)), strict=True):
            size = sum(map(len, parts.values())) + 150 * len(parts)  # names and places in the archive
            if archive is None or size > room:
                if archive is not None:
                    archive.close()
                number, room = number + 1, limit - 100
                archive = zipfile.ZipFile(folder / f"pack-{number}.zip", "w")  # parts are compressed already
            subject = json.loads(parts["header"])["subject"]
            for name, content in parts.items():
                archive.writestr(f"{subject}/{name}", content)
            room -= size
            print(f"pack-{number}.zip: {path.name}, {size / 1e6:.2f} MB, {told}", flush=True)
    if archive is not None:
        archive.close()


def encode(path: Path, steps: int) -> tuple[dict[str, bytes], str]:
    """Return the compressed parts of a library, and its errors of rounding in words."""
    library = read_library(path)
    with safe_open(path, framework="numpy") as file:
        made = json.loads(file.metadata()["iqtflow"])
    mask = np.asarray(library.brain) > 0
    intensity = np.asarray(library.intensity, np.float32)
    levels = np.clip(np.rint(intensity * steps), 0, 255).astype(np.uint8)
    wm, gm = (
        np.rint(np.asarray(m)[mask] / (255 / MAP_STEPS)).astype(np.uint8) for m in (library.wm, library.gm)
    )
    # Voxels of one intensity one after the other: most of them have the same probabilities.
    order = np.argsort(levels[mask], kind="stable")
    header = {
        "subject": library.subject,
        "shape": levels.shape,
        "steps": steps,
        "slice_axes": sorted(library.references),
        "grid": made["grid"],
        "seed": made["seed"],
    }
    parts = {
        "levels": residuals(levels).tobytes(),
        "maps": (wm * 16 + gm)[order].tobytes(),
        "mask": np.packbits(mask).tobytes(),
    }
    error = (levels[mask] / steps - intensity[mask]).std()
    of_map = (wm / MAP_STEPS - np.asarray(library.wm)[mask] / 255).std()
    told = f"error of intensities {error:.4f} of white matter, of probabilities {of_map:.4f}"
    return {"header": json.dumps(header).encode(), **{n: bz2.compress(p) for n, p in parts.items()}}, told


def unpack(packs: list[Path], folder: Path, k: list[int], processes: int) -> None:
    """Write the libraries of all subjects in these packs, for each factor k."""
    jobs = []
    for path in packs:
        with zipfile.ZipFile(path) as archive:
            jobs += [
                (path, name.partition("/")[0], folder, k) for name in archive.namelist() if "header" in name
            ]
    with ProcessPoolExecutor(processes) as pool:
        for paths in pool.map(decode, *zip(*jobs, strict=True)):
            print(*paths)


def decode(pack: Path, subject: str, folder: Path, factors: list[int]) -> list[Path]:
    """Write the libraries of one subject in a pack; return their paths."""
    with zipfile.ZipFile(pack) as archive:
        header, *parts = (archive.read(f"{subject}/{name}") for name in ("header", "levels", "maps", "mask"))
    facts = json.loads(header)
    content, maps, bits = (np.frombuffer(bz2.decompress(part), np.uint8) for part in parts)
    shape = tuple(facts["shape"])
    levels = restored(content, shape)
    mask = np.unpackbits(bits, count=levels.size).reshape(shape).astype(bool)
    joint = np.zeros(int(mask.sum()), np.uint8)
    joint[np.argsort(levels[mask], kind="stable")] = maps
    tissues = []
    for values in (joint >> 4, joint & 15):
        tissue = np.zeros(shape, np.float32)
        tissue[mask] = values / MAP_STEPS
        tissues.append(tissue)
    paths = []
    for k in factors:
        paths.append(folder / f"k{k}" / f"sub-{subject}_patches.safetensors")
        write_library(
            paths[-1],
            subject=subject,
            intensity=levels / np.float32(facts["steps"]),
            wm=tissues[0],
            gm=tissues[1],
            mask=mask,
            slice_axes=tuple(facts["slice_axes"]),
            k=k,
            grid=GridSettings(tuple(facts["grid"]["step"]), facts["grid"]["background_limit"]),
            seed=facts["seed"],
        )
    return paths


def residuals(levels: np.ndarray) -> np.ndarray:
    """Return each voxel's difference from what its neighbours predict, from the coarsest grid to the finest.

    Every second plane is predicted from the planes on both sides, then the same along the next axis. The
    predicted voxels are noise around 0, which compresses better than the intensities.
    """
    out = [levels[(slice(None, None, COARSEST),) * 3].ravel()]
    for axis, odd, even in _passes():
        wanted = np.moveaxis(levels[odd], axis, 0)
        if wanted.size:
            out.append((wanted - _predicted(levels[even], axis, len(wanted))).astype(np.uint8).ravel())
    return np.concatenate(out)


def restored(content: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return the intensities that `residuals` were made of."""
    levels, used = np.zeros(shape, np.uint8), 0

    def take(like: np.ndarray) -> np.ndarray:
        nonlocal used
        used += like.size
        return content[used - like.size : used].reshape(like.shape)

    first = levels[(slice(None, None, COARSEST),) * 3]
    first[...] = take(first)
    for axis, odd, even in _passes():
        wanted = np.moveaxis(levels[odd], axis, 0)  # a view
        if wanted.size:
            wanted[...] = (take(wanted) + _predicted(levels[even], axis, len(wanted))).astype(np.uint8)
    return levels


def _passes() -> Iterator[tuple[int, tuple[slice, ...], tuple[slice, ...]]]:
    """Yield axis, predicted voxels and voxels to predict from, from coarse to fine."""
    steps = [COARSEST] * 3
    while steps[2] > 1:
        for axis in range(3):
            before = [slice(None, None, step) for step in steps]
            steps[axis] //= 2
            between = [*before]
            between[axis] = slice(steps[axis], None, 2 * steps[axis])
            yield axis, tuple(between), tuple(before)


def _predicted(known: np.ndarray, axis: int, count: int) -> np.ndarray:
    """Cubic interpolation half-way between the planes of `known`; planes beyond the ends repeat the last."""
    planes = np.moveaxis(known, axis, 0).astype(np.int16)
    at = np.arange(count)
    far, near, next_, beyond = (planes[np.clip(at + shift, 0, len(planes) - 1)] for shift in (-1, 0, 1, 2))
    return np.clip((9 * (near + next_) - far - beyond + 8) >> 4, 0, 255)


if __name__ == "__main__":
    sys.exit(main())
