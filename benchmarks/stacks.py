"""Is one volume made of three scans with orthogonal slices better than the best of the three?

    python benchmarks/stacks.py HIGHFIELD LIBRARIES... [--k 4 8] [--radius MM] [--json FILE]

LIBRARIES are patch libraries of people that the models were not trained on
(``iqtflow HIGHFIELD OUT participant --mode train``). From each, three scans are simulated with slices along
the three axes of the array and a thickness of .75 to 1 of their spacing, with the published prior. The head
moves by up to 5 mm and 5 degrees before the second and the third scan. Scans are skull-stripped. PSNR and
MSSIM are measured in the brain against the high-field volume on the combined grid (one interpolation):

* *best single*: the best of the three enhanced volumes, chosen by the truth and placed by the true motion;
* *mean enhanced*, *mean spline*: means of the three after the registration;
* *combined*: `iqtflow.inference.stacks.combine_stacks`.

*, fitted*: after one linear fit of the intensities to the truth, in the brain.

With --radius only a ball in the middle of the brain is used, which saves computing.
"""

from __future__ import annotations

import argparse
import json
import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine, voxel_sizes
from scipy import ndimage
from scipy.spatial.transform import Rotation

from iqtflow.evaluation.metrics import mssim, psnr
from iqtflow.image.geometry import bounding_box
from iqtflow.inference.pipeline import enhance_image
from iqtflow.inference.rigid import register, resample
from iqtflow.inference.stack_fit import why_unfit
from iqtflow.inference.stacks import Stack, combine_stacks, enhanced_brain
from iqtflow.simulation.artifacts import Extras
from iqtflow.simulation.simulate import SliceStack, draw_scan, prepare_subject, realise
from iqtflow.simulation.snr_prior import DEFAULT_PRIOR, read_prior
from iqtflow.training.library import read_library

AXES = (2, 1, 0)  #: slice axes of the three scans; the first is not moved
MOST_MM, MOST_DEGREES = 5.0, 5.0
THICKNESS = (0.75, 1.0)  #: over spacing


@dataclass(frozen=True)
class Head:
    """A high-field head and its maps on one grid."""

    intensity: np.ndarray
    wm: np.ndarray
    gm: np.ndarray
    brain: np.ndarray
    affine: np.ndarray


def read_head(highfield: Path, library: Path) -> Head:
    """Read a patch library, and the place of its grid."""
    one = read_library(library)
    image = nib.load(next((highfield / f"sub-{one.subject}" / "anat").glob("*_T1w.nii.gz")))
    affine = image.affine.copy()
    affine[:3, 3] = apply_affine(affine, one.origin)
    intensity = np.asarray(one.intensity, np.float32) * one.unit
    maps = (np.asarray(m, np.float32) / 255 for m in (one.wm, one.gm))
    return Head(intensity, *maps, np.asarray(one.brain) > 127, affine)


def draw_motion(head: Head, rng: np.random.Generator) -> np.ndarray:
    """Return a rigid motion about the middle of the brain, world to world (mm)."""
    direction, axis = (v / np.linalg.norm(v) for v in rng.normal(size=(2, 3)))
    turn = Rotation.from_rotvec(axis * np.deg2rad(MOST_DEGREES) * rng.uniform()).as_matrix()
    centre = apply_affine(head.affine, np.argwhere(head.brain).mean(axis=0))
    motion = np.eye(4)
    motion[:3, :3] = turn
    motion[:3, 3] = centre - turn @ centre + direction * MOST_MM * rng.uniform()
    return motion


def move(head: Head, motion: np.ndarray) -> Head:
    """Return the head after a motion, on the same grid."""
    back = np.linalg.inv(head.affine) @ np.linalg.inv(motion) @ head.affine

    def moved(volume: np.ndarray, order: int) -> np.ndarray:
        return ndimage.affine_transform(volume, back[:3, :3], back[:3, 3], order=order)

    intensity = np.maximum(moved(head.intensity, 3), 0)
    maps = (np.clip(moved(m, 1), 0, 1) for m in (head.wm, head.gm))
    return Head(intensity, *maps, moved(head.brain.astype(np.float32), 1) > 0.5, head.affine)


