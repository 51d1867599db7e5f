"""Train and evaluate the cells of a design of `benchmarks.paper` from patch libraries, in a given time.

    python benchmarks/gpu_grid.py LIBRARY... --output FOLDER --work FOLDER --seconds 300

Run the same command again to continue. Needs neither the images nor nibabel or nipype.

1. Split: subjects for training, validation and evaluation are drawn from the libraries, with the seed and the
   numbers of the design, and stored in `split.json`; the file may also be given.
2. Draws: the simulated scans of each subject are made from its high-field volume and its tissue maps.
3. Cells: in the order of the design. An epoch has as many patches as the design's share of the library.
4. Evaluation: one simulated scan of each evaluation subject is enhanced and compared with its high-field
   volume inside the brain, beside the cubic spline.

`--output` gets `results.jsonl` (a line for each cell, with the values of each subject), `results.md` (the
design's tables and claims), the models, and the checkpoints of a training that has not ended. `--work` gets
the libraries with the draws; they are made again where they are missing.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.paper.claims import judge
from benchmarks.paper.design import Cell, Design, Preparation, read_design
from benchmarks.paper.results import Results, format_table
from iqtflow.cli.commands.train import make_card, make_plan
from iqtflow.config import TrainSettings
from iqtflow.evaluation.metrics import mssim, mssim_slicewise, psnr
from iqtflow.image.geometry import cubic_upsample
from iqtflow.inference.predict import enhance_volume
from iqtflow.models.model_file import load_model, save_model
from iqtflow.models.registry import allow_network
from iqtflow.simulation.forward_model import add_noise, contrast_ratios, recontrast
from iqtflow.simulation.slice_profile import apply_profile, decimation_matrix
from iqtflow.simulation.snr_prior import SNRPrior, read_prior
from iqtflow.training.library import GridSettings, PatchLibrary, StoredDraw, read_library, write_library
from iqtflow.training.split import SPLIT_PARTS, keep_split
from iqtflow.training.trainer import train_member
from iqtflow.utils.files import write_text

MEASURES = {"psnr": psnr, "mssim": mssim, "mssim_slicewise": mssim_slicewise}
THICKNESS = TrainSettings.thickness_fraction[0]  #: slice thickness over slice spacing
EVALUATION_SECONDS = 15  #: of the time that is left, kept for an evaluation


class OutOfTime(Exception):
    """The time of this call is over."""


@dataclass(frozen=True)
class Clock:
    """Time that is left of a call, in seconds of `time.monotonic`."""

    until: float

    def require(self, seconds: float = 0.0) -> None:
        """Raise `OutOfTime` unless so much time is left."""
        if time.monotonic() + seconds > self.until:
            raise OutOfTime

    def wait(self, future: Future[Any]) -> Any:
        """Return a result; raise `OutOfTime` if the time is over before."""
        if not wait([future], timeout=max(self.until - time.monotonic(), 0)).done:
            raise OutOfTime
        return future.result()


def main(argv: list[str] | None = None) -> None:
    began = time.monotonic()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("libraries", nargs="+", type=Path, metavar="LIBRARY", help="of any factor k")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True, help="in all, start included")
    parser.add_argument("--preset", default="gpu", help="design of benchmarks/paper, or a TOML file")
    parser.add_argument("--cells", nargs="+", metavar="NAME", help="only these cells")
    parser.add_argument("--split", type=Path, help="JSON with the lists train, validation and evaluation")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--at-once", type=int, default=1, metavar="N", help="trainings at the same time")
    options = parser.parse_args(argv)
    options.output.mkdir(parents=True, exist_ok=True)
    design = read_design(options.preset)
    cells = design.choose(options.cells)
    split, paths = settle_split(design, options)
    lines = options.output / "results.jsonl"
    results = {result["cell"]: result for result in read_lines(lines)}
    pool = ProcessPoolExecutor(options.processes, initializer=torch.set_num_threads, initargs=(1,))
    clock = Clock(began + options.seconds)
    try:
        missing = [cell for cell in cells if cell.name not in results]
        draws = Draws(design, split, paths, options.work, pool)
        if options.at_once > 1:
            draws.begin(missing)
            draws.wait(clock)
            for result in run_at_once(missing, options, clock):
                results[result["cell"]] = result
                write_lines(lines, results)
            missing = []
        for i, cell in enumerate(missing):
            clock.require(2 * EVALUATION_SECONDS)
            # The draws for the next cell are made while the GPU trains this one.
            draws.begin(missing[i : i + 2])
            print(f"{cell.name}: {cell.method}, {cell.samples or cell.prior}", flush=True)
            model = train(cell, split, draws.of(cell.k, cell.prior), options, clock)
            people = draws.of(cell.k, cell.evaluation)
            evaluation = {label: people[label] for label in split["evaluation"]}
            results[cell.name] = evaluate(cell, model, evaluation, options.device, pool, clock)
            write_lines(lines, results)
    except OutOfTime:
        print("the time is over; run the same command again to continue", flush=True)
    finally:
        pool.shutdown(cancel_futures=True)
    report(design, cells, results, options.output)


def write_lines(path: Path, results: Mapping[str, Any]) -> None:
    """Write the line of each cell."""
    write_text(path, "".join(json.dumps(result) + "\n" for result in results.values()))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of the cells; none where there is no file."""
    return (
        [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    )


def run_at_once(cells: Sequence[Cell], options: argparse.Namespace, clock: Clock) -> Iterator[dict[str, Any]]:
    """Train several cells at the same time, each in a process of its own; yield their lines.

    A small network leaves most of a GPU idle. Each process writes to a folder of its own, ``apart/TRAINING``.
    """
    alike: dict[str, list[str]] = {}  # cells with one training share it
    for cell in cells:
        alike.setdefault(cell.training, []).append(cell.name)

    def run(training: str) -> list[dict[str, Any]]:
        folder = options.output / "apart" / training
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, __file__, *options.libraries, "--cells", *alike[training]]
        command += ["--output", folder, "--split", options.output / "split.json", "--processes", 2]
        command += ["--seconds", max(clock.until - time.monotonic(), 0)]
        for name in ("work", "preset", "device"):
            command += [f"--{name}", getattr(options, name)]
        with (folder / "log").open("ab") as log:
            path = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
            subprocess.run(list(map(str, command)), stdout=log, stderr=log, env=path, check=False)
        print("\n".join((folder / "log").read_text(encoding="utf-8").splitlines()[-2:]), flush=True)
        return read_lines(folder / "results.jsonl")

    with ThreadPoolExecutor(options.at_once) as pool:
        for done in as_completed([pool.submit(run, training) for training in alike]):
            yield from done.result()


