"""The application's group level of training: an ensemble is trained on the patch libraries, judged on people
that it has never seen, and written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nipype.pipeline.engine import Workflow

from iqtflow.bids import derivative_name
from iqtflow.bids.names import node_name
from iqtflow.config import Settings, TrainSettings
from iqtflow.image.metadata import read_fields, skull_stripped
from iqtflow.inference.footprint import CUDA_GB, training_gb
from iqtflow.models.model_file import read_card
from iqtflow.training.split import SPLIT_PARTS, keep_split, read_split
from iqtflow.utils.errors import EXIT_OK, UsageError
from iqtflow.utils.files import require_name
from iqtflow.workflows.app.collect import find_inputs
from iqtflow.workflows.app.evaluate_existing import (
    check_judged,
    check_unknown,
    people_to_judge_on,
    prepared,
    trained,
)
from iqtflow.workflows.execution.lock import make_own
from iqtflow.workflows.execution.run import find_lost, report_failures, run_graph


@dataclass(frozen=True)
class EvaluationScan:
    """A simulated low-field scan of an evaluation subject and its truth."""

    subject: str
    low_field: Path
    sidecar: Path
    truth: Path
    mask: Path

    @property
    def stem(self) -> str:
        """Beginning of the names of what is made of it; no other scan has the same."""
        return self.low_field.name.partition("_desc-sim01_")[0]


def run_group(settings: Settings, logs: Path) -> int:
    """Train, evaluate and write the model, its figures and its page; returns the exit code.

    Raises
    ------
    UsageError
        There are too few subjects to split, or the participant level has not prepared a subject of the split.
    """
    from iqtflow.evaluation.uncertainty_calibration import reliability_phrase
    from iqtflow.reports.assemble.training import write_training_page
    from iqtflow.workflows.app.base import workflow_prefix

    split = settle_split(settings) if settings.train.evaluate_model is None else people_to_judge_on(settings)
    output = settings.paths.output_dir
    kind = "pairs.npy" if settings.train.patch_library == "pairs" else "patches.safetensors"
    evaluation = find_evaluation(settings, split["evaluation"])
    libraries: dict[str, list[Path]] = {}
    if settings.train.evaluate_model is None:
        sessions = settings.run.session_labels
        libraries = {
            part: find_libraries(output, split[part], kind=kind, sessions=sessions)
            for part in ("train", "validation")
        }
    name = settings.train.model_name or f"iqt-k{settings.train.upsampling_factor}"
    if settings.train.evaluate_model is not None:
        card = check_judged(settings.train.evaluate_model, evaluation, settings)
        name = settings.train.model_name or require_name(card["name"], "name in the model's card")
    elif settings.train.start_from is not None:
        check_unknown(read_card(settings.train.start_from), split["evaluation"], option="--start-from")
    workflow = build_train_graph(
        libraries,
        evaluation,
        settings,
        split=split,
        model_name=name,
        name=f"{workflow_prefix(settings)}_group",
    )
    failures = run_graph(workflow, settings, logs)
    if failures:
        return report_failures(failures)
    judged = ("group_metrics.tsv", f"models/{name}_summary.json") if evaluation else ()
    lost = find_lost(output, [f"models/{name}.safetensors", *judged])
    if lost is not None:
        raise lost
    if evaluation:
        summary = json.loads((output / "models" / f"{name}_summary.json").read_text(encoding="utf-8"))
        print(f"iqtflow: {tell_figures(summary)}", flush=True)
        if "reliability" in summary:
            print(f"iqtflow: uncertainty: {reliability_phrase(summary['reliability'])}", flush=True)
    print(
        f"iqtflow: model {output / 'models' / name}.safetensors; figures {output / 'group_metrics.tsv'}",
        flush=True,
    )
    # Last: a page that cannot be written costs nothing of the rest.
    scans = [
        {"subject": e.subject, "truth": e.truth, "input": e.low_field, "mask": e.mask} for e in evaluation
    ]
    page = write_training_page(output, name, scans=scans)
    print(f"iqtflow: page {page}", flush=True)
    return EXIT_OK


def settle_split(settings: Settings) -> dict[str, tuple[str, ...]]:
    """Return the split that was given; else the one that an earlier run stored; else draw one and store it.

    Raises
    ------
    UsageError
        There are too few subjects to split.
    """
    if settings.train.split is not None:
        return read_split(settings.train.split)
    labels = prepared(settings)
    path = settings.paths.output_dir / "models" / "split.json"
    stored = path.exists()
    split = keep_split(path, labels, seed=settings.run.seed, ratio=settings.train.split_ratio)
    sizes = ", ".join(f"{len(split[part])} {part}" for part in SPLIT_PARTS)
    print(f"iqtflow: split {'read from' if stored else 'drawn and stored in'} {path}: {sizes}", flush=True)
    others = sorted(set(labels) - {label for part in SPLIT_PARTS for label in split[part]})
    if others:
        print(f"  note: not in it, and left out: {', '.join(f'sub-{label}' for label in others)}", flush=True)
    return split


def tell_figures(summary: Mapping[str, Any]) -> str:
    """Return a summary of the evaluation as a phrase."""
    parts = []
    for name, label, unit in (("psnr", "PSNR", " dB"), ("mssim", "MSSIM", "")):
        ours, theirs, test = (summary[name][key] for key in (summary["method"], "spline", "wilcoxon"))
        digits = 2 if unit else 3
        p = f", Wilcoxon n = {test['n']}, p = {test['p']:.2g}" if test else ""
        mean, spline = (f"{scores['mean']:.{digits}f}{unit}" for scores in (ours, theirs))
        parts.append(f"{label} {mean} (cubic spline {spline}{p})")
    return f"on {summary['n']} people that it has never seen: {'; '.join(parts)}"


def find_libraries(
    output_dir: Path,
    subjects: Sequence[str],
    *,
    kind: str = "patches.safetensors",
    sessions: Sequence[str] = (),
) -> list[Path]:
    """Return the patch libraries of subjects, sorted; UsageError names subjects that have none.

    Parameters
    ----------
    output_dir
        Root of the derivatives.
    subjects
        Labels.
    kind
        What the files' names end in.
    sessions
        Labels of the sessions wanted; none means all.
    """
    wanted = {f"ses-{label}" for label in sessions}
    found = {
        label: sorted(
            file
            for file in {
                *(output_dir / "patches").glob(f"sub-{label}_*{kind}"),
                *(output_dir / "patches").glob(f"sub-{label}_{kind}"),
            }
            if not wanted or wanted & set(file.name.split("_"))
        )
        for label in subjects
    }
    missing = [f"sub-{label}" for label, files in found.items() if not files]
    if missing:
        raise UsageError(
            output_dir / "patches",
            found=f"no patch library (..._{kind}) of {', '.join(missing)}",
            expected="one for each subject of the split",
            next_step="Run the participant level with --mode train and the same options on these subjects.",
        )
    return [file for label in subjects for file in found[label]]


def find_evaluation(settings: Settings, subjects: Sequence[str]) -> list[EvaluationScan]:
    """Return the simulated scans of the evaluation subjects; UsageError names subjects that have none."""
    if not subjects:
        return []
    output, found = settings.paths.output_dir, []
    for scan in find_inputs(settings, subjects):
        low = output / derivative_name(scan, desc="sim01")
        item = EvaluationScan(
            scan.subject,
            low,
            low.with_name(low.name.replace(".nii.gz", ".json")),
            scan.path,
            output / derivative_name(scan, desc="brain", suffix="mask"),
        )
        if all(p.exists() for p in (item.low_field, item.sidecar, item.mask)):
            found.append(item)
    missing = sorted({f"sub-{label}" for label in subjects} - {f"sub-{item.subject}" for item in found})
    if missing:
        raise UsageError(
            output,
            found=f"no simulated scan of {', '.join(missing)}",
            expected="one for each evaluation subject",
            next_step="Run the participant level with --mode train on these subjects first.",
        )
    return found


def build_train_graph(
    libraries: Mapping[str, Sequence[Path]],
    evaluation: Sequence[EvaluationScan],
    settings: Settings,
    *,
    split: Mapping[str, Sequence[str]],
    model_name: str,
    name: str = "group",
) -> Workflow:
    """Build the graph that trains an ensemble, evaluates it through the inference path, and stores both.

    Parameters
    ----------
    libraries
        Patch libraries of "train" and "validation" subjects.
    evaluation
        Simulated scans of subjects of neither.
    settings
        All settings.
    split
        Labels by part, for the model's card.
    model_name
        Name of the model.
    name
        Name of the workflow.
    """
    from nipype.interfaces.utility import Merge
    from nipype.pipeline.engine import Node

    from iqtflow.interfaces.evaluate import SummariseMetrics
    from iqtflow.interfaces.sink import SinkDerivative
    from iqtflow.interfaces.train import StampFigures
    from iqtflow.workflows.evaluate import init_evaluate_wf

    run, train = settings.run, settings.train

    def sink(label: str, path: str) -> Node:
        return Node(
            SinkDerivative(base_directory=os.fspath(settings.paths.output_dir), name=path),
            name=f"sink_{label}",
        )

    if train.evaluate_model is not None:
        training, n_members = trained(train.evaluate_model), 0
    else:
        training = _to_train(settings, libraries, split=split, model_name=model_name)
        n_members = train.ensemble
    workflow = Workflow(name=name)
    for member in range(1, n_members + 1):
        curves = sink(f"curves{member}", f"models/{model_name}_member-{member}_curves.csv")
        workflow.connect(training, f"outputnode.curves{member}", curves, "in_file")
    model = sink("model", f"models/{model_name}.safetensors")
    if not evaluation:
        workflow.connect(training, "outputnode.model", model, "in_file")
        return workflow

    scores = Node(Merge(len(evaluation)), name="scores")
    members = n_members if n_members > 1 else 0  # a single network is the model
    for i, scan in enumerate(evaluation, start=1):
        evaluate = init_evaluate_wf(
            name=f"evaluate_{node_name(scan.stem.removeprefix('sub-'))}",
            members=members,
            device=run.device,
            omp_nthreads=run.omp_nthreads,
        )
        given = evaluate.get_node("inputnode").inputs
        given.in_file, given.sidecar_file = os.fspath(scan.low_field), os.fspath(scan.sidecar)
        given.truth, given.mask, given.subject = os.fspath(scan.truth), os.fspath(scan.mask), scan.subject
        given.skull_stripped = skull_stripped(read_fields(scan.sidecar))
        workflow.connect(
            [
                (training, evaluate, [("outputnode.model", "inputnode.model")]),
                *(
                    (training, evaluate, [(f"outputnode.member{m}", f"inputnode.member{m}")])
                    for m in range(1, members + 1)
                ),
                (evaluate, scores, [("outputnode.metrics", f"in{i}")]),
            ]
        )
        for field, desc in (("enhanced", "iqt"), ("spline", "spline")):
            example = sink(
                f"{desc}_{node_name(scan.stem.removeprefix('sub-'))}",
                f"models/{model_name}_evaluation/{scan.stem}_desc-{desc}_T1w.nii.gz",
            )
            workflow.connect(evaluate, f"outputnode.{field}", example, "in_file")
    summarise = Node(SummariseMetrics(), name="summarise")
    stamp = Node(StampFigures(), name="stamp")
    workflow.connect(
        [
            (scores, summarise, [("out", "in_files")]),
            (summarise, stamp, [("summary_file", "summary_file")]),
            (training, stamp, [("outputnode.model", "in_file")]),
            (stamp, model, [("out_file", "in_file")]),
            (summarise, sink("metrics", "group_metrics.tsv"), [("out_file", "in_file")]),
            (summarise, sink("dictionary", "group_metrics.json"), [("dictionary_file", "in_file")]),
            (summarise, sink("summary", f"models/{model_name}_summary.json"), [("summary_file", "in_file")]),
        ]
    )
    return workflow


def _to_train(
    settings: Settings,
    libraries: Mapping[str, Sequence[Path]],
    *,
    split: Mapping[str, Sequence[str]],
    model_name: str,
) -> Workflow:
    """Return the graph that trains, with its inputs."""
    from iqtflow.workflows.train import init_train_wf

    run, train = settings.run, settings.train
    training = init_train_wf(
        model_name=model_name,
        ensemble=train.ensemble,
        seed=run.seed,
        device=run.device,
        omp_nthreads=run.omp_nthreads,
        devices=train.devices,
        num_nodes=train.num_nodes,
        tensorboard_dir=settings.paths.work_dir / "tensorboard" if train.tensorboard else None,
        checkpoint_dir=make_own(settings.paths.work_dir / "checkpoints"),
        split=split,
        training=_training_inputs(train),
        mem_gb=training_gb(batch_size=train.batch_size, filters=train.filters)
        + (CUDA_GB if run.device == "cuda" else 0),
    )
    given = training.get_node("inputnode").inputs
    for part, files in libraries.items():
        setattr(given, f"{part}_libraries", [os.fspath(path) for path in files])
    return training


def _training_inputs(train: TrainSettings) -> dict:
    """Inputs of the training node that settings decide."""
    inputs = {
        "upsampling_factor": train.upsampling_factor,
        "snr_prior": train.snr_prior,
        "thickness_fraction": tuple(train.thickness_fraction),
        "snr_scale": tuple(train.snr_scale),
    }
    same = (
        "network",
        "filters",
        "shrink",
        "residual",
        "uncertainty",
        "batch_size",
        "learning_rate",
        "schedule",
        "loss",
        "steps_per_epoch",
        "max_epochs",
        "patience",
        "validation_batches",
        "draws",
        "bias_amplitude",
        "mirror",
    )
    inputs.update({field: getattr(train, field) for field in same})
    inputs["patch_size"] = train.patch_edge
    if train.network_options:
        inputs["network_options"] = list(train.network_options)
    for field in ("steps", "start_from"):
        if getattr(train, field) is not None:
            inputs[field] = getattr(train, field)
    return inputs
