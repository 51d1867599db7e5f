"""The group level of training with ``--cross-validation N``: train and evaluate a model for each fold, then
train the model to use on all subjects.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from nipype.pipeline.engine import Node, Workflow

from iqtflow.bids.names import output_name
from iqtflow.config import Settings
from iqtflow.training.folds import FINAL, Split, deal_folds, fold_name, read_folds, write_folds
from iqtflow.training.split import SPLIT_PARTS, require_asked
from iqtflow.workflows.app.group import (
    EvaluationScan,
    add_training,
    check_start,
    find_evaluation,
    find_libraries,
    prepared_subjects,
    run_and_report,
    store_scores,
)


def run_group(settings: Settings, *, name: str) -> int:
    """Train, evaluate and store the models of the folds and the final one; return the exit code.

    Parameters
    ----------
    settings
        All settings, ``--cross-validation`` among them.
    name
        Name of the top workflow.

    Raises
    ------
    UsageError
        There are too few subjects for the folds, the participant level has not prepared one of them, or
        training begins with a model that was trained on one of them.
    """
    path, folds = stored_folds(settings), settings.train.cross_validation or 0
    known = path.exists()
    dealt = settle_folds(settings)
    subjects = [label for part in SPLIT_PARTS for label in dealt[FINAL][part]]
    check_start(settings.train, subjects)
    evaluation, model = find_evaluation(settings, sorted(subjects)), settings.train.output_model
    workflow = build_folds_graph(dealt, evaluation, settings, model_name=model, name=name)
    if not known:
        write_folds(path, dealt)
    print(f"iqtflow: {folds} folds {'read from' if known else 'dealt and stored in'} {path}", flush=True)
    print(*describe_folds(dealt), sep="\n", flush=True)
    others = sorted(set(prepared_subjects(settings)) - set(subjects))
    if others:
        print(
            f"  note: not in them, and left out: {', '.join(f'sub-{label}' for label in others)}", flush=True
        )
    code = run_and_report(workflow, settings, evaluation, model_name=model)
    written = {fold_name(number) for number in range(1, folds + 1)}
    models = settings.paths.output_dir.glob(os.fspath(output_name("model", model=f"{model}_fold-*")))
    earlier = sorted(path.name for path in models if path.stem.removeprefix(f"{model}_") not in written)
    if earlier:
        print(f"  note: not of these folds, but of an earlier run: {', '.join(earlier)}", flush=True)
    return code


def stored_folds(settings: Settings) -> Path:
    """Return the file that keeps the folds for later runs."""
    return settings.paths.output_dir / output_name("folds", folds=settings.train.cross_validation or 0)


def settle_folds(settings: Settings) -> dict[str, Split]:
    """Return the folds that an earlier run stored, else new ones, which are not stored yet.

    Raises
    ------
    UsageError
        The stored ones cannot be used, or there are too few subjects.
    """
    path, train = stored_folds(settings), settings.train
    folds = train.cross_validation or 0
    if path.exists():
        dealt = read_folds(path, folds=folds)
        subjects = (label for part in SPLIT_PARTS for label in dealt[FINAL][part])
        require_asked(path, subjects, settings.run.participant_labels)
        return dealt
    labels = prepared_subjects(settings)
    return deal_folds(labels, folds=folds, seed=settings.run.seed, ratio=train.split_ratio)


def describe_folds(dealt: Mapping[str, Split]) -> list[str]:
    """Return a line for each fold and for the final model."""
    lines = []
    for fold, split in dealt.items():
        sizes = f"{len(split['train'])} training, {len(split['validation'])} validation"
        judged = ", ".join(f"sub-{label}" for label in split["evaluation"])
        lines.append(f"  {fold}: {sizes}, evaluation {judged}" if judged else f"  {fold}: {sizes}")
    return lines


def build_folds_graph(
    dealt: Mapping[str, Split],
    evaluation: Sequence[EvaluationScan],
    settings: Settings,
    *,
    model_name: str,
    name: str = "group",
) -> Workflow:
    """Build the graph that trains and evaluates a model for each fold, joins the scores of all subjects, and
    trains the final model.

    Parameters
    ----------
    dealt
        The folds, from `iqtflow.training.folds.deal_folds`.
    evaluation
        Simulated scans of all subjects.
    settings
        All settings.
    model_name
        Name of the final model. The model of a fold adds ``_fold-N``.
    name
        Name of the workflow.
    """
    from nipype.interfaces.utility import Merge

    from iqtflow.interfaces.evaluate import SummariseMetrics

    def libraries(split: Split) -> dict[str, list[Path]]:
        return {part: find_libraries(settings, split[part]) for part in ("train", "validation")}

    splits = [split for fold, split in dealt.items() if fold != FINAL]
    workflow = Workflow(name=name)
    scores = Node(Merge(len(splits)), name="scores")
    for number, split in enumerate(splits, start=1):
        part = add_training(
            workflow,
            libraries(split),
            [scan for scan in evaluation if scan.subject in split["evaluation"]],
            settings,
            split=split,
            model_name=f"{model_name}_{fold_name(number)}",
            family=model_name,
            label=f"_fold{number}",
        )
        workflow.connect(part.scores, "out", scores, f"in{number}")
    numbers = {label: i for i, split in enumerate(splits, start=1) for label in split["evaluation"]}
    summarise = Node(SummariseMetrics(folds=numbers), name="summarise")
    workflow.connect(scores, "out", summarise, "in_files")
    store_scores(workflow, summarise, settings, model_name=model_name)
    final = add_training(
        workflow, libraries(dealt[FINAL]), (), settings, split=dealt[FINAL], model_name=model_name
    )
    workflow.connect(summarise, "summary_file", final.training, "join.cross_validation_file")
    return workflow
