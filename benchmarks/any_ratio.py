"""Gain over the cubic spline for any ratio of slice spacing to plane, and for scans with coarse planes.

    python benchmarks/any_ratio.py curve    LIBRARY... [--models NAME|PATH ...] [--keep FILE] [--picture PNG]
    python benchmarks/any_ratio.py portable LIBRARY... [--models ...] [--before NAME|PATH] [--keep FILE]

LIBRARY is the patch library of a person whom no model was trained on (participant level of ``iqtflow --mode
train``). Lengths are in its voxels, about 1 mm. Scans are simulated from it: slices of any spacing, the
paper's SNR, and noise. The estimate is sampled once along each axis, by cubic B-splines, at the places of the
high-field voxels, and compared with them in the brain.

``curve`` enhances scans of all ratios and thicknesses by the model that the package would choose.
``portable`` simulates a portable scanner: voxels of 1.6 x 1.6 x 5 and low SNR. It compares the plane brought
to 1 mm before the network (``--voxel-size 1``) with the plane kept and interpolated afterwards, by the same
models and by an older one (--before).

A run that was stopped goes on with the next scan if --keep is given.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from iqtflow.evaluation.metrics import mssim, psnr
from iqtflow.image.geometry import RATIO_OVER_K, bounding_box, sample_spline
from iqtflow.image.intensity import intensity_scale
from iqtflow.inference.predict import enhance_volume
from iqtflow.models.model_file import Model, list_shipped, load_model
from iqtflow.simulation.forward_model import add_noise, contrast_ratios, recontrast
from iqtflow.simulation.slice_profile import FWHM_TO_SIGMA, profile_matrix
from iqtflow.simulation.snr_prior import PUBLISHED
from iqtflow.training.library import PatchLibrary, read_library

RATIOS = tuple(np.round(1.5 * 8 ** (np.arange(25) / 24), 2).tolist())  # 25 from 1.5 to 12, equal in octaves
PLANE, SPACING, THICKNESS, SNR_SCALE = 1.6, 5.0, 0.9, 0.35  # of the portable scanner


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("curve", "portable"):
        command = commands.add_parser(name)
        command.add_argument("libraries", nargs="+", type=Path)
        command.add_argument("--models", nargs="+", help="models, one for each factor (default: shipped)")
        command.add_argument("--keep", type=Path, help="JSON lines, one for each scan")
        command.add_argument("--picture", type=Path, help="the curve, or the last person's volumes")
    commands.choices["curve"].add_argument("--ratios", nargs="+", type=float, default=RATIOS)
    commands.choices["curve"].add_argument("--thickness", nargs="+", type=float, default=[0.6, 1.0])
    commands.choices["curve"].add_argument("--middle", type=int, default=10**4, help="voxels of the plane")
    commands.choices["portable"].add_argument("--before", default=None)
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = options.models or [info.name for info in list_shipped()]
    models = {model.k: model for model in map(load_model, names)}
    libraries = [read_library(path) for path in options.libraries]
    if options.command == "curve":
        jobs = (
            {"subject": library.subject, "ratio": ratio, "thickness": share}
            for library in libraries
            for ratio in options.ratios
            for share in options.thickness
        )

        def work(job: dict[str, Any]) -> dict[str, Any]:
            scan = {name: value for name, value in job.items() if name != "subject"}
            return measure(find(libraries, job), models, options.middle, **scan)

        rows = run(jobs, options.keep, work)
        print_curve(rows)
        if options.picture:
            draw_curve(rows, options.picture)
        return
    before = load_model(options.before) if options.before else None
    jobs = ({"subject": library.subject} for library in libraries)
    rows = run(jobs, options.keep, lambda job: measure_portable(find(libraries, job), models, before))
    print_portable(rows)
    if options.picture:
        draw_portable(libraries[-1], models, options.picture)


def run(jobs: Iterable[dict[str, Any]], keep: Path | None, work: Any) -> list[dict[str, Any]]:
    """Do all jobs that `keep` has no row of; return the rows."""
    there = [json.loads(line) for line in keep.read_text().splitlines()] if keep and keep.exists() else []
    rows = []
    for job in jobs:
        row = next((old for old in there if job.items() <= old.items()), None)
        if row is None:
            row = {**job, **work(job)}
            if keep:
                with keep.open("a") as file:
                    file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)
        rows.append(row)
    return rows


def find(libraries: list[PatchLibrary], job: dict[str, Any]) -> PatchLibrary:
    """Return the library of the job's subject."""
    return next(library for library in libraries if library.subject == job["subject"])