def cut(head: Head, radius_mm: float | None) -> Head:
    """Keep a ball in the middle of the brain, and a margin of air: a small head, for less computing."""
    sizes = voxel_sizes(head.affine)
    if radius_mm is None:
        kept = head.brain
    else:
        centre = np.argwhere(head.brain).mean(axis=0)
        away = sum(
            ((g - c) * s) ** 2
            for g, c, s in zip(np.ogrid[tuple(map(slice, head.brain.shape))], centre, sizes, strict=True)
        )
        kept = head.brain & (away < radius_mm**2)
    box = bounding_box(kept, round((MOST_MM + 2) / float(sizes.min())))
    affine = head.affine.copy()
    affine[:3, 3] = apply_affine(affine, [part.start for part in box])
    volumes = (np.where(kept, v, np.float32(0))[box] for v in (head.intensity, head.wm, head.gm))
    return Head(*volumes, kept[box], affine)


def simulate(head: Head, k: int, seed: int) -> tuple[list[nib.Nifti1Image], list[dict], list[np.ndarray]]:
    """Return three skull-stripped scans, their sidecars, and the motion of the head before each."""
    rng = np.random.default_rng([seed, k])
    scans, sidecars, motions = [], [], []
    for number, axis in enumerate(AXES):
        motion = draw_motion(head, rng) if number else np.eye(4)
        moved = move(head, motion) if number else head
        spacing = k * float(voxel_sizes(head.affine)[axis])
        stack = SliceStack(axis, spacing, spacing * float(rng.uniform(*THICKNESS)))
        draw = draw_scan(read_prior(DEFAULT_PRIOR), Extras(), stack, seed=1000 * seed + 10 * k + number)
        maps = (moved.wm, moved.gm)
        thick = prepare_subject(moved.intensity, maps, head.affine, stack, fwhm_mm=draw.fwhm_mm)
        scan = np.maximum(realise(thick, draw), 0)
        n = scan.shape[axis]
        shape = [n if a == axis else m for a, m in enumerate(moved.brain.shape)]
        brain = np.take(moved.brain, range(n * k), axis=axis)
        brain = np.moveaxis(brain, axis, 0).reshape(n, k, *np.delete(shape, axis)).any(axis=1)
        scan *= np.moveaxis(brain, 0, axis)
        scans.append(nib.Nifti1Image(scan.astype(np.float32), thick.affine))
        sidecars.append({"SliceThickness": stack.thickness_mm, "SkullStripped": True})
        motions.append(motion)
    return scans, sidecars, motions


def enhance_all(head: Head, k: int, seed: int, person: str) -> tuple[list[Stack], list, list[np.ndarray]]:
    """Return the enhanced scans, their splines, and the motions."""
    scans, sidecars, motions = simulate(head, k, seed)
    stacks, splines = [], []
    for number, (scan, sidecar) in enumerate(zip(scans, sidecars, strict=True)):
        made = enhance_image(scan, sidecar=sidecar, model=f"iqt-k{k}")
        name = f"{person}, slices along axis {AXES[number]}"
        stacks.append(Stack(name, scan, made.mean, made.std, made.mask, sidecar, made.details))
        splines.append(made.spline)
    return stacks, splines, motions


