"""The split of subjects into training, validation and evaluation."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from iqtflow.bids.names import is_label
from iqtflow.utils.errors import UsageError
from iqtflow.utils.files import read_text, write_text

SPLIT_PARTS = ("train", "validation", "evaluation")  #: the lists in a split, in this order
RATIO = (12, 3, 15)  #: the paper's numbers of subjects (section 3)


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
        The file cannot be read, a list is missing, the training or the validation list is empty, a label has
        other characters than letters and digits, or a subject is listed twice.
    """
    return check_split(path, read_lists(path))


def read_lists(path: str | os.PathLike) -> object:
    """Return the content of a JSON file with one or several splits, not yet checked.

    Raises
    ------
    UsageError
        It cannot be read.
    """
    try:
        return json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as fault:
        words = " ".join(str(fault).split())
        raise _bad_split(
            path, f"no JSON ({words})" if isinstance(fault, json.JSONDecodeError) else words
        ) from fault


def check_split(path: str | os.PathLike, lists: object) -> dict[str, tuple[str, ...]]:
    """Return the split that the content of a file states; `path` is for the message.

    Raises
    ------
    UsageError
        As `read_split`.
    """
    try:
        if not isinstance(lists, dict):
            raise TypeError("no object with three lists")
        missing = [part for part in SPLIT_PARTS if part not in lists]
        if missing:
            raise TypeError(f"no list {' and no list '.join(missing)}")
        split = {part: _labels(lists[part], part) for part in SPLIT_PARTS}
    except TypeError as fault:
        raise _bad_split(path, " ".join(str(fault).split())) from fault
    empty = [part for part in ("train", "validation") if not split[part]]
    if empty:
        raise _bad_split(path, f"no subject for {' and '.join(empty)}")
    labels = [label for part in SPLIT_PARTS for label in split[part]]
    twice = sorted({f"sub-{label}" for label in labels if labels.count(label) > 1})
    if twice:
        raise _bad_split(path, f"{', '.join(twice)} more than once")
    return split


def draw_split(
    labels: Sequence[str], *, seed: int, ratio: Sequence[int] = RATIO
) -> dict[str, tuple[str, ...]]:
    """Draw a split of subjects.

    Parameters
    ----------
    labels
        Labels of all subjects, in any order, without ``sub-``.
    seed
        The same labels and seed give the same split.
    ratio
        Proportions of training, validation and evaluation subjects. Each list has at least one subject; the
        last one may be empty if its share is 0 or there are only two subjects.

    Returns
    -------
    dict
        As `read_split`, each list sorted.

    Raises
    ------
    UsageError
        There are fewer than two subjects, or the share of training or validation subjects is 0.
    """
    import numpy as np

    ordered = sorted(set(labels))
    if len(ordered) < 2:
        raise UsageError(
            "subjects to train on",
            found=", ".join(f"sub-{label}" for label in ordered) or "none",
            expected="at least two: one for training, one for validation",
            next_step="Run the participant level with --mode train on more subjects.",
        )
    require_ratio(ratio)
    least = [1, 1, 1 if ratio[2] and len(ordered) > 2 else 0]
    spare = len(ordered) - sum(least)
    # Subjects beyond one for each part are shared by the largest remainders.
    wanted = [max(len(ordered) * r / sum(ratio) - n, 0) for r, n in zip(ratio, least, strict=True)]
    exact = [spare * w / sum(wanted) if sum(wanted) else 0.0 for w in wanted]
    sizes = [n + int(e) for n, e in zip(least, exact, strict=True)]
    by_remainder = sorted(range(3), key=lambda part: int(exact[part]) - exact[part])
    for part in by_remainder[: len(ordered) - sum(sizes)]:
        sizes[part] += 1
    shuffled = [ordered[i] for i in np.random.default_rng([seed, 0x5B117]).permutation(len(ordered))]
    split: dict[str, tuple[str, ...]] = {}
    first = 0
    for name, size in zip(SPLIT_PARTS, sizes, strict=True):
        split[name] = tuple(sorted(shuffled[first : first + size]))
        first += size
    return split


def require_ratio(ratio: Sequence[int]) -> None:
    """Make sure that a ratio gives training and validation subjects.

    Raises
    ------
    UsageError
        The share of training or validation subjects is 0.
    """
    if len(ratio) != 3 or min(ratio) < 0 or not ratio[0] or not ratio[1]:
        raise UsageError(
            "--split-ratio",
            found=" ".join(map(str, ratio)),
            expected="three numbers, the first two above 0",
            next_step="The paper's are 12 3 15.",
        )


def require_asked(path: str | os.PathLike, subjects: Iterable[str], asked: Sequence[str]) -> None:
    """Make sure that a stored split has no other subjects than those that a run asks for.

    Parameters
    ----------
    path
        File of the stored split or folds, for the message.
    subjects
        Labels in it.
    asked
        Labels that the run asks for; empty: all.

    Raises
    ------
    UsageError
        The file has others.
    """
    others = ", ".join(f"sub-{label}" for label in sorted(set(subjects) - set(asked))) if asked else ""
    if others:
        raise UsageError(
            path,
            found=f"{others}, from an earlier run",
            expected="only the subjects of --participant-label",
            next_step="Leave --participant-label out, or delete the file to draw at random again.",
        )


def keep_split(
    path: str | os.PathLike, labels: Sequence[str], *, seed: int, ratio: Sequence[int] = RATIO
) -> dict[str, tuple[str, ...]]:
    """Return the stored split, or draw one and store it, so that later runs use the same one.

    Parameters
    ----------
    path
        JSON file; written if it is missing.
    labels, seed, ratio
        As for `draw_split`; used the first time only.

    Raises
    ------
    UsageError
        As `read_split` and `draw_split`.
    OutputError
        The file cannot be written.
    """
    if Path(path).exists():
        return read_split(path)
    split = draw_split(labels, seed=seed, ratio=ratio)
    write_text(path, json.dumps(as_lists(split), indent=1) + "\n")
    return split


def as_lists(split: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return a split as its file has it, with ``sub-``."""
    return {part: [f"sub-{label}" for label in split[part]] for part in SPLIT_PARTS}


def _labels(labels: object, part: str) -> tuple[str, ...]:
    if not isinstance(labels, list):  # a text would be taken for a list of letters
        raise TypeError(f"{json.dumps(labels)[:40]} under {part}, not a list")
    bare = [str(label).removeprefix("sub-") if isinstance(label, str) else "" for label in labels]
    wrong = [label for label, text in zip(labels, bare, strict=True) if not is_label(text)]
    if wrong:
        raise TypeError(f"{wrong[0]!r} under {part}, which is no label of BIDS in quotes")
    return tuple(bare)


def _bad_split(path: str | os.PathLike, found: str) -> UsageError:
    return UsageError(
        path,
        found=found,
        expected='JSON like {"train": ["01"], "validation": ["02"], "evaluation": ["03"]}, each subject once',
        next_step="Correct the file.",
    )
