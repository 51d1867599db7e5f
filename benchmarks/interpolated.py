"""Scans that were interpolated before: is it measured, and are they as good as slices once brought back?

    python benchmarks/interpolated.py LIBRARIES... [--scans BIDS...] [--output PAGE] [--parts PARTS...]

LIBRARIES are patch libraries (``*_patches.safetensors``) of people that no model was trained on, as
``iqtflow ... participant --mode train`` writes them. Thick slices are simulated from them with the paper's
setting (one draw), then interpolated to the thin grid.

*resolution*: for k = 3 to 8 and several kinds of interpolation, what was put in against what was measured,
and how far the slices that were found are from the true ones. *scans*: every scan of the BIDS data sets,
which were not interpolated from thick slices: how many are taken for such? *enhance*: PSNR and MSSIM in the
brain of enhanced slices (k = 4 and 8, shipped models, 64 x 64 voxels of the plane) directly, and after
interpolation with a random phase and ``--acquired-spacing``; and of the interpolated scan itself, which is
what users have without it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from scipy import ndimage

from iqtflow.evaluation.metrics import mssim, psnr
from iqtflow.image.acquired_slices import back_to_slices
from iqtflow.image.geometry import sample_spline, slices_last
from iqtflow.image.intensity import intensity_scale
from iqtflow.image.orientation import placed_like
from iqtflow.image.resampling import to_grid
from iqtflow.image.resolution import find_slices, measure_resolution
from iqtflow.image.validate import check_scan
from iqtflow.inference.predict import enhance_volume
from iqtflow.models.model_file import load_model
from iqtflow.simulation.artifacts import Extras
from iqtflow.simulation.simulate import draw_scan, plan_slices, prepare_subject, realise
from iqtflow.simulation.snr_prior import read_prior
from iqtflow.training.library import PatchLibrary, read_library

FACTORS = (3, 5, 8)
KINDS = ("spline", "linear", "windowed sinc", "nearest", "zero-filled", "spline, turned by 8 degrees")
PLANE = 64  #: edge of the part that is enhanced, in voxels of the plane
#: Voxel sizes (mm) and slice axis of the two kinds of people in the development data, by first letter.
GRIDS = {"A": ((0.87, 0.87, 1.0), 0), "B": ((1.0, 1.33, 1.33), 1)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("libraries", type=Path, nargs="+")
    parser.add_argument("--scans", type=Path, nargs="*", default=[])
    parser.add_argument("--output", type=Path)
    parser.add_argument("--parts", nargs="+", default=["resolution", "enhance"])
    options = parser.parse_args()
    people = [read_library(path) for path in options.libraries]
    pages = []
    if "resolution" in options.parts:
        pages.append(resolution_table([row for person in people for row in resolution_rows(person)]))
    if options.scans:
        pages.append(scans_table(options.scans))
    if "enhance" in options.parts:
        pages.append(enhance_table([row for person in people for row in enhance_rows(person)]))
    text = "\n\n".join(pages) + "\n"
    print(text)
    if options.output:
        options.output.write_text(text)


# --- scans that are simulated and interpolated ---


def simulate(person: PatchLibrary, k: int) -> dict:
    """Return a thick-slice scan with its affine, and the thin truth, brain and affine; slices last."""
    letter = person.subject.removeprefix("hf")[0]
    sizes, axis = GRIDS[letter]
    thin = np.diag([*sizes, 1.0])

    def cut(volume: np.ndarray) -> np.ndarray:
        laid = slices_last(np.asarray(volume), thin, axis)[0]
        return laid[..., : laid.shape[2] // k * k].astype(np.float32)

    truth, (wm, gm, brain) = (
        cut(person.intensity),
        (cut(m) / 255 for m in (person.wm, person.gm, person.brain)),
    )
    affine = np.diag([*np.delete(sizes, axis), sizes[axis], 1.0])
    stack = plan_slices(sizes[axis], axis=2, k=k)
    draw = draw_scan(read_prior("ibadan-0.36T"), Extras(), stack, seed=k)
    subject = prepare_subject(truth, (wm, gm), affine, stack, fwhm_mm=draw.fwhm_mm)
    scan = np.asarray(realise(subject, draw))
    return {"scan": scan, "thick": subject.affine, "truth": truth, "brain": brain > 0.5, "thin": affine}


def interpolate(scan: np.ndarray, k: int, kind: str, shift: float) -> np.ndarray:
    """Interpolate slices to thin ones, which start `shift` thin voxels later than those of the truth."""
    n = scan.shape[2]
    at = np.clip((np.arange(n * k) + shift - (k - 1) / 2) / k, 0, n - 1)
    if kind.startswith("spline"):
        return sample_spline(np.asarray(scan, np.float32), 2, at)
    if kind == "nearest":
        return scan[..., np.round(at).astype(int)]
    apart = at[:, None] - np.arange(n)
    if kind == "linear":
        weights = np.maximum(1 - np.abs(apart), 0)
    elif kind == "windowed sinc":
        weights = np.sinc(apart) * np.where(np.abs(apart) < 5, np.cos(np.pi * apart / 10) ** 2, 0)
    else:  # all frequencies of the slices and no others, as by zero-filling; mirrored to be periodic
        period = 2 * n
        turns = np.fft.fftfreq(period)[:, None]
        wave = np.exp(2j * np.pi * turns * np.arange(period))
        weights = np.real(np.exp(2j * np.pi * at[:, None] * turns.T) @ wave.conj()) / period
        weights = weights[:, :n] + weights[:, n:][:, ::-1]
    weights = weights / weights.sum(axis=1, keepdims=True)
    return scan @ weights.T.astype(np.float32)


def turn(volume: np.ndarray, affine: np.ndarray, degrees: float = 8.0) -> np.ndarray:
    """Rotate a volume about two axes, as a registration does."""
    a, b = np.deg2rad([degrees, 0.6 * degrees])
    one = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    two = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    matrix = np.linalg.inv(affine[:3, :3]) @ one @ two @ affine[:3, :3]
    centre = (np.array(volume.shape) - 1) / 2
    return ndimage.affine_transform(volume, matrix, centre - matrix @ centre, order=3, output=np.float32)


# --- the three measurements ---


def resolution_rows(person: PatchLibrary) -> list[dict]:
    rows = []
    rng = np.random.default_rng(0)
    for k in FACTORS:
        made = simulate(person, k)
        spacing = k * made["thin"][2, 2]
        for kind in KINDS:
            shift = float(rng.uniform(0, k))
            volume = interpolate(made["scan"], k, kind, shift)
            if "turned" in kind:
                volume = turn(volume, made["thin"])
            found = measure_resolution(volume, made["thin"])
            first, how = find_slices(volume, made["thin"], 2, spacing)
            off = (first - ((k - 1) / 2 - shift) + k / 2) % k - k / 2
            row = {"person": person.subject, "k": k, "kind": kind, "spacing": spacing}
            row |= {"measured": found.mm[2], "found": found.found[2], "coarse": found.coarse_axis}
            rows.append({**row, "off": off, "how": how})
            print(json.dumps(rows[-1]), flush=True)
    return rows


def resolution_table(rows: list[dict]) -> str:
    people = len({row["person"] for row in rows})
    lines = [
        f"## What was put in, and what was measured\n\n{people} people, k = {', '.join(map(str, FACTORS))}, "
        "a random phase each.\n",
        "| interpolation | measured / true spacing, median (range) | recognised, axis right | places of the "
        "slices found | their error, median (largest), thin voxels |\n|---|---|---|---|---|",
    ]
    for kind in KINDS:
        some = [row for row in rows if row["kind"] == kind]
        ratios = [row["measured"] / row["spacing"] for row in some]
        placed = [abs(row["off"]) for row in some if row["how"] != "centred"]
        error = f"{np.median(placed):.2f} ({max(placed):.2f})" if placed and "turned" not in kind else "–"
        lines.append(
            f"| {kind} | {np.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) | "
            f"{sum(row['coarse'] == 2 for row in some)} of {len(some)} | {len(placed)} | {error} |"
        )
    return "\n".join(lines)


def scans_table(folders: list[Path]) -> str:
    lines = [
        "## Scans that were not interpolated from thick slices\n",
        "| scans | number | taken for interpolated | largest resolution / voxel size along an axis, median "
        "(range) |\n|---|---|---|---|",
    ]
    groups: dict[str, list] = {}
    for folder in folders:
        for path in sorted(folder.glob("sub-*/anat/*.nii.gz")):
            image = check_scan(path)
            found = measure_resolution(np.asarray(image.dataobj), image.affine)
            group = path.name.split("-")[1].removeprefix("hf").removeprefix("lf")[0]
            ratio = max(
                mm / size for mm, size in zip(found.mm, found.voxel_mm, strict=True) if mm is not None
            )
            groups.setdefault(group, []).append((found.coarse_axis is not None, ratio, path.name))
            print(path.name, found.words(), found.found, found.coarse_axis, flush=True)
    for group, some in sorted(groups.items()):
        ratios = [ratio for _, ratio, _ in some]
        lines.append(
            f"| {group}* | {len(some)} | {sum(coarse for coarse, _, _ in some)} | {np.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f}) |"
        )
    return "\n".join(lines)


def enhance_rows(person: PatchLibrary) -> list[dict]:
    rows = []
    rng = np.random.default_rng(1)
    for k in (4, 8):
        made, model = simulate(person, k), load_model(f"iqt-k{k}")
        thin, truth, brain = made["thin"], made["truth"], made["brain"]
        middle = tuple(slice(max(n // 2 - PLANE // 2, 0), n // 2 + PLANE // 2) for n in brain.shape[:2])
        tissue = ndimage.zoom(brain, (1, 1, 1 / k), order=0)[..., : made["scan"].shape[2]]
        scale = intensity_scale(made["scan"][tissue])

        def score(
            name: str, volume: np.ndarray, affine: np.ndarray,
            *, k=k, thin=thin, truth=truth, brain=brain, middle=middle,
        ) -> None:  # fmt: skip
            volume = to_grid(volume, affine, truth[middle].shape, _shifted(thin, middle))
            part = truth[middle], volume, brain[middle]
            rows.append({"person": person.subject, "k": k, "name": name})
            rows[-1] |= {"psnr": psnr(*part), "mssim": mssim(*part)}
            print(json.dumps(rows[-1]), flush=True)

        def enhance(scan: np.ndarray, affine: np.ndarray, *, k=k, model=model, scale=scale, middle=middle):
            estimate = enhance_volume(np.ascontiguousarray(scan[middle]), model, scale=scale).mean
            grid = _shifted(affine, middle)
            grid[2, 2] /= k
            grid[2, 3] -= grid[2, 2] * (k - 1) / 2
            return estimate, grid

        score("slices enhanced directly", *enhance(made["scan"], made["thick"]))
        for kind in ("spline", "linear"):
            shift = float(rng.uniform(0, k))
            volume = interpolate(made["scan"], k, kind, shift)
            affine = thin.copy()
            affine[2, 3] += shift * thin[2, 2]
            score(f"{kind}: as it is", volume[middle], _shifted(affine, middle))
            image = placed_like(volume, affine, None)
            found = measure_resolution(volume, affine)
            back, slices = back_to_slices(image, k * thin[2, 2], "z", resolution=found)
            score(f"{kind}: --acquired-spacing", *enhance(np.asarray(back.dataobj), back.affine))
            rows[-1]["how"] = slices.how
    return rows


def enhance_table(rows: list[dict]) -> str:
    names = list(dict.fromkeys(row["name"] for row in rows))
    lines = [
        f"## Enhanced volumes\n\n{len({row['person'] for row in rows})} people; mean, and smallest and "
        "largest difference from the slices enhanced directly.\n",
        "| | k | PSNR | difference | MSSIM | difference |\n|---|---|---|---|---|---|",
    ]
    for k in (4, 8):
        for name in names:
            told = []
            for key, digits in (("psnr", 2), ("mssim", 3)):
                some, direct = (
                    np.array([row[key] for row in rows if row["k"] == k and row["name"] == which])
                    for which in (name, names[0])
                )
                more = some - direct
                told += [f"{some.mean():.{digits}f}"]
                told += ["" if name == names[0] else f"{more.min():+.{digits}f} to {more.max():+.{digits}f}"]
            lines.append(f"| {name} | {k} | {told[0]} dB | {told[1]} | {told[2]} | {told[3]} |")
    return "\n".join(lines)


def _shifted(affine: np.ndarray, box: tuple[slice, ...]) -> np.ndarray:
    """Return the affine of a part of a volume."""
    out = affine.copy()
    for axis, part in enumerate(box):
        out[:3, 3] += affine[:3, axis] * part.start
    return out


if __name__ == "__main__":
    main()
