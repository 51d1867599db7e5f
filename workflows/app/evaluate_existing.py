"""Group level of training without training: a model that exists, judged on people that it has not seen."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nipype.pipeline.engine import Workflow

from iqtflow.config import Settings
from iqtflow.models.model_file import find_model, known_subjects, read_card
from iqtflow.training.split import SPLIT_PARTS, read_split
from iqtflow.utils.errors import UsageError

if TYPE_CHECKING:
    from iqtflow.workflows.app.group import EvaluationScan


def people_to_judge_on(settings: Settings) -> dict[str, tuple[str, ...]]:
    """Return a split for a model that is not to be trained: all who were prepared are to judge it by, or
    those whom a split that was given keeps for that.
    """
    if settings.train.split is not None:
        return read_split(settings.train.split)
    return {**dict.fromkeys(SPLIT_PARTS, ()), "evaluation": tuple(prepared(settings))}


def check_judged(
    model: str | os.PathLike, evaluation: Sequence[EvaluationScan], settings: Settings
) -> dict[str, Any]:
    """Return the card of a model that is to be judged on people that it does not know.

    Raises
    ------
    InputError
        The model cannot be read.
    UsageError
        There is nobody to judge it on, it has seen them, or it is for scans of another up-scaling factor.
    """
    card = read_card(model)
    if not evaluation:
        raise UsageError(
            "--evaluate-model",
            found="no evaluation subject in the split",
            expected="at least one",
            next_step='Name people whom the model has not seen in the list "evaluation" of --split.',
        )
    if card["k"] != settings.train.upsampling_factor:
        raise UsageError(
            "--evaluate-model",
            found=f"{card['name']}, a model for k = {card['k']}",
            expected=f"one for k = {settings.train.upsampling_factor}, as the simulated scans",
            next_step=f"Give -k {card['k']}, at participant level too.",
        )
    check_unknown(card, [scan.subject for scan in evaluation], option="--evaluate-model")
    return card


def check_unknown(card: Mapping[str, Any], evaluation: Iterable[str], *, option: str) -> None:
    """Make sure that a model has never seen the people that it, or what begins with it, is to be judged on.

    Parameters
    ----------
    card
        Of the model.
    evaluation
        Labels.
    option
        That named the model.

    Raises
    ------
    UsageError
        It has seen one of them.
    """
    both = ", ".join(f"sub-{label}" for label in sorted(known_subjects(card).intersection(evaluation)))
    if both:
        raise UsageError(
            option,
            found=f"{both} among the people that trained {card['name']}",
            expected="people that it has never seen",
            next_step='Name others in the list "evaluation" of --split, or give people other labels if only '
            "the labels are the same.",
        )


def prepared(settings: Settings) -> list[str]:
    """Labels, of those asked for, that the participant level has prepared."""
    folder, wanted = settings.paths.output_dir / "patches", settings.run.participant_labels
    found = {path.name.split("_")[0].removeprefix("sub-") for path in folder.glob("sub-*")}
    return sorted(found & set(wanted) if wanted else found)


def trained(model: str) -> Workflow:
    """Return a graph that stands for a training which is over: it hands on the model."""
    from nipype.interfaces.utility import IdentityInterface
    from nipype.pipeline.engine import Node

    outputnode = Node(IdentityInterface(["model"]), name="outputnode")
    outputnode.inputs.model = os.fspath(find_model(model)[0])
    workflow = Workflow(name="train")
    workflow.add_nodes([outputnode])
    return workflow
