"""Fine-tuning a model for one scanner: who trains, with which settings, and for how many steps."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from iqtflow.evaluation.comparison import LEAST_FOR_TEST
from iqtflow.models.card import Card
from iqtflow.utils.errors import UsageError

#: With fewer people, none is left to train on, to validate on, or to evaluate on two.
LEAST_PEOPLE = 4
#: More people take longer to prepare, and change a short fine-tuning little.
MOST_PEOPLE = 20
#: Share of the people that the models are compared on, and their largest number.
EVALUATED, MOST_EVALUATED = 0.4, 10
#: Share of the budget for preparing the people.
PREPARING = 0.4
LEAST_STEPS, MOST_STEPS = 20, 3000
#: Share of the time left that the steps are planned for: other programs may use the processors, too.
CAREFUL = 0.9
#: Settings of the shipped models (``benchmarks/train_shipped.sh``) that hold for any scanner.
SHIPPED: dict[str, Any] = {
    "uncertainty": "learn",
    "batch_size": 8,
    "optimiser": "muon",
    "learning_rate": 6e-4,
    "schedule": "cosine",
    "warmup": 20,
    "clip": 0.1,
    "average_with_start": True,
    "background_weight": 0.1,
    "mirror": True,
    "zoom": (0.85, 1.2),
    "contrast_jitter": 0.1,
    "steps_per_epoch": 50,
    "validation_batches": 8,
    "max_epochs": 100_000,
    "patience": 0,
}
#: Where the scanner does not tell: the range of the shipped models.
ANY_THICKNESS, ANY_BIAS, LEAST_STRIPES, LEAST_JITTER = (0.5, 1.0), 0.2, 0.05, 0.08
#: The blur in the plane is drawn from so many voxels below to so many above the measured one.
BLUR_RANGE = 0.2
#: A smaller blur, in voxels, is not simulated: the scans of people differ by as much.
LEAST_BLUR = 0.4


def adapted_settings(
    scanner: Mapping[str, Any] | None, card: Card, *, ratio: float, blur: float = 0.0
) -> dict[str, Any]:
    """Return the settings of training that simulate a scanner, as fields of `TrainSettings`.

    Parameters
    ----------
    scanner
        From `iqtflow.simulation.scanner.pool_scanner`; None: not measured.
    card
        Of the model that the training starts from; the network is the same.
    ratio
        Slice spacing over in-plane voxel size of the scans.
    blur
        Blur in the plane (FWHM) that the high-field images lack, in their voxels.
    """
    measured = scanner or {}
    thickness, bias, stripes = (
        measured.get(name) for name in ("thickness_fraction", "bias_amplitude", "stripes")
    )
    network = card["network"]["kwargs"]
    # The training takes the other settings of the network from the model that it starts from.
    general = {name: network[name] for name in ("filters", "shrink", "residual") if name in network}
    blurred = blur >= LEAST_BLUR
    return {
        **SHIPPED,
        **general,
        "upsampling_factor": card.k,
        "network": card["network"]["name"],
        "patch_size": 48 if card["network"]["name"] == "subpixel-unet" else None,
        "thickness_fraction": tuple(thickness["range"]) if thickness else ANY_THICKNESS,
        "bias_amplitude": min(bias["largest"], 1.0) if bias else ANY_BIAS,
        "stripes": max(min(1.5 * stripes["median"], 0.5), LEAST_STRIPES) if stripes else LEAST_STRIPES,
        "spacing_jitter": min(max(math.exp(abs(math.log(ratio / card.k))) - 1, LEAST_JITTER), 1.0),
        "plane_blur": (max(blur - BLUR_RANGE, 0.0), blur + BLUR_RANGE) if blurred else (0.0, 0.0),
        "noise": measured.get("noise_distribution") or "gaussian",
        "evaluate_as": "training",
    }


def choose_people(
    labels: Sequence[str], seen: Collection[str], *, seed: int, most: int = MOST_PEOPLE
) -> dict[str, tuple[str, ...]]:
    """Choose who trains, validates and evaluates.

    Parameters
    ----------
    labels
        Labels of all high-field people.
    seen
        Those that the model was trained on. They are never among the people for the evaluation.
    seed
        The same labels and seed give the same lists.
    most
        Largest number of people in all lists, at least `LEAST_PEOPLE`.

    Returns
    -------
    dict
        A split, as from `iqtflow.training.split.read_split`.

    Raises
    ------
    UsageError
        There are too few people, or the model was trained on all but one.
    """
    ordered = sorted(set(labels))
    shuffled = [ordered[i] for i in np.random.default_rng([seed, 0xADA97]).permutation(len(ordered))]
    unseen = [label for label in shuffled if label not in seen]
    if len(shuffled) < LEAST_PEOPLE or len(unseen) < 2:
        few = f"{len(shuffled)} people, {len(unseen)} of them not in the training of the shipped model"
        raise UsageError(
            "--highfield",
            found=few,
            expected=f"{LEAST_PEOPLE} or more, 2 of them not in the training of the shipped model",
            next_step="Add people. If only the labels are the same, rename your subjects.",
        )
    n = min(len(shuffled), max(most, LEAST_PEOPLE))
    enough = min(LEAST_FOR_TEST, n - LEAST_PEOPLE)  # for a significant test, if people remain to train on
    judged = unseen[: min(max(round(EVALUATED * n), enough, 2), MOST_EVALUATED)]
    rest = [label for label in shuffled if label not in judged][: n - len(judged)]
    n_validation = 1 if len(rest) < 8 else 2
    parts = {"train": rest[n_validation:], "validation": rest[:n_validation], "evaluation": judged}
    return {part: tuple(sorted(chosen)) for part, chosen in parts.items()}


def people_in_time(budget_s: float, person_s: float, n_procs: int) -> int:
    """Return how many people can be prepared in their share of the budget, within the limits."""
    fit = int(PREPARING * budget_s * n_procs / person_s)
    return min(max(fit, LEAST_PEOPLE), MOST_PEOPLE)


def plan_steps(left_s: float, step_s: float) -> int:
    """Return the number of optimisation steps for the time that is left, within the limits."""
    return min(max(int(CAREFUL * left_s / step_s), LEAST_STEPS), MOST_STEPS)


def adapted_name(data_set: str, k: int, shipped: Collection[str]) -> str:
    """Return a name for the adapted model, from the name of the data set; no shipped model has it.

    Examples
    --------
    >>> adapted_name("St. Mary's, 0.3 T", 4, {"iqt-k4"})
    'StMarys03T-k4'
    """
    words = "".join(re.findall(r"[A-Za-z0-9]+", data_set))[:40] or "site"
    name = f"{words}-k{k}"
    return f"site-{name}" if name.lower() in {one.lower() for one in shipped} else name