def settle_split(
    design: Design, options: argparse.Namespace
) -> tuple[dict[str, tuple[str, ...]], dict[str, Path]]:
    """Return the split of the subjects, and the library of each."""
    paths = {read_library(path).subject: path for path in options.libraries}
    stored = options.output / "split.json"
    if options.split is not None:
        write_text(stored, options.split.read_text(encoding="utf-8"))
    sizes, seed = [design.split[part] for part in SPLIT_PARTS], design.split["seed"]
    # Not more than in the paper.
    some = np.random.default_rng(seed).permutation(sorted(paths))[: sum(sizes)].tolist()
    split = keep_split(stored, some, seed=seed, ratio=sizes)
    print("; ".join(f"{part}: {' '.join(split[part])}" for part in SPLIT_PARTS), flush=True)
    return split, paths


class Draws:
    """Libraries with the simulated scans that cells need, each made once by the processes of a pool."""

    def __init__(
        self,
        design: Design,
        split: Mapping[str, Sequence[str]],
        paths: Mapping[str, Path],
        work: Path,
        pool: ProcessPoolExecutor,
    ) -> None:
        self.design, self.split, self.paths, self.work, self.pool = design, split, paths, work, pool
        self._begun: dict[tuple[int, str], dict[str, Future[Path]]] = {}

    def begin(self, cells: Sequence[Cell]) -> None:
        """Begin to write the libraries that these cells need."""
        for preparation in (one for cell in cells for one in self.design.preparations([cell])):
            key = (preparation.k, preparation.prior)
            if key not in self._begun:
                self._begun[key] = self._begin(preparation)

    def of(self, k: int, prior: str) -> dict[str, Future[Path]]:
        """Return the library of each subject, for a factor and an SNR prior."""
        return self._begun[k, prior]

    def wait(self, clock: Clock) -> None:
        """Wait until all that was begun is written."""
        for futures in self._begun.values():
            for future in futures.values():
                clock.wait(future)

    def _begin(self, preparation: Preparation) -> dict[str, Future[Path]]:
        train = {**self.design.fields["train"], **self.design.fields.get("always", {})}
        grid = GridSettings(tuple(train["patch_step"]), train["background_limit"])
        prior, started = read_prior(self.design.priors[preparation.prior]), {}
        for part in SPLIT_PARTS:
            count = 1 if part == "evaluation" else preparation.draws
            folder = self.work / f"{preparation.name}_{count}"
            for label in self.split[part]:
                path = self.paths[label]
                job = (prepare, path, folder / path.name, preparation.k, prior, count, grid)
                started[label] = self.pool.submit(*job)
        return started


