"""What was given and cannot be meant: values of a settings file that the command line would refuse, and
options that nothing reads in a run like this.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from iqtflow.config import FRESH_ONLY, PARTICIPANT, Settings
from iqtflow.utils.errors import InputError, UsageError

#: Modes in which the options of a section have a meaning: given in another mode, they are a mistake.
SECTION_MODES = {"enhance": ("enhance",), "train": ("train",), "segmentation": ("train", "calibrate")}
#: Settings of training that both levels read.
_BOTH_LEVELS = ("upsampling_factor", "snr_prior", "draws", "patch_library", "patch_size")
#: Settings that stay in force when a model is judged and none is trained.
_JUDGING = ("evaluate_model", "split", "model_name", *_BOTH_LEVELS, *PARTICIPANT)


def convert_values(
    parser: argparse.ArgumentParser, values: Mapping[str, Mapping[str, Any]], path: str | os.PathLike
) -> dict[str, dict[str, Any]]:
    """Pass the values of a settings file through the same checks as those of the command line.

    Parameters
    ----------
    parser
        Of the command line.
    values
        By section and key.
    path
        The file.

    Raises
    ------
    UsageError
        A value would be refused on the command line.
    """
    actions: dict[str, argparse.Action] = {}
    for action in parser._actions:
        actions.setdefault(action.dest, action)
    converted: dict[str, dict[str, Any]] = {}
    for section, fields in values.items():
        converted[section] = {}
        for key, value in fields.items():
            action = actions.get(f"{section}__{key}")
            try:
                converted[section][key] = value if action is None else _convert(action, value)
            except (argparse.ArgumentTypeError, ValueError, TypeError) as fault:
                raise UsageError(
                    path,
                    found=f"{key} = {value!r} in [{section}] ({fault})",
                    expected=f"what {'/'.join(action.option_strings) or action.metavar} takes",
                    next_step="Correct the value; iqtflow --help describes it.",
                ) from fault
    return converted


def _convert(action: argparse.Action, value: Any) -> Any:
    read: Callable[[str], Any] | None = action.type if callable(action.type) else None
    if action.nargs == 0 and isinstance(value, int) and value < 0:  # how often a flag is given
        raise ValueError("less than 0")
    if isinstance(value, bool) or action.nargs == 0:
        return value
    items = list(value) if isinstance(value, tuple) else [value]
    if isinstance(value, tuple) and action.nargs is None:  # such as x,y
        return items if read is None else read(",".join(map(str, items)))
    if isinstance(action.nargs, int) and len(items) != action.nargs:
        raise ValueError(f"{len(items)} values instead of {action.nargs}")
    if not items and not action.option_strings:  # of an option it means: all
        raise ValueError("nothing")
    for item in items:
        if item == "":
            raise ValueError("an empty text")
        if "\0" in str(item):
            raise ValueError("a character that no text has")
        if action.choices is not None and item not in action.choices:
            raise ValueError(f"none of {', '.join(map(str, action.choices))}")
    if read is not None and read is not Path:
        items = [read(str(item)) for item in items]
    return tuple(items) if isinstance(value, tuple) else items[0]


def refuse_options(
    parser: argparse.ArgumentParser, options: argparse.Namespace, untouched: argparse.ArgumentParser
) -> list[str]:
    """Refuse options that nothing would read; values of a settings file, which is for many runs, may stay.

    Parameters
    ----------
    parser
        Ends the program, with what is wrong.
    options
        As parsed.
    untouched
        A parser that has only the settings file's values.

    Returns
    -------
    list of str
        Notes on options that another run reads: two commands may share their options.
    """
    notes = []
    for action in parser._actions:
        value = getattr(options, action.dest, None)
        if value == untouched.get_default(action.dest) or not action.option_strings:
            continue
        flag = action.option_strings[0 if value is True else -1]  # else --no-...
        if value == "":
            parser.error(f"{flag} is empty; leave it out, or give it a value")
        section, _, key = action.dest.partition("__")
        for why in _mistakes(options, section, key or action.dest):
            parser.error(f"{flag} {why}")
        notes += [f"{flag} {why}: it has no effect in this run" for why in _idle(options, section, key)]
    return notes


def check_settings(settings: Settings) -> None:
    """Make sure that what the settings name is there and goes together, before the data set is looked at.

    Raises
    ------
    UsageError
        A group level where there is none, settings of a training that do not go together, or a model, a
        prior, a split or a file for a cluster that cannot be worked with.
    """
    from iqtflow.bids.index import read_filters
    from iqtflow.models.model_file import find_model
    from iqtflow.models.registry import allow_network
    from iqtflow.models.zoo import candidates
    from iqtflow.simulation.snr_prior import read_prior
    from iqtflow.training.split import read_split
    from iqtflow.training.training_settings import check_training

    run, enhance, train = settings.run, settings.enhance, settings.train
    if run.mode == "enhance" and "group" in run.levels:
        raise UsageError(
            "group",
            found="the group level in --mode enhance, which has none",
            expected="participant; or group together with --mode train or --mode calibrate",
            next_step="The participant level does all the work, its pages and index.html included.",
        )
    try:
        if run.mode == "enhance":
            candidates(enhance.model, enhance.contrast)
        if run.mode == "train":
            check_training(train)
            allow_network(train.network)
            read_prior(train.snr_prior)
            for model in (train.start_from, train.evaluate_model):
                if model is not None:
                    find_model(model)
    except UsageError:
        raise
    except InputError as fault:  # of one file; here nothing can be done without it
        raise UsageError(
            fault.path, found=fault.found, expected=fault.expected, next_step=fault.next_step
        ) from fault
    if train.split is not None:
        read_split(train.split)
    if settings.inputs.filter_file is not None:
        contrast = enhance.contrast if run.mode == "enhance" else "T1w"
        read_filters(settings.inputs.filter_file, contrast)
    if run.use_plugin is not None:
        from iqtflow.workflows.execution.cluster import read_plugin_file

        read_plugin_file(run.use_plugin)


def _mistakes(options: argparse.Namespace, section: str, key: str) -> Iterator[str]:
    """Yield why a setting that was given cannot be meant in this run."""
    mode = options.run__mode
    modes = ("enhance", "calibrate") if key == "force" else SECTION_MODES.get(section, (mode,))
    levels = options.run__levels or ()
    if mode not in modes:
        yield f"is for --mode {' or '.join(modes)}; the mode is {mode}"
    if key in FRESH_ONLY and levels and "group" not in levels:
        yield (
            "is for the group level, which trains on fresh draws: the scans that the participant level "
            "stores, to judge by or for --draws N, are always simulated as in the paper"
        )
    if key == "patch_fraction" and options.train__patch_library != "pairs":
        yield "is for --patch-library pairs"
    if key == "split_ratio" and options.train__split is not None:
        yield "is for a split that is drawn; there is --split"
    if key in ("spm_dir", "tpm", "octave") and options.segmentation__engine in ("ants", "derivatives"):
        yield f"is for SPM; there is --segmentation {options.segmentation__engine}"
    if key == "bids_database_wipe" and options.inputs__database_dir is None:
        yield "is for an index that is kept; add --bids-database-dir DIR"


def _idle(options: argparse.Namespace, section: str, key: str) -> Iterator[str]:
    """Yield why nothing reads a setting in this run, though it may be one of several that share options."""
    level = _read_by(section, key)
    if options.run__levels and level is not None and level not in options.run__levels:
        yield f"is for the {level} level"
    elif section == "train" and options.train__evaluate_model is not None and key not in _JUDGING:
        yield "is for training, and with --evaluate-model nothing is trained"


def _read_by(section: str, key: str) -> str | None:
    """Return the level that alone reads a setting."""
    if section == "segmentation" or key in PARTICIPANT:
        return "participant"
    return "group" if section == "train" and key not in _BOTH_LEVELS else None