class Person:
    """High-field volume, maps and brain, slices last, and simulated scans of it.

    Of the plane, the `middle` voxels along each axis are kept.
    """

    def __init__(self, library: PatchLibrary, middle: int = 10**4) -> None:
        self.axis = sorted(library.references)[0]
        arrays = (library.intensity, library.wm, library.gm, library.brain)
        shape = [n for axis, n in enumerate(library.brain.shape) if axis != self.axis]
        plane = tuple(slice(max((n - middle) // 2, 0), (n + middle) // 2) for n in shape)
        self.high, wm, gm, brain = (
            np.moveaxis(np.asarray(array), self.axis, 2)[plane].astype(np.float32) for array in arrays
        )
        self.wm, self.gm, self.brain = wm / 255, gm / 255, brain > 0
        self.means = library.mean_wm, library.mean_gm
        self.seed = list(library.subject.encode())

    def simulate(
        self, ratio: float, thickness: float, *, plane: float = 1.0, snr_scale: float = 1.0
    ) -> np.ndarray:
        """Simulate a scan of voxels `plane` x `plane` x `ratio`."""
        rng = np.random.default_rng(self.seed)
        snr = np.multiply(PUBLISHED["ibadan-0.36T"].sample(rng), snr_scale)
        ratios = contrast_ratios((snr[0], snr[1]), *self.means)
        matrix = profile_matrix(self.high.shape[2], ratio, thickness * ratio).T
        thick = (torch.from_numpy(volume @ matrix) for volume in (self.high, self.wm, self.gm))
        clean = recontrast(*thick, ratios.wm, ratios.gm)
        if plane > 1:
            clean = torch.from_numpy(shrink_plane(clean.numpy(), plane))
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)) + round(100 * ratio))
        return add_noise(clean, ratios.sigma, generator).numpy().astype(np.float32)

    def score(self, estimate: np.ndarray, name: str) -> dict[str, float]:
        """PSNR and MSSIM in the part of the brain that the slices cover."""
        n = estimate.shape[2]
        brain = self.brain[:, :, :n]
        near = bounding_box(brain, 8)
        found = (self.high[:, :, :n][near], np.clip(estimate, 0, None)[near], brain[near])
        return {f"{name}_psnr": round(psnr(*found), 3), f"{name}_mssim": round(mssim(*found), 4)}


def shrink_plane(volume: np.ndarray, step: float) -> np.ndarray:
    """Average and down-sample the plane to voxels `step` times as wide; the centre stays."""
    for axis in (0, 1):
        volume = ndimage.gaussian_filter1d(volume, np.sqrt(step**2 - 1) * FWHM_TO_SIGMA, axis, mode="nearest")
        volume = along(volume, axis, step, int(volume.shape[axis] / step))
    return volume


def along(volume: np.ndarray, axis: int, step: float, count: int) -> np.ndarray:
    """Sample an axis by cubic B-splines at `count` places `step` apart, about its centre."""
    where = (volume.shape[axis] - 1) / 2 + step * (np.arange(count) - (count - 1) / 2)
    return at(volume, axis, where)


def at(volume: np.ndarray, axis: int, where: np.ndarray) -> np.ndarray:
    """Sample an axis by cubic B-splines."""
    return sample_spline(np.asarray(volume, np.float32), axis, where)


def enhance(scan: np.ndarray, models: dict[int, Model], ratio: float) -> tuple[np.ndarray, int]:
    """Enhance by the model that the package would choose; return the thin slices and the factor."""
    k = min((k for k in models if ratio <= RATIO_OVER_K[1] * k), default=max(models))
    bright = scan[scan > 0.5 * np.percentile(scan, 99)]
    return enhance_volume(scan, models[k], scale=intensity_scale(bright)).mean, k


def thin_places(n: int, ratio: float, k: int = 1) -> np.ndarray:
    """Places of the first `n` high-field slices among slices of `ratio`, cut in `k` each (slab-centred)."""
    return k * (np.arange(n) - (ratio - 1) / 2) / ratio + (k - 1) / 2


def measure(
    library: PatchLibrary, models: dict[int, Model], middle: int, *, ratio: float, thickness: float
) -> dict[str, Any]:
    """Scores of spline and estimate for one scan."""
    person = Person(library, middle)
    scan = person.simulate(ratio, thickness)
    n = int(scan.shape[2] * ratio)
    thin, k = enhance(scan, models, ratio)
    return {
        "k": k,
        **person.score(at(scan, 2, thin_places(n, ratio)), "spline"),
        **person.score(at(thin, 2, thin_places(n, ratio, k)), "iqt"),
    }


def measure_portable(library: PatchLibrary, models: dict[int, Model], before: Model | None) -> dict[str, Any]:
    """Scores of the ways to bring a scan with coarse planes to the high-field grid."""
    person = Person(library)
    found = ways_of_portable(person, models)
    if before is not None:
        old = ways_of_portable(person, {before.k: before})
        found |= {"before": old["plane_kept"], "before_first": old["plane_first"]}
    row: dict[str, Any] = {}
    for name, volume in found.items():
        row |= person.score(volume, name)
    return row