def prepare(source: Path, target: Path, k: int, prior: SNRPrior, count: int, grid: GridSettings) -> Path:
    """Write a subject's library with simulated scans, unless it is there; slices along its axes in turn."""
    if not target.exists():
        library = read_library(source)
        axes = sorted(library.references)
        draws = [simulate(library, axis=axes[i % len(axes)], k=k, prior=prior, seed=i) for i in range(count)]
        write_library(
            target,
            subject=library.subject,
            intensity=np.asarray(library.intensity, np.float32),
            wm=np.asarray(library.wm) / np.float32(255),
            gm=np.asarray(library.gm) / np.float32(255),
            mask=np.asarray(library.brain) > 0,
            slice_axes=tuple(axes),
            k=k,
            grid=grid,
            draws=draws,
        )
    return target


def simulate(library: PatchLibrary, *, axis: int, k: int, prior: SNRPrior, seed: int) -> StoredDraw:
    """Simulate a scan as `iqtflow.simulation.simulate` does, which needs nibabel for its orientations."""
    digest = hashlib.sha256(f"{library.subject} {prior.name}".encode()).digest()
    seed += 1000 * int.from_bytes(digest[:5], "big")  # another noise for each subject
    matrix = decimation_matrix(library.intensity.shape[axis], k, THICKNESS * k)
    volumes = (library.intensity, library.wm / np.float32(255), library.gm / np.float32(255))
    thick = [
        torch.from_numpy(np.moveaxis(apply_profile(np.asarray(v, np.float32), axis, matrix), axis, 2))
        for v in volumes
    ]
    snr = prior.sample(np.random.default_rng([seed, 0]))
    ratios = contrast_ratios(snr, library.mean_wm, library.mean_gm)
    clean = recontrast(*thick, ratios.wm, ratios.gm)
    noisy = add_noise(clean, ratios.sigma, torch.Generator().manual_seed(seed)).numpy()
    record = {"SNRPrior": prior.as_dict(), "SNR": {"WM": snr[0], "GM": snr[1]}, "Seed": seed}
    return StoredDraw(np.moveaxis(noisy, 2, axis), axis, record=record)


def train(
    cell: Cell,
    split: Mapping[str, Sequence[str]],
    people: Mapping[str, Future[Path]],
    options: argparse.Namespace,
    clock: Clock,
) -> Path:
    """Train the network of a cell, or continue; return its model. Cells with one training share it."""
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in cell.train.items()}
    settings = TrainSettings(**{**values, "uncertainty": "none"})
    allow_network(settings.network)
    model = options.output / "models" / f"{cell.training}.safetensors"
    checkpoints = options.output / "checkpoints" / cell.training
    if model.exists():
        return model
    sources, judges = (
        [read_library(clock.wait(people[label])) for label in split[part]] for part in SPLIT_PARTS[:2]
    )
    plan = make_plan(settings, seed=cell.seed)
    if "steps_per_epoch" not in cell.train:
        share = settings.patch_fraction * sum(source.n_patches for source in sources)
        plan = dataclasses.replace(plan, steps_per_epoch=max(round(share / plan.batch_size), 1))

    def watch(line: str) -> None:
        print(f"  {line}", flush=True)
        # Before the checkpoint of this epoch: the next call trains it again, a few seconds.
        clock.require(EVALUATION_SECONDS)

    member = train_member(
        sources, judges, plan, checkpoint_dir=checkpoints, device=options.device, report=watch
    )
    save_model(model, [member.state_dict], make_card(cell.training, settings, plan, member, {}))
    shutil.rmtree(checkpoints)
    return model