def judge(
    person: str, head: Head, k: int, seed: int, stranger: Stack | None, saved: Path | None
) -> tuple[dict, Stack]:
    """Return the figures of a person, and a scan of this person that others do not know."""
    stacks, splines, motions = enhance_all(head, k, seed, person)
    made = combine_stacks(stacks)
    shape, grid = made.mean.shape, made.mean.affine

    def sampled(volume: np.ndarray, affine: np.ndarray, matrix: np.ndarray, order: int = 3) -> np.ndarray:
        return np.maximum(resample(volume, np.linalg.inv(affine) @ matrix @ grid, shape, order=order), 0)

    here = np.eye(4)
    truth = sampled(head.intensity, head.affine, here)
    brain = sampled(head.brain.astype(np.float32), head.affine, here, 1) > 0.5
    brain = ndimage.binary_erosion(brain, iterations=2)  # the cut is no anatomy
    near = bounding_box(brain, 8)
    found = [np.array(s.get("Matrix", here)) for s in made.details["Stacks"]]
    gains = [s.get("Gain", 1.0) for s in made.details["Stacks"]]
    row: dict = {"person": person, "k": k, "used": [s["Used"] for s in made.details["Stacks"]]}

    def score(name: str, volume: np.ndarray) -> None:
        row[f"psnr {name}"] = psnr(truth[near], volume[near], brain[near])
        row[f"mssim {name}"] = mssim(truth[near], volume[near], brain[near])
        line = np.polynomial.Polynomial.fit(volume[brain], truth[brain], 1)
        fitted = line(volume).astype(np.float32)
        row[f"psnr {name}, fitted"] = psnr(truth[near], fitted[near], brain[near])
        row[f"mssim {name}, fitted"] = mssim(truth[near], fitted[near], brain[near])

    def data(image: nib.Nifti1Image) -> np.ndarray:
        return np.asarray(image.dataobj, np.float32)

    singles = [sampled(data(s.mean), s.mean.affine, m) for s, m in zip(stacks, motions, strict=True)]
    best = max(singles, key=lambda v: psnr(truth[near], v[near], brain[near]))
    score("best single", best)
    parts = zip(stacks, found, gains, strict=True)
    score("mean enhanced", sum(g * sampled(data(s.mean), s.mean.affine, m) for s, m, g in parts) / 3)
    parts = zip(splines, found, gains, strict=True)
    score("mean spline", sum(g * sampled(data(s), s.affine, m) for s, m, g in parts) / 3)
    score("combined", data(made.mean))
    if saved is not None:
        volumes = {"truth": truth, "brain": brain, "best": best, "combined": data(made.mean)}
        for name, volume in volumes.items():
            nib.save(nib.Nifti1Image(volume.astype(np.float32), grid), saved / f"{person}_k{k}_{name}.nii.gz")
        for number, (stack, motion) in enumerate(zip(stacks, motions, strict=True), 1):
            place = np.linalg.inv(motion) @ stack.scan.affine
            nib.save(stack.scan, saved / f"{person}_k{k}_scan{number}.nii.gz")
            nib.save(nib.Nifti1Image(data(stack.scan), place), saved / f"{person}_k{k}_placed{number}.nii.gz")
    error = (data(made.mean) - truth)[brain]
    row["error over predicted"] = float(np.sqrt(np.mean(error**2) / np.mean(data(made.std)[brain] ** 2)))
    points = apply_affine(grid, np.argwhere(brain)[::97])
    for number in (1, 2):
        apart = apply_affine(found[number], points) - apply_affine(motions[number], points)
        turn = found[number][:3, :3] @ motions[number][:3, :3].T
        row[f"moved {number}"] = made.details["Stacks"][number]["TranslationMm"]
        row[f"turned {number}"] = made.details["Stacks"][number]["RotationDegrees"]
        row[f"off mm {number}"] = float(np.linalg.norm(apart, axis=1).mean())
        row[f"off degrees {number}"] = float(np.degrees(np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1))))
        row[f"overlap {number}"] = made.details["Stacks"][number]["BrainOverlap"]
        row[f"correlation {number}"] = made.details["Stacks"][number]["Correlation"]
    row["correlation of errors"] = made.details["ErrorCorrelation"]
    row["error scale"] = made.details["ErrorScale"]
    row["residual"] = [s["DataConsistency"]["ResidualRMS"] for s in made.details["Stacks"] if s["Used"]]
    row["seconds"], row["peak GB"] = made.details["Seconds"], made.details["PeakMemoryGB"]
    if stranger is not None:
        fit = register(enhanced_brain(stacks[0]), enhanced_brain(stranger))
        row["stranger"] = {
            "overlap": fit.overlap,
            "correlation": fit.correlation,
            "told": bool(why_unfit(fit)),
        }
    return row, stacks[1]