def ways_of_portable(person: Person, models: dict[int, Model]) -> dict[str, np.ndarray]:
    """Return a portable scan on the high-field grid: by splines, and enhanced in two ways."""
    scan = person.simulate(SPACING, THICKNESS, plane=PLANE, snr_scale=SNR_SCALE)
    n = int(scan.shape[2] * SPACING)

    def widened(volume: np.ndarray) -> np.ndarray:
        for axis in (0, 1):
            volume = along(volume, axis, 1 / PLANE, person.high.shape[axis])
        return volume

    def sliced(thin: np.ndarray, k: int) -> np.ndarray:
        return at(thin, 2, thin_places(n, SPACING, k))

    thin, k = enhance(scan, models, SPACING / PLANE)
    return {
        "spline": sliced(widened(scan), 1),
        "plane_first": sliced(*enhance(widened(scan), models, SPACING)),
        "plane_kept": sliced(widened(thin), k),
    }


def print_curve(rows: list[dict[str, Any]]) -> None:
    """Print a line for each ratio: mean over people and thicknesses, and the largest step."""
    print("ratio  k  spline dB  MSSIM  iqt dB  MSSIM  gain dB  smallest")
    gains = []
    for ratio in sorted({row["ratio"] for row in rows}):
        these = [row for row in rows if row["ratio"] == ratio]
        gain = [row["iqt_psnr"] - row["spline_psnr"] for row in these]
        gains.append(float(np.mean(gain)))
        mean = {key: np.mean([row[key] for row in these]) for key in these[0] if "_" in key}
        print(
            f"{ratio:5g} {these[0]['k']:2d}  {mean['spline_psnr']:9.2f}  {mean['spline_mssim']:.3f}  "
            f"{mean['iqt_psnr']:6.2f}  {mean['iqt_mssim']:.3f}  {gains[-1]:7.2f}  {min(gain):8.2f}"
        )
    print(f"largest step between neighbours: {max(np.abs(np.diff(gains)), default=0):.2f} dB")


def print_portable(rows: list[dict[str, Any]]) -> None:
    """Print a line for each way: mean over people."""
    for name in ("spline", "before", "before_first", "plane_kept", "plane_first"):
        if f"{name}_psnr" in rows[0]:
            values = [[row[f"{name}_{score}"] for row in rows] for score in ("psnr", "mssim")]
            gain = np.subtract(values[0], [row["spline_psnr"] for row in rows])
            print(
                f"{name:12}  {np.mean(values[0]):.2f} dB  {np.mean(values[1]):.3f}  gain {gain.mean():+.2f} "
                f"dB ({gain.min():+.2f} to {gain.max():+.2f}), {len(rows)} people"
            )


def draw_portable(library: PatchLibrary, models: dict[int, Model], path: Path) -> None:
    """Draw a person's scan by splines, enhanced, and the truth: a slice, and a cut across the slices."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    person = Person(library)
    found = ways_of_portable(person, models)
    n = found["spline"].shape[2]
    truth = person.high[:, :, :n]
    centre = [int(np.mean(i)) for i in np.nonzero(person.brain[:, :, :n])]
    white = 1.05 * np.percentile(person.high[person.brain], 99.7)
    columns = {
        "cubic spline": found["spline"],
        "iqtflow, --voxel-size 1": found["plane_first"],
        "truth": truth,
    }
    figure, axes = pyplot.subplots(2, 3, figsize=(9, 6.4), layout="constrained")
    for column, (title, volume) in zip(axes.T, columns.items(), strict=True):
        for place, (axis, index) in zip(column, ((2, centre[2]), (0, centre[0] - 12)), strict=True):
            place.imshow(np.rot90(np.take(volume, index, axis)), cmap="gray", vmin=0, vmax=white)
            place.axis("off")
        column[0].set_title(title)
    figure.savefig(path, dpi=90)


def draw_curve(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw gain over ratio."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.6), layout="constrained")
    for share in sorted({row["thickness"] for row in rows}):
        these = [row for row in rows if row["thickness"] == share]
        gains: dict[float, list[float]] = {}
        for row in these:
            gains.setdefault(row["ratio"], []).append(row["iqt_psnr"] - row["spline_psnr"])
        people = ", ".join(sorted({row["subject"] for row in these}))
        label = f"sub-{people}: slice thickness {share:g} of the spacing"
        axes.plot(sorted(gains), [np.mean(gains[ratio]) for ratio in sorted(gains)], "o-", ms=4, label=label)
    axes.set(
        xscale="log", xlabel="slice spacing / in-plane voxel size", ylabel="gain over the cubic spline (dB)"
    )
    axes.set_xticks([1.5, 2, 3, 4, 6, 8, 12], ["1.5", "2", "3", "4", "6", "8", "12"])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