def evaluate(
    cell: Cell,
    path: Path,
    people: Mapping[str, Future[Path]],
    device: str,
    pool: ProcessPoolExecutor,
    clock: Clock,
) -> dict[str, Any]:
    """Return the line of a cell: its training, and the values of network and spline for each subject."""
    model, waiting = load_model(path), {}
    for label, future in people.items():
        clock.require()
        library = clock.wait(future)
        draw = read_library(library).draws[0]
        scan = np.moveaxis(np.asarray(draw.volume, np.float32), draw.axis, 2)
        enhanced = enhance_volume(scan, model, scale=draw.scale, device=device).mean
        volumes = {"spline": np.clip(cubic_upsample(scan, cell.k), 0, None), "iqt": enhanced}
        waiting[label] = {name: pool.submit(score, library, volume) for name, volume in volumes.items()}
    return {
        "cell": cell.name,
        "model": path.name,
        **{
            name: model.card.training[name]
            for name in ("steps", "epochs", "seconds", "interruptions", "device")
        },
        "records": [
            {"subject": label, "methods": {name: clock.wait(values) for name, values in methods.items()}}
            for label, methods in waiting.items()
        ],
    }


def score(path: Path, volume: np.ndarray) -> dict[str, float]:
    """Compare a volume, slices last, with the high-field volume of a library, as `evaluate_files`."""
    library = read_library(path)
    axis, origin = library.draws[0].axis, library.origin
    # The library is a part of the scan's grid; the scan may lack the last thin slices.
    box = tuple(slice(first, first + n) for first, n in zip(origin, library.intensity.shape, strict=True))
    estimate = np.moveaxis(np.moveaxis(volume, 2, axis)[box], axis, 2)
    part = tuple(slice(n) for n in estimate.shape)
    truth, brain = (np.moveaxis(v, axis, 2)[part] for v in (library.intensity, library.brain))
    truth, mask = truth.astype(np.float32), (brain > 0) & (truth != 0)
    return {name: measure(truth, estimate, mask) for name, measure in MEASURES.items()}


def report(design: Design, cells: Sequence[Cell], lines: Mapping[str, Any], output: Path) -> None:
    """Write the tables and claims of the design; print a short table."""
    figures: dict[str, dict[str, dict[str, float]]] = {}
    table = ["| cell | PSNR (dB) | MSSIM | gain over the spline |", "|---|---|---|---|"]
    for cell in cells:
        if cell.name not in lines:
            begun = (output / "checkpoints" / cell.training).exists()
            table.append(f"| {cell.name} | {'begun' if begun else 'not begun'} | | |")
            continue
        records = lines[cell.name]["records"]
        figures[cell.name] = by_measure(records, "iqt")
        for spline in design.cells:
            if not spline.is_trained and (spline.k, spline.evaluation) == (cell.k, cell.evaluation):
                figures[spline.name] = by_measure(records, "spline")
        (ours, theirs), (similarity, before) = (
            [np.mean([r["methods"][method][name] for r in records]) for method in ("iqt", "spline")]
            for name in ("psnr", "mssim")
        )
        gains = f"{ours - theirs:+.2f} dB, {similarity - before:+.4f}"
        table.append(f"| {cell.name} | {ours:.2f} | {similarity:.4f} | {gains} |")
    results, parts = Results(design, figures), [f"# {design.fields['title']}"]
    for one in design.tables:
        for k in design.fields["factors"]:
            rows = [cell for cell in design.cells if (cell.table, cell.k) == (one["id"], k)]
            if any(results.get(cell) for cell in rows):
                parts.append(
                    f"## Table {one['id']}, k = {k}. {one['title']}\n\n{format_table(results, rows)}"
                )
    parts.append("## What the paper claims\n\n" + "\n".join(judge(results)))
    write_text(output / "results.md", "\n\n".join(parts) + "\n")
    print("\n".join(table))


def by_measure(records: Sequence[Mapping[str, Any]], method: str) -> dict[str, dict[str, float]]:
    """Values of a method by measure and subject."""
    return {
        name: {record["subject"]: record["methods"][method][name] for record in records} for name in MEASURES
    }


if __name__ == "__main__":
    sys.exit(main())
