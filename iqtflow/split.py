"""Which subjects train a network, which decide when to stop, and which are kept to judge it by."""

from __future__ import annotations

import json
import os
from pathlib import Path

from iqtflow.errors import UsageError

SPLIT_PARTS = ("train", "validation", "evaluation")  #: the lists in a split, in this order


def read_split(path: str | os.PathLike) -> dict[str, tuple[str, ...]]:
    """Read a split of the subjects (Lin et al. 2019, section 3: 12, 3 and 15 of them).

    Parameters
    ----------
    path
        JSON: an object with the lists "train", "validation" and "evaluation" of labels, ``sub-`` or not.

    Returns
    -------
    dict
        Labels without ``sub-``, for each of :data:`SPLIT_PARTS`.

    Raises
    ------
    UsageError
        The file cannot be read, a list is missing, nobody trains or validates, or a subject is in it twice:
        what is measured on a subject that was trained on says nothing about other people.
    """
    try:
        lists = json.loads(Path(path).read_text(encoding="utf-8"))
        split = {part: tuple(label.removeprefix("sub-") for label in lists[part]) for part in SPLIT_PARTS}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as fault:
        raise _bad_split(path, f"{type(fault).__name__}: {fault}") from fault
    empty = [part for part in ("train", "validation") if not split[part]]
    if empty:
        raise _bad_split(path, f"no subject for {' and '.join(empty)}")
    labels = [label for part in SPLIT_PARTS for label in split[part]]
    twice = sorted({f"sub-{label}" for label in labels if labels.count(label) > 1})
    if twice:
        raise _bad_split(path, f"{', '.join(twice)} more than once")
    return split


def _bad_split(path: str | os.PathLike, found: str) -> UsageError:
    return UsageError(
        path,
        found=found,
        expected='JSON like {"train": ["01"], "validation": ["02"], "evaluation": ["03"]}, each subject once',
        next_step="Correct the file.",
    )
