"""Group level of training: train an ensemble on the patch libraries, judge it on people it has never seen,
write the model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from iqtflow.workflows.enhance import ENHANCE_MEM_GB
from iqtflow.workflows.run import report_failures, run_graph
from nipype.pipeline.engine import Workflow

from iqtflow.bids import derivative_name, find_scans
from iqtflow.config import Settings, TrainSettings
from iqtflow.errors import EXIT_OK, UsageError
from iqtflow.split import read_split

TRAIN_MEM_GB = 6.0


@dataclass(frozen=True)
class EvaluationScan:
    """A simulated low-field scan of an evaluation subject and its truth."""

    subject: str
    low_field: Path
    sidecar: Path
    truth: Path
    mask: Path


def run_group(settings: Settings, logs: Path) -> int:
    """Train, evaluate and write the model, its figures and its page; returns the exit code.

    Raises
    ------
    UsageError
        There is no split, or the participant level has not prepared a subject of the split.
    """
    from iqtflow.workflows.base import workflow_prefix

    from iqtflow.report.training import write_training_page

    if settings.train.split is None:
        raise UsageError(
            "--split",
            found="nothing",
            expected="a JSON file with the lists train, validation and evaluation",
            next_step="Write one; a subject belongs to one list only.",
        )
    split = read_split(settings.train.split)
    output = settings.paths.output_dir
    libraries = {part: find_libraries(output, split[part]) for part in ("train", "validation")}
    evaluation = find_evaluation(settings, split["evaluation"])
    name = settings.train.model_name or f"iqt-k{settings.train.upsampling_factor}"
    workflow = init_group_train_wf(
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
    scans = [
        {"subject": e.subject, "truth": e.truth, "input": e.low_field, "mask": e.mask} for e in evaluation
    ]
    write_training_page(output, name, scans=scans)
    print(
        f"iqtflow: model {output / 'models' / name}.safetensors; figures {output / 'group_metrics.tsv'}; "
        f"page {output / 'group.html'}",
        flush=True,
    )
    return EXIT_OK


def find_libraries(output_dir: Path, subjects: Sequence[str]) -> list[Path]:
    """Return the patch libraries of subjects, sorted; UsageError names subjects that have none."""
    found = {
        label: sorted((output_dir / "patches").glob(f"sub-{label}_*patches.safetensors"))
        for label in subjects
    }
    missing = [f"sub-{label}" for label, files in found.items() if not files]
    if missing:
        raise UsageError(
            output_dir / "patches",
            found=f"no patch library of {', '.join(missing)}",
            expected="one for each subject of the split",
            next_step="Run the participant level with --mode train on these subjects first.",
        )
    return [file for label in subjects for file in found[label]]


def find_evaluation(settings: Settings, subjects: Sequence[str]) -> list[EvaluationScan]:
    """Return the simulated scans of the evaluation subjects; UsageError names subjects that have none."""
    if not subjects:
        return []
    output, found = settings.paths.output_dir, []
    for scan in find_scans(settings.paths.bids_dir, subjects=subjects):
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


def init_group_train_wf(
    libraries: Mapping[str, Sequence[Path]],
    evaluation: Sequence[EvaluationScan],
    settings: Settings,
    *,
    split: Mapping[str, Sequence[str]],
    model_name: str,
    name: str = "group",
) -> Workflow:
    """Build the graph that trains an ensemble and evaluates it through the inference path.

    Workflow Graph
        train_m1, train_m2, ... -> join -> enhance_X -> evaluate_X -> summarise -> stamp -> sink

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
    from iqtflow.interfaces.enhance import EnhanceVolume
    from iqtflow.interfaces.evaluate import EvaluateVolume, SummariseMetrics
    from iqtflow.interfaces.sink import SinkDerivative
    from iqtflow.interfaces.train import JoinEnsemble, StampFigures, TrainModel
    from nipype.interfaces.utility import Merge
    from nipype.pipeline.engine import Node

    run, train = settings.run, settings.train
    gpu = run.device == "cuda"
    workflow = Workflow(name=name)
    join = Node(
        JoinEnsemble(name=model_name, card={"split": {part: list(labels) for part, labels in split.items()}}),
        name="join",
    )
    merge = Node(Merge(train.ensemble), name="members")
    workflow.connect(merge, "out", join, "members")

    def sink(label: str, path: str) -> Node:
        return Node(
            SinkDerivative(base_directory=os.fspath(settings.paths.output_dir), name=path),
            name=f"sink_{label}",
        )

    for member in range(1, train.ensemble + 1):
        node = Node(
            TrainModel(
                **_training_inputs(train, seed=run.seed + member - 1),
                train_libraries=[os.fspath(p) for p in libraries["train"]],
                validation_libraries=[os.fspath(p) for p in libraries["validation"]],
                name=model_name,
                device=run.device,
                use_gpu=gpu,
                num_threads=run.omp_nthreads,
                checkpoint_dir=os.fspath(
                    settings.paths.work_dir / "checkpoints" / f"{model_name}_member-{member}"
                ),
            ),
            name=f"train_m{member}",
            mem_gb=TRAIN_MEM_GB,
            n_procs=1 if gpu else run.omp_nthreads,
        )
        curves = sink(f"curves{member}", f"models/{model_name}_member-{member}_curves.csv")
        workflow.connect(
            [(node, merge, [("out_file", f"in{member}")]), (node, curves, [("curves_file", "in_file")])]
        )
    if not evaluation:
        workflow.connect(join, "out_file", sink("model", f"models/{model_name}.safetensors"), "in_file")
        return workflow

    scores = Node(Merge(len(evaluation)), name="scores")
    for i, scan in enumerate(evaluation, start=1):
        enhance = Node(
            EnhanceVolume(
                in_file=os.fspath(scan.low_field),
                sidecar_file=os.fspath(scan.sidecar),
                device=run.device,
                use_gpu=gpu,
                num_threads=run.omp_nthreads,
                force=True,
            ),
            name=f"enhance_{scan.subject}",
            mem_gb=ENHANCE_MEM_GB,
            n_procs=1 if gpu else run.omp_nthreads,
        )
        stripped = json.loads(scan.sidecar.read_text()).get("SkullStripped")
        enhance.inputs.skull_stripped = "auto" if stripped is None else "yes" if stripped else "no"
        evaluate = Node(
            EvaluateVolume(subject=scan.subject, reference=os.fspath(scan.truth), mask=os.fspath(scan.mask)),
            name=f"evaluate_{scan.subject}",
            mem_gb=2.0,
        )
        workflow.connect(
            [
                (join, enhance, [("out_file", "model")]),
                (enhance, evaluate, [("out_file", "enhanced"), ("spline_file", "spline")]),
                (evaluate, scores, [("out_file", f"in{i}")]),
            ]
        )
        for field, desc in (("out_file", "iqt"), ("spline_file", "spline")):
            example = sink(
                f"{desc}_{scan.subject}",
                f"models/{model_name}_evaluation/sub-{scan.subject}_desc-{desc}_T1w.nii.gz",
            )
            workflow.connect(enhance, field, example, "in_file")
    summarise = Node(SummariseMetrics(), name="summarise")
    stamp = Node(StampFigures(), name="stamp")
    workflow.connect(
        [
            (scores, summarise, [("out", "in_files")]),
            (summarise, stamp, [("summary_file", "summary_file")]),
            (join, stamp, [("out_file", "in_file")]),
            (stamp, sink("model", f"models/{model_name}.safetensors"), [("out_file", "in_file")]),
            (summarise, sink("metrics", "group_metrics.tsv"), [("out_file", "in_file")]),
            (summarise, sink("dictionary", "group_metrics.json"), [("dictionary_file", "in_file")]),
            (summarise, sink("summary", f"models/{model_name}_summary.json"), [("summary_file", "in_file")]),
        ]
    )
    return workflow


def _training_inputs(train: TrainSettings, *, seed: int) -> dict:
    """Inputs of the training node that settings decide."""
    inputs = {
        "upsampling_factor": train.upsampling_factor,
        "snr_prior": train.snr_prior,
        "seed": seed,
        "thickness_fraction": tuple(train.thickness_fraction),
        "snr_scale": tuple(train.snr_scale),
    }
    same = (
        "network",
        "filters",
        "shrink",
        "residual",
        "batch_size",
        "learning_rate",
        "schedule",
        "loss",
        "steps_per_epoch",
        "max_epochs",
        "patience",
        "bias_amplitude",
        "mirror",
    )
    inputs.update({field: getattr(train, field) for field in same})
    for field in ("steps", "start_from"):
        if getattr(train, field) is not None:
            inputs[field] = getattr(train, field)
    return inputs