def render(rows: list[dict]) -> str:
    """Return the tables as Markdown."""
    names = ("best single", "mean enhanced", "mean spline", "combined")
    lines = [
        "| k | people | " + " | ".join(f"{n}, PSNR (dB) / MSSIM" for n in names) + " | error / predicted |"
    ]
    lines.append("|---" * (3 + len(names)) + "|")
    for k in sorted({row["k"] for row in rows}):
        own = [row for row in rows if row["k"] == k]
        cells = [
            f"{np.mean([r[f'psnr {n}'] for r in own]):.2f} / {np.mean([r[f'mssim {n}'] for r in own]):.4f}"
            for n in names
        ]
        ratio = [r["error over predicted"] for r in own]
        cells.append(f"{np.mean(ratio):.2f} ({min(ratio):.2f} to {max(ratio):.2f})")
        lines.append(f"| {k} | {len(own)} | " + " | ".join(cells) + " |")
        cells = [
            f"{np.mean([r[f'psnr {n}, fitted'] for r in own]):.2f} / "
            f"{np.mean([r[f'mssim {n}, fitted'] for r in own]):.4f}"
            for n in names
        ]
        lines.append(f"| {k} | {len(own)}, fitted | " + " | ".join(cells) + " |  |")
    header = ["person", "k", *names, "motion (mm, degrees)", "error of the motion found"]
    header += ["correlation, same person", "correlation, another person"]
    lines += ["", f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for r in rows:
        psnrs = " | ".join(f"{r[f'psnr {n}']:.2f}" for n in names)
        moved = "; ".join(f"{r[f'moved {n}']:.1f}, {r[f'turned {n}']:.1f}" for n in (1, 2))
        off = "; ".join(f"{r[f'off mm {n}']:.2f}, {r[f'off degrees {n}']:.2f}" for n in (1, 2))
        same = ", ".join(f"{r[f'correlation {n}']:.3f}" for n in (1, 2))
        other = r.get("stranger")
        told = f"{other['correlation']:.3f}, {'told' if other['told'] else 'not told'}" if other else ""
        lines.append(f"| {r['person']} | {r['k']} | {psnrs} | {moved} | {off} | {same} | {told} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("highfield", type=Path)
    parser.add_argument("libraries", type=Path, nargs="+")
    parser.add_argument("--k", type=int, nargs="+", default=[4])
    parser.add_argument("--radius", type=float, help="radius in mm of the ball that is kept; all without it")
    parser.add_argument("--save", type=Path, metavar="DIR", help="write the scans and volumes there")
    parser.add_argument("--json", type=Path, help="rows of an earlier call are kept")
    options = parser.parse_args()
    if options.save:
        options.save.mkdir(parents=True, exist_ok=True)
    rows: list[dict] = []
    if options.json and options.json.exists():
        rows = json.loads(options.json.read_text())
    done = {(row["person"], row["k"]) for row in rows}
    for k in options.k:
        stranger = None
        for path in options.libraries:
            person = path.name.split("_")[0]
            if (person, k) in done:
                continue
            head = cut(read_head(options.highfield, path), options.radius)
            row, stranger = judge(person, head, k, zlib.crc32(person.encode()) % 1000, stranger, options.save)
            rows.append(row)
            print(json.dumps(row), flush=True)
            if options.json:
                options.json.write_text(json.dumps(rows, indent=1) + "\n")
    print(render(rows))


if __name__ == "__main__":
    main()
