"""Cross-validation: whole subjects are dealt into folds. The model of a fold is trained on the other folds
and evaluated on this one, so that each subject is evaluated once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence

from iqtflow.training.split import (
    RATIO,
    SPLIT_PARTS,
    as_lists,
    check_split,
    draw_split,
    read_lists,
    require_ratio,
)
from iqtflow.utils.errors import UsageError
from iqtflow.utils.files import write_text

FINAL = "final"  #: key of the split of the final model, which is trained on all subjects

Split = Mapping[str, tuple[str, ...]]


def fold_name(number: int) -> str:
    """Return the key of a fold, also the end of its model's name; folds are counted from 1."""
    return f"fold-{number}"


def deal_folds(
    labels: Sequence[str], *, folds: int, seed: int, ratio: Sequence[int] = RATIO
) -> dict[str, Split]:
    """Deal subjects into folds at random.

    Parameters
    ----------
    labels
        Labels of all subjects, in any order, without ``sub-``.
    folds
        Number of folds, N.
    seed
        The same labels and seed give the same folds.
    ratio
        The first two numbers are the proportions of training and validation subjects in each fold.

    Returns
    -------
    dict
        A split, as `iqtflow.training.split.draw_split` returns it, for each of ``fold-1`` to ``fold-N``. The
        numbers of evaluation subjects differ by at most one. `FINAL` has all subjects for training and
        validation.

    Raises
    ------
    UsageError
        There are too few subjects, or the share of training or validation subjects is 0.
    """
    import numpy as np

    ordered = sorted(set(labels))
    # Without a fold, one subject for training and one for validation must remain.
    fewest = 4 if folds == 2 else folds
    if len(ordered) < fewest:
        raise UsageError(
            f"--cross-validation {folds}",
            found=f"{len(ordered)} prepared subject{'' if len(ordered) == 1 else 's'}",
            expected=f"at least {fewest}",
            next_step="Choose fewer folds (N folds need N subjects, 2 folds need 4), or run the "
            "participant level with --mode train on more subjects.",
        )
    require_ratio(ratio)
    rng = np.random.default_rng([seed, 0xF01D5])
    shuffled = [ordered[i] for i in rng.permutation(len(ordered))]
    rest = (*ratio[:2], 0)
    dealt: dict[str, Split] = {}
    for number in range(1, folds + 1):
        judged = shuffled[number - 1 :: folds]
        others = sorted(set(ordered) - set(judged))
        split = draw_split(others, seed=seed + number, ratio=rest)
        dealt[fold_name(number)] = {**split, "evaluation": tuple(sorted(judged))}
    return {**dealt, FINAL: draw_split(ordered, seed=seed, ratio=rest)}


def write_folds(path: str | os.PathLike, dealt: Mapping[str, Split]) -> None:
    """Store folds as JSON: for each one a split in the form of a split file.

    Raises
    ------
    OutputError
        The file cannot be written.
    """
    write_text(path, json.dumps({name: as_lists(split) for name, split in dealt.items()}, indent=1) + "\n")


def read_folds(path: str | os.PathLike, *, folds: int) -> dict[str, Split]:
    """Read folds that `write_folds` has stored.

    Raises
    ------
    UsageError
        The file cannot be read, a fold is missing, a subject is in two lists of a fold, or is not evaluated
        in exactly one fold.
    """
    names = [*map(fold_name, range(1, folds + 1)), FINAL]
    name = ""
    dealt: dict[str, Split] = {}
    try:
        lists = read_lists(path)
        if not isinstance(lists, dict) or list(lists) != names:
            raise _bad_folds(path, "other entries", ", ".join(names))
        for name in names:
            dealt[name] = check_split(path, lists[name])
    except UsageError as fault:
        where = f" in {name}" if name else ""
        expected = f"{', '.join(names)}, each with the lists {', '.join(SPLIT_PARTS)}"
        raise _bad_folds(path, f"{fault.found}{where}", expected) from fault
    everybody = sorted(label for split in dealt.values() for label in split["evaluation"])
    for name, split in dealt.items():
        if sorted(label for part in SPLIT_PARTS for label in split[part]) != everybody:
            raise _bad_folds(path, f"other subjects in {name}", "each subject evaluated in exactly one fold")
    if dealt[FINAL]["evaluation"]:
        raise _bad_folds(path, f"evaluation subjects in {FINAL}", "none")
    return dealt


def _bad_folds(path: str | os.PathLike, found: str, expected: str) -> UsageError:
    next_step = "Correct the file, or delete it to deal the subjects again."
    return UsageError(path, found=found, expected=expected, next_step=next_step)
