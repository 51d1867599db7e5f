"""``--mode adapt``: measure a scanner, fine-tune a model on simulations of it, and tell whether that helped.

It is a sequence of levels of the other modes, each with its own settings and folders: calibrate on the
low-field scans; train on the high-field people, with evaluation of the model before and of the adapted one;
enhance of some low-field scans with both. Each level goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from iqtflow.bids import Listing, Scan, write_dataset_description
from iqtflow.bids.names import output_name, sidecar_name
from iqtflow.config import InputSettings, Settings, TrainSettings, write_settings
from iqtflow.evaluation.comparison import compare_models, residual_notes, verdict_sentence
from iqtflow.image.nifti import read_volume
from iqtflow.inference.ood import make_reference, measure_scan
from iqtflow.models.model_file import stamp_familiar
from iqtflow.reports.assemble.group import Evaluated, read_metrics
from iqtflow.reports.record import Record
from iqtflow.simulation.scanner import missing_blur, own_width
from iqtflow.training.adaptation import LEAST_STEPS, adapted_settings, plan_steps
from iqtflow.training.split import as_lists
from iqtflow.utils.errors import EXIT_OK, EXIT_SUBJECT_FAILED
from iqtflow.utils.files import read_text, sha256_of, write_atomically, write_text
from iqtflow.utils.system import cpu_has_bfloat16
from iqtflow.workflows.app.base import run_workflow
from iqtflow.workflows.app.collect import list_inputs
from iqtflow.workflows.app.group import build_train_graph, find_evaluation, find_libraries
from iqtflow.workflows.app.made_with import describe
from iqtflow.workflows.app.plan import choose_scans, print_plan
from iqtflow.workflows.app.site import LEAST_SCANS, Site, measuring, preparing, survey, with_mode
from iqtflow.workflows.execution.run import find_lost, report_failures, run_graph

#: Scans of the site that both models enhance.
MOST_SHOWN = 5
#: High-field images whose width in the plane is measured.
MOST_WIDTHS = 10
#: Steps that are timed before the number of steps is planned.
TIMED_STEPS = 6
#: Expected seconds of one processor to enhance and compare one scan, before any was.
SCAN_S = 30.0


class _Stopped(Exception):
    """A level has failed, and has said why; the argument is the exit code."""


def run_adaptation(settings: Settings, listing: Listing) -> int:
    """Run the levels that the settings ask for, one after the other; return the exit code.

    Raises
    ------
    UsageError
        The scans or the high-field people cannot be used.
    """
    site = survey(settings, listing) if "group" in settings.run.levels else None
    if site is not None:
        print(*describe_site(site, settings), sep="\n", flush=True)
    paths = settings.paths
    os.makedirs(paths.work_dir, exist_ok=True)
    made_with = [describe(settings, level) for level in settings.run.levels]
    write_dataset_description(paths.output_dir, source_dir=paths.bids_dir, made_with=made_with)
    write_settings(settings, paths.work_dir / "settings.toml")
    code = EXIT_OK
    if "participant" in settings.run.levels:
        level = measuring(settings, "participant")
        code = run_workflow(level, listing)
        measured = [output_name("measurement", scan) for scan in choose_scans(listing, level).chosen]
        if code not in (EXIT_OK, EXIT_SUBJECT_FAILED) or find_lost(settings.paths.output_dir, measured):
            if site is not None:
                print(
                    "iqtflow: not all scans were measured, so no model is adapted yet; the same command with "
                    "the level group alone adapts one to the scans that were measured",
                    flush=True,
                )
            return code
    if site is not None:
        try:
            _Adaptation(settings, site).run()
        except _Stopped as stopped:
            return int(stopped.args[0])
    return code


def print_adaptation(settings: Settings, listing: Listing) -> int:
    """Print what a run would do, without doing it; return its exit code as far as the headers tell."""
    code = EXIT_OK
    if "participant" in settings.run.levels:
        code = print_plan(measuring(settings, "participant"), listing)
    if "group" in settings.run.levels:
        print(*describe_site(survey(settings, listing), settings), sep="\n")
    return code


def describe_site(site: Site, settings: Settings) -> list[str]:
    """Return lines of text: what the group level will do, and how long it takes."""
    adapt, counts = settings.adapt, {part: len(labels) for part, labels in site.split.items()}
    prepare_s, evaluate_s = (seconds / settings.run.nprocs for seconds in _expected(site))
    short = adapt.budget_s < prepare_s + 2 * evaluate_s
    minutes = max(adapt.budget_s, prepare_s + 2 * evaluate_s) / 60
    return [
        f"iqtflow: {site.name} will be made of {site.card.name} (k = {site.card.k}) for "
        f"{len(site.scans)} scans, slice spacing / voxel size {site.ratio:.2f}",
        f"  high-field people: {counts['train']} training, {counts['validation']} validation, "
        f"{counts['evaluation']} evaluation",
        f"  expected: about {minutes:.0f} minutes: {prepare_s / 60:.0f} prepare the people, "
        f"{2 * evaluate_s / 60:.0f} evaluate, the rest of --budget {adapt.budget} trains",
        *([f"  note: --budget {adapt.budget} is too short to train for long"] if short else []),
        *(f"  note: {note}" for note in site.notes),
        f"  writes {settings.paths.output_dir / output_name('model', model=site.name)} and "
        f"{output_name('adaptation_page')}",
    ]


def _expected(site: Site) -> tuple[float, float]:
    """Return the seconds of one processor to prepare the people, and to evaluate one model."""
    scans = len(site.split["evaluation"]) + min(len(site.scans), MOST_SHOWN)
    return len(site.people) * site.person_s, scans * SCAN_S


class _Adaptation:
    """The group level, step by step."""

    def __init__(self, settings: Settings, site: Site) -> None:
        self.settings, self.site, self.began = settings, site, time.monotonic()
        self.output = settings.paths.output_dir
        self.trained = preparing(settings).paths.output_dir

    def run(self) -> None:
        """Run all steps; a step that is complete takes seconds."""
        site, output = self.site, self.output
        self._say(1, "fit the SNR prior and the scanner")
        _require(run_workflow(measuring(self.settings, "group")))
        fitted = json.loads(read_text(output / output_name("prior")))
        if fitted["n_scans"] < LEAST_SCANS:
            print(f"  note: only {fitted['n_scans']} scans could be measured", flush=True)
        self._say(2, f"prepare {len(site.people)} high-field people")
        train = self._prepare(fitted)
        self._say(3, f"evaluate {site.card.name} on people simulated as this scanner, and on your scans")
        before_s = time.monotonic()
        before = self._evaluate(train)
        shown_before = self._enhance(site.model, site.card.name)
        # Also if the results are there from an earlier run, in which they took their time.
        after_s = max(time.monotonic() - before_s, _expected(site)[1] / self.settings.run.nprocs)
        self._say(4, "time a few steps of the training")
        train = self._plan(train, after_s)
        self._say(5, f"train {site.name}, {train.steps} steps")
        after = self._train(train)
        self._say(6, "enhance your scans with the adapted model")
        model = self._publish(train)
        shown_after = self._enhance(model, site.name)
        self._say(7, "write the card and the page")
        self._report(fitted, train, (before, after), (shown_before, shown_after))

    def _say(self, number: int, what: str) -> None:
        minutes = (time.monotonic() - self.began) / 60
        print(f"iqtflow: adapt, step {number} of 7 (after {minutes:.0f} minutes): {what}", flush=True)

    def _prepare(self, fitted: Mapping[str, Any]) -> TrainSettings:
        """Prepare the people, and simulate them as the scanner; return the settings of the training."""
        site, scanner = self.site, fitted.get("scanner")
        split = write_text(self.trained / output_name("split"), json.dumps(as_lists(site.split), indent=1))
        fixed: dict[str, Any] = {
            "slice_axes": site.slice_axes,
            "snr_prior": os.fspath(self.output / output_name("prior")),
            "start_from": os.fspath(site.model),
            "model_name": site.name,
            "split": split,
            "precision": "bfloat16" if cpu_has_bfloat16() else "float32",
        }
        width = (scanner or {}).get("inplane_fwhm_mm")
        sharp = TrainSettings(**adapted_settings(scanner, site.card, ratio=site.ratio), **fixed)
        masks = [output_name("mask", scan) for scan in self._people(sharp)]
        known = find_lost(self.trained, masks) is None  # from an earlier run
        if not known:
            self._run_people(sharp)
        own, edge = self._own_widths(sharp)
        blur = missing_blur(width and width["median"], own) / edge
        train = TrainSettings(**adapted_settings(scanner, site.card, ratio=site.ratio, blur=blur), **fixed)
        if known or train != sharp:
            low, high = train.plane_blur
            print(f"iqtflow: simulated blur in the plane: {low:.1f} to {high:.1f} voxels", flush=True)
            self._run_people(train)
        return train

    def _people(self, train: TrainSettings) -> tuple[Scan, ...]:
        """Return the scans of the high-field people."""
        settings = preparing(self.settings, self.site.people, train)
        return choose_scans(list_inputs(settings), settings).chosen

    def _run_people(self, train: TrainSettings) -> None:
        settings = preparing(self.settings, self.site.people, train)
        _require(run_workflow(settings, list_inputs(settings)))

    def _own_widths(self, train: TrainSettings) -> tuple[list[float], float]:
        """Measure the widths in the plane of high-field images (mm), and their voxel size there."""
        widths, edges = [], []
        axis = "xyz".index(train.slice_axes[0])
        for scan in self._people(train)[:MOST_WIDTHS]:
            image, data = read_volume(scan.path)
            _, mask = read_volume(self.trained / output_name("mask", scan), like=image)
            k = train.upsampling_factor
            widths.append(own_width(data, mask > 0, image.affine, axis=axis, k=k))
            edges.append(float(np.delete(image.header.get_zooms()[:3], axis).min()))
        return [width for width in widths if width is not None], float(np.median(edges))

    def _training(self, train: TrainSettings, work: str) -> Settings:
        """Return settings of the group level of training; the work directory names what it depends on."""
        settings = with_mode(preparing(self.settings, (), train), "train", "group")
        folder = self.settings.paths.work_dir / f"{work}-{self._key(train)}"
        return dataclasses.replace(settings, paths=dataclasses.replace(settings.paths, work_dir=folder))

    def _key(self, train: TrainSettings) -> str:
        """Return a digest of all that the weights depend on, the number of steps left out."""
        stated = dataclasses.replace(train, steps=None, precision="float32", evaluate_model=None)
        prior = json.loads(read_text(train.snr_prior))
        digest = sha256_of(self.site.model)
        text = repr((stated, prior["mean"], prior["covariance"], digest, sorted(self.site.split.items())))
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    def _evaluate(self, train: TrainSettings) -> list[Evaluated]:
        """Evaluate the model that the training starts from; return its scores."""
        judged = dataclasses.replace(
            train, evaluate_model=os.fspath(self.site.model), model_name=self.site.card.name, start_from=None
        )
        _require(run_workflow(self._training(judged, "before")))
        return read_metrics(self.trained / output_name("metrics"))

    def _plan(self, train: TrainSettings, after_s: float) -> TrainSettings:
        """Return the settings with the number of steps: that of an earlier run with this budget, else a new
        one, which is stored.
        """
        path, key = self.output / output_name("adaptation_plan"), self._key(train)
        wanted = {"key": key, "budget": self.settings.adapt.budget}
        try:
            plan = json.loads(read_text(path))
        except (OSError, ValueError):
            plan = {}
        if {name: plan.get(name) for name in wanted} != wanted:
            step_s = self._time_steps(train)
            left_s = self.settings.adapt.budget_s - (time.monotonic() - self.began) - after_s
            plan = {**wanted, "steps": plan_steps(left_s, step_s), "seconds_per_step": step_s}
            write_text(path, json.dumps(plan, indent=1))
            if plan["steps"] == LEAST_STEPS:
                print(f"  note: little of --budget is left: {LEAST_STEPS} steps, the least", flush=True)
        steps, step_s = int(plan["steps"]), float(plan["seconds_per_step"])
        minutes = steps * step_s / 60
        print(f"iqtflow: {steps} steps of {step_s:.2f} s: about {minutes:.0f} minutes", flush=True)
        return dataclasses.replace(train, steps=steps)

    def _time_steps(self, train: TrainSettings) -> float:
        """Train a few steps; return the seconds of one."""
        few = dataclasses.replace(
            train, steps=TIMED_STEPS, steps_per_epoch=TIMED_STEPS, validation_batches=2, model_name="timed"
        )
        settings = self._training(train, "timed")
        libraries = {
            part: find_libraries(settings, self.site.split[part]) for part in ("train", "validation")
        }
        folder = settings.paths.work_dir
        settings = dataclasses.replace(
            settings, train=few, paths=dataclasses.replace(settings.paths, output_dir=folder / "output")
        )
        workflow = build_train_graph(libraries, [], settings, split={}, model_name="timed", name="timed")
        failures = run_graph(workflow, settings)
        if failures:
            raise _Stopped(report_failures(failures))
        curves = folder / "output" / output_name("curves", model="timed", member=1)
        heads, *_, last = (line.split(",") for line in read_text(curves).split())
        return float(dict(zip(heads, last, strict=True))["seconds"]) / TIMED_STEPS

    def _train(self, train: TrainSettings) -> list[Evaluated]:
        """Train and evaluate the adapted model; return its scores."""
        _require(run_workflow(self._training(train, "after")))
        return read_metrics(self.trained / output_name("metrics"))

    def _publish(self, train: TrainSettings) -> Path:
        """Store the model with the ranges of its training scans, and its scores, in the output folder."""
        name = self.site.name
        figures: dict[str, list[dict[str, float]]] = {"train": [], "evaluation": []}
        for scan in self._people(train):
            part = "evaluation" if scan.subject in self.site.split["evaluation"] else "train"
            figures[part].append(self._figures(scan, train))
        reference = make_reference(figures["train"], figures["evaluation"], k=self.site.card.k)
        # The training changes both; the stored scans do not.
        jitter = 1 + train.spacing_jitter
        for figure, least, most in (("SpacingRatio", 1 / jitter, jitter), ("PixelMm", *train.zoom)):
            low, high = reference["ranges"][figure]
            reference["ranges"][figure] = [low * least, high * most]
        kinds = {what: output_name(what, model=name) for what in ("model", "scores")}
        with (self.trained / kinds["scores"]).open("rb") as content:
            write_atomically(self.output / kinds["scores"], lambda to: shutil.copyfileobj(content, to))
        return stamp_familiar(self.trained / kinds["model"], self.output / kinds["model"], reference)

    def _figures(self, scan: Scan, train: TrainSettings) -> dict[str, float]:
        """Measure the figures of a simulated scan that tell whether another scan is like it."""
        axis, k = "xyz".index(train.slice_axes[0]), train.upsampling_factor
        image, data = read_volume(self.trained / output_name("draw", scan, number=1))
        _, mask = read_volume(self.trained / output_name("mask", scan))
        middle = np.take(mask, range(k // 2, data.shape[axis] * k, k), axis=axis) > 0
        voxel_mm = [float(edge) for edge in image.header.get_zooms()[:3]]
        return measure_scan(data, middle, axis=axis, voxel_mm=voxel_mm, k=k)

    def _enhance(self, model: Path, name: str) -> list[Record]:
        """Enhance some scans of the site; return their records. A scan that fails is left out."""
        scans, paths = self.site.scans[:MOST_SHOWN], self.settings.paths
        settings = with_mode(self.settings, "enhance", "participant")
        folder, digest = paths.output_dir / "scans" / name, sha256_of(model)
        settings = dataclasses.replace(
            settings,
            paths=dataclasses.replace(
                paths, output_dir=folder, work_dir=paths.work_dir / f"scans-{digest[:8]}"
            ),
            run=dataclasses.replace(settings.run, viewer=False),
            inputs=InputSettings(skip_validation=True),
            enhance=dataclasses.replace(settings.enhance, model=os.fspath(model)),
        )
        run_workflow(settings, Listing(list(scans), []))
        records = []
        for scan in scans:
            enhanced = folder / output_name("enhanced", scan)
            if enhanced.is_file():
                details = json.loads(read_text(sidecar_name(enhanced)))
                records.append(
                    Record("enhanced", scan.path, subject=scan.subject, output=enhanced, details=details)
                )
        return records

    def _report(
        self,
        fitted: Mapping[str, Any],
        train: TrainSettings,
        scores: tuple[Sequence[Evaluated], Sequence[Evaluated]],
        shown: tuple[Sequence[Record], Sequence[Record]],
    ) -> None:
        """Write the record, the card and the page; print the result."""
        from iqtflow.reports.assemble.adaptation import write_adaptation_page, write_adapted_card

        site, output = self.site, self.output
        before, after = ({one.subject: one.mean for one in rows} for rows in scores)
        compared = compare_models({one.subject: one.spline for one in scores[1]}, before, after)
        sentence = verdict_sentence(compared, before=site.card.name, after=site.name)
        settings = self._training(train, "after")
        scans = [_on_scan(*pair) for pair in zip(*shown, strict=False)]
        worse = residual_notes(scans, after=site.name)
        record = {
            "name": site.name,
            "before": site.card.name,
            "k": site.card.k,
            "sentence": sentence,
            "comparison": compared,
            "scans": scans,
            "scanner": fitted.get("scanner"),
            "prior": {name: fitted[name] for name in ("mean", "covariance", "n_scans", "notes")},
            "simulated": {name: getattr(train, name) for name in SIMULATED},
            "steps": train.steps,
            "minutes": round((time.monotonic() - self.began) / 60, 1),
            "notes": [*worse, *site.notes],
        }
        write_text(output / output_name("adaptation"), json.dumps(record, indent=1))
        judged = [
            Record("enhanced", e.low_field, subject=e.subject, truth=e.truth, mask=e.mask)
            for e in find_evaluation(settings, site.split["evaluation"])
        ]
        card = write_adapted_card(output, self.trained, record, scores[1], judged)
        print(f"iqtflow: model {output / output_name('model', model=site.name)}; card {card}")
        print(*(f"iqtflow: {told}" for told in (sentence, *worse)), sep="\n")
        page = write_adaptation_page(output, record, list(zip(*shown, strict=False)))
        print(f"iqtflow: open {page} in a browser", flush=True)


#: Settings of the simulation that the page tells.
SIMULATED = ("thickness_fraction", "plane_blur", "noise", "bias_amplitude", "stripes", "spacing_jitter")


def _require(code: int) -> None:
    if code != EXIT_OK:
        raise _Stopped(code)


def _on_scan(before: Record, after: Record) -> dict[str, Any]:
    """Return residual and out-of-distribution score of a scan with both models; None: not known."""

    def values(record: Record) -> dict[str, Any]:
        audit, familiar = (
            record.details.get(name) or {} for name in ("DataConsistency", "OutOfDistribution")
        )
        return {"residual": audit.get("ResidualRMS"), "score": familiar.get("Score")}

    name = Path(before.input or "").name.split(".")[0]
    return {"scan": name, "before": values(before), "after": values(after)}
