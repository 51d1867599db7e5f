"""The group level of training: train an ensemble on the patch libraries, evaluate it on unseen subjects, and
store it. With ``--evaluate-model``, a model that exists is evaluated and nothing is trained.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from nipype.pipeline.engine import Node, Workflow

from iqtflow.bids.names import node_name, output_name, sidecar_name, stem_name
from iqtflow.bids.sidecars import describe_source
from iqtflow.config import SETTINGS, Settings, TrainSettings
from iqtflow.image.metadata import read_fields, skull_stripped
from iqtflow.models.card import Card
from iqtflow.models.model_file import find_model, read_card
from iqtflow.training.split import SPLIT_PARTS, keep_split, read_split, require_asked
from iqtflow.utils.errors import EXIT_OK, UsageError
from iqtflow.utils.files import require_name
from iqtflow.workflows.app.collect import list_inputs
from iqtflow.workflows.app.graphs import sink_node
from iqtflow.workflows.app.memory import CUDA_GB, training_gb
from iqtflow.workflows.execution.lock import make_own
from iqtflow.workflows.execution.run import find_lost, report_failures, run_graph

#: Folder of the patch libraries in the output folder.
PATCHES = "patches"
#: What to do if a model was trained on an evaluation subject.
REMEDY = 'Name others in the list "evaluation" of --split'


@dataclass(frozen=True)
class EvaluationScan:
    """A simulated low-field scan of an evaluation subject, and the high-field scan that it was made from.

    Attributes
    ----------
    subject
        Label without ``sub-``.
    stem
        Beginning of the names of its derivatives; no other scan has the same.
    low_field
        Simulated scan.
    truth, mask
        High-field scan, and brain mask on its grid.
    """

    subject: str
    stem: str
    low_field: Path
    truth: Path
    mask: Path

    @property
    def sidecar(self) -> Path:
        """JSON file of the simulated scan."""
        return sidecar_name(self.low_field)


def run_group(settings: Settings, *, name: str) -> int:
    """Train, evaluate and store the model, its scores and its page; return the exit code.

    Parameters
    ----------
    settings
        All settings.
    name
        Name of the top workflow.

    Raises
    ------
    UsageError
        There are too few subjects to split, or the participant level has not prepared a subject of the split.
    """
    train = settings.train
    split = settle_split(settings)
    evaluation = find_evaluation(settings, split["evaluation"])
    libraries: dict[str, list[Path]] = {}
    model = train.output_model
    if train.evaluate_model is not None:
        card = check_existing(train.evaluate_model, evaluation, settings)
        model = train.model_name or require_name(card.name, "name in the model's card")
    else:
        libraries = {part: find_libraries(settings, split[part]) for part in ("train", "validation")}
        check_start(train, split["evaluation"])
    workflow = build_train_graph(libraries, evaluation, settings, split=split, model_name=model, name=name)
    return run_and_report(workflow, settings, evaluation, model_name=model)


def run_and_report(
    workflow: Workflow, settings: Settings, evaluation: Sequence[EvaluationScan], *, model_name: str
) -> int:
    """Run a graph that stores a model and its scores, print them, and write the page; return the exit code.

    Parameters
    ----------
    workflow
        The graph.
    settings
        All settings.
    evaluation
        The scans that the scores are of.
    model_name
        Name of the model.

    Raises
    ------
    OutputError
        A result is not there any more.
    """
    from iqtflow.evaluation.uncertainty_calibration import reliability_phrase
    from iqtflow.reports.assemble.group import write_training_page
    from iqtflow.reports.assemble.model_card import write_model_card
    from iqtflow.reports.record import Record

    output = settings.paths.output_dir
    failures = run_graph(workflow, settings)
    if failures:
        return report_failures(failures)
    stored, scores, metrics = (output_name(what, model=model_name) for what in ("model", "scores", "metrics"))
    lost = find_lost(output, [stored, *((metrics, scores) if evaluation else ())])
    if lost is not None:
        raise lost
    if evaluation:
        summary = json.loads((output / scores).read_text(encoding="utf-8"))
        print(f"iqtflow: {describe_scores(summary)}", flush=True)
        if "reliability" in summary:
            print(f"iqtflow: uncertainty: {reliability_phrase(summary['reliability'])}", flush=True)
    figures = f"; figures {output / metrics}" if evaluation else ""
    print(f"iqtflow: model {output / stored}{figures}", flush=True)
    # Last: a card or page that cannot be written costs no other result.
    scans = [
        Record("enhanced", e.low_field, subject=e.subject, truth=e.truth, mask=e.mask) for e in evaluation
    ]
    print(f"iqtflow: model card {write_model_card(output, model_name, scans=scans)}", flush=True)
    page = write_training_page(output, model_name, scans=scans)
    print(f"iqtflow: open {page} in a browser", flush=True)
    return EXIT_OK


def settle_split(settings: Settings) -> dict[str, tuple[str, ...]]:
    """Return the split of the subjects: the one given, else the one that an earlier run stored, else a new
    one, which is stored. To evaluate an existing model without a split given, take all prepared subjects.

    Raises
    ------
    UsageError
        There are too few subjects to split, or the stored split has subjects that the run does not ask for.
    """
    if settings.train.split is not None:
        return read_split(settings.train.split)
    labels = prepared_subjects(settings)
    if settings.train.evaluate_model is not None:
        return {**dict.fromkeys(SPLIT_PARTS, ()), "evaluation": tuple(labels)}
    path = settings.paths.output_dir / output_name("split")
    stored = path.exists()
    split = keep_split(path, labels, seed=settings.run.seed, ratio=settings.train.split_ratio)
    subjects = (label for part in SPLIT_PARTS for label in split[part])
    require_asked(path, subjects, settings.run.participant_labels)
    sizes = ", ".join(f"{len(split[part])} {part}" for part in SPLIT_PARTS)
    print(f"iqtflow: split {'read from' if stored else 'drawn and stored in'} {path}: {sizes}", flush=True)
    others = sorted(set(labels) - {label for part in SPLIT_PARTS for label in split[part]})
    if others:
        print(f"  note: not in it, and left out: {', '.join(f'sub-{label}' for label in others)}", flush=True)
    return split


def prepared_subjects(settings: Settings) -> list[str]:
    """Return the labels, of those asked for, that the participant level has prepared."""
    folder, wanted = settings.paths.output_dir / PATCHES, settings.run.participant_labels
    found = {path.name.split("_")[0].removeprefix("sub-") for path in folder.glob("sub-*")}
    return sorted(found & set(wanted) if wanted else found)


def describe_scores(summary: Mapping[str, Any]) -> str:
    """Return a summary of the evaluation as a phrase."""
    parts = []
    for name, label, unit in (("psnr", "PSNR", " dB"), ("mssim", "MSSIM", "")):
        ours, theirs, test = (summary[name][key] for key in (summary["method"], "spline", "wilcoxon"))
        digits = 2 if unit else 3
        p = f", Wilcoxon n = {test['n']}, p = {test['p']:.2g}" if test else ""
        mean, spline = (f"{scores['mean']:.{digits}f}{unit}" for scores in (ours, theirs))
        parts.append(f"{label} {mean} (cubic spline {spline}{p})")
    subjects = "subject" if summary["n"] == 1 else "subjects"
    folds = f"{len(summary['folds'])}-fold cross-validation, " if "folds" in summary else ""
    return f"{folds}on {summary['n']} unseen {subjects}: {'; '.join(parts)}"


def find_libraries(settings: Settings, subjects: Sequence[str]) -> list[Path]:
    """Return the patch libraries of subjects, of the sessions asked for, sorted by subject.

    Raises
    ------
    UsageError
        A subject has none.
    """
    folder = settings.paths.output_dir / PATCHES
    sessions = {f"ses-{label}" for label in settings.run.session_labels}
    ending = "pairs.npy" if settings.train.patch_library == "pairs" else "patches.safetensors"
    found = {
        label: sorted(
            path
            for pattern in (f"sub-{label}_*_{ending}", f"sub-{label}_{ending}")
            for path in folder.glob(pattern)
            if not sessions or sessions & set(path.name.split("_"))
        )
        for label in subjects
    }
    missing = [f"sub-{label}" for label, files in found.items() if not files]
    if missing:
        raise UsageError(
            folder,
            found=f"no patch library (..._{ending}) of {', '.join(missing)}",
            expected="one for each subject of the split",
            next_step="Run the participant level with --mode train and the same options on these subjects.",
        )
    return [path for label in subjects for path in found[label]]


def find_evaluation(settings: Settings, subjects: Sequence[str]) -> list[EvaluationScan]:
    """Return the simulated scans of the evaluation subjects.

    Raises
    ------
    UsageError
        A subject has none.
    """
    if not subjects:
        return []
    output, found = settings.paths.output_dir, []
    for scan in list_inputs(settings, subjects).scans:
        low, mask = output / output_name("draw", scan, number=1), output / output_name("mask", scan)
        item = EvaluationScan(scan.subject, stem_name(scan).name, low, scan.path, mask)
        if all(path.exists() for path in (low, item.sidecar, mask)):
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


def check_existing(
    model: str | os.PathLike, evaluation: Sequence[EvaluationScan], settings: Settings
) -> Card:
    """Return the card of a model that is to be evaluated on subjects that it was not trained on.

    Raises
    ------
    InputError
        The model cannot be read.
    UsageError
        There is no evaluation subject, the model was trained on one of them, or it is for another upsampling
        factor.
    """
    card = read_card(model)
    if not evaluation:
        raise UsageError(
            "--evaluate-model",
            found="no evaluation subject in the split",
            expected="at least one",
            next_step='Name subjects that the model was not trained on in the list "evaluation" of --split.',
        )
    if card.k != settings.train.upsampling_factor:
        raise UsageError(
            "--evaluate-model",
            found=f"{card.name}, a model for k = {card.k}",
            expected=f"one for k = {settings.train.upsampling_factor}, as the simulated scans",
            next_step=f"Give -k {card.k}, at participant level too.",
        )
    check_unseen(card, [scan.subject for scan in evaluation], option="--evaluate-model")
    return card


def check_start(train: TrainSettings, evaluation: Iterable[str]) -> None:
    """Check that the model that training begins with, if any, was not trained on evaluation subjects.

    Raises
    ------
    UsageError
        As `check_unseen`.
    """
    if train.start_from is None:
        return
    remedy = "Leave these subjects out with --participant-label" if train.cross_validation else REMEDY
    check_unseen(read_card(train.start_from), evaluation, option="--start-from", remedy=remedy)


def check_unseen(card: Card, evaluation: Iterable[str], *, option: str, remedy: str = REMEDY) -> None:
    """Check that a model was not trained on the subjects that it is to be evaluated on.

    Parameters
    ----------
    card
        Card of the model, or of the model that training begins with.
    evaluation
        Labels of the evaluation subjects.
    option
        The option that names the model.
    remedy
        What the user can do.

    Raises
    ------
    UsageError
        It was trained on one of them.
    """
    both = ", ".join(f"sub-{label}" for label in sorted(card.subjects().intersection(evaluation)))
    if both:
        raise UsageError(
            option,
            found=f"{both} among the subjects that trained {card.name}",
            expected="evaluation subjects that it was not trained on",
            next_step=f"{remedy}. If only the labels are the same, rename your subjects.",
        )


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
    workflow = Workflow(name=name)
    part = add_training(workflow, libraries, evaluation, settings, split=split, model_name=model_name)
    if part.summarise is not None:
        store_scores(workflow, part.summarise, settings, model_name=model_name)
    return workflow


class TrainingPart(NamedTuple):
    """Parts of a graph that `add_training` has added."""

    training: Workflow  #: with the output ``model``
    scores: Node | None  #: lists the metrics of the evaluation scans; None without any
    summarise: Node | None  #: joins them


def add_training(
    workflow: Workflow,
    libraries: Mapping[str, Sequence[Path]],
    evaluation: Sequence[EvaluationScan],
    settings: Settings,
    *,
    split: Mapping[str, Sequence[str]],
    model_name: str,
    family: str = "",
    label: str = "",
) -> TrainingPart:
    """Add to a graph what trains and stores a model, and evaluates it.

    Parameters
    ----------
    workflow
        Changed in place.
    libraries, evaluation, settings, split, model_name
        As for `build_train_graph`.
    family
        The evaluated volumes are stored as those of this model; empty: of `model_name`.
    label
        End of the nodes' names, where a graph trains several models.
    """
    from nipype.interfaces.utility import Merge

    from iqtflow.interfaces.evaluate import SummariseMetrics
    from iqtflow.interfaces.train import StampFigures
    from iqtflow.workflows.evaluate import init_evaluate_wf

    run, train = settings.run, settings.train

    def sink(what: str, name: str = "", **given: str | int) -> Node:
        path = output_name(what, **{"model": model_name, **given})
        return sink_node(f"{what}{name}{label}", settings, path)

    if train.evaluate_model is not None:
        training, n_members = _trained(train.evaluate_model), 0
    else:
        training = _to_train(settings, libraries, split=split, model_name=model_name, name=f"train{label}")
        n_members = train.ensemble
    for member in range(1, n_members + 1):
        curves = sink("curves", str(member), member=member)
        workflow.connect(training, f"outputnode.curves{member}", curves, "in_file")
    model = sink("model")
    if not evaluation:
        workflow.connect(training, "outputnode.model", model, "in_file")
        return TrainingPart(training, None, None)

    scores = Node(Merge(len(evaluation)), name=f"scores{label}")
    members = n_members if n_members > 1 else 0  # a single network is the model
    for i, scan in enumerate(evaluation, start=1):
        who = node_name(scan.stem.removeprefix("sub-"))
        evaluate = init_evaluate_wf(
            name=f"evaluate_{who}",
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
            shown = {"model": family or model_name, "stem": scan.stem, "desc": desc}
            example = sink("example", f"_{desc}_{who}", **shown)
            workflow.connect(evaluate, f"outputnode.{field}", example, "in_file")
    summarise = Node(SummariseMetrics(), name=f"summarise{label}")
    stamp = Node(StampFigures(), name=f"stamp{label}")
    workflow.connect(
        [
            (scores, summarise, [("out", "in_files")]),
            (summarise, stamp, [("summary_file", "summary_file")]),
            (training, stamp, [("outputnode.model", "in_file")]),
            (stamp, model, [("out_file", "in_file")]),
        ]
    )
    return TrainingPart(training, scores, summarise)


def store_scores(workflow: Workflow, summarise: Node, settings: Settings, *, model_name: str) -> None:
    """Add the nodes that store the scores of all evaluation subjects."""
    for what, made in (
        ("metrics", "out_file"),
        ("metrics_dictionary", "dictionary_file"),
        ("scores", "summary_file"),
    ):
        sink = sink_node(what, settings, output_name(what, model=model_name))
        workflow.connect(summarise, made, sink, "in_file")


def _trained(model: str) -> Workflow:
    """Return a graph without a training node; its output is a model that exists."""
    from nipype.interfaces.utility import IdentityInterface

    outputnode = Node(IdentityInterface(["model"]), name="outputnode")
    outputnode.inputs.model = os.fspath(find_model(model)[0])
    workflow = Workflow(name="train")
    workflow.add_nodes([outputnode])
    return workflow


def _to_train(
    settings: Settings,
    libraries: Mapping[str, Sequence[Path]],
    *,
    split: Mapping[str, Sequence[str]],
    model_name: str,
    name: str,
) -> Workflow:
    """Return the graph that trains, with its inputs."""
    from iqtflow.workflows.train import init_train_wf

    run, train = settings.run, settings.train
    training = init_train_wf(
        name=name,
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
        data=describe_source(settings.paths.bids_dir),
        training=_training_inputs(train),
        mem_gb=training_gb(batch_size=train.batch_size, filters=train.filters)
        + (CUDA_GB if run.device == "cuda" else 0),
    )
    given = training.get_node("inputnode").inputs
    for part, files in libraries.items():
        setattr(given, f"{part}_libraries", [os.fspath(path) for path in files])
    return training


def _training_inputs(train: TrainSettings) -> dict[str, Any]:
    """Return the inputs of the training node that settings decide; those without a value stay undefined."""
    from iqtflow.interfaces.train import TrainModel

    names = SETTINGS["train"].keys() & TrainModel.input_spec().copyable_trait_names()
    names -= {"devices", "num_nodes", "tensorboard"}  # arguments of the workflow
    inputs = {name: getattr(train, name) for name in names if getattr(train, name) not in (None, ())}
    inputs["patch_size"] = train.patch_edge
    return {name: list(value) if name == "network_options" else value for name, value in inputs.items()}
