"""Options that have no effect in a run, and settings that do not go together: found before the run begins."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator

from iqtflow.bids import check_dataset
from iqtflow.config import FETCH, FRESH_ONLY, SECTION_MODES, SETTING_MODES, SETTINGS, Settings, check_training
from iqtflow.utils.errors import InputError, UsageError


def refuse_options(
    parser: argparse.ArgumentParser, options: argparse.Namespace, untouched: argparse.ArgumentParser
) -> list[str]:
    """Refuse options that have no effect. Values of a settings file, which is for many runs, are accepted.

    Parameters
    ----------
    parser
        Ends the program with a message.
    options
        As parsed.
    untouched
        A parser with the values of the settings file only.

    Returns
    -------
    list of str
        Notes on options that have an effect at another level only: two commands may share their options.
    """
    notes = []
    for action in parser._actions:
        value = getattr(options, action.dest, None)
        if value == untouched.get_default(action.dest) or not action.option_strings:
            continue
        flag = action.option_strings[0 if value is True else -1]  # else --no-...
        section, _, key = action.dest.partition("__")
        for why in _mistakes(options, section, key or action.dest):
            parser.error(f"{flag} {why}")
        notes += [f"{flag} {why}: it has no effect in this run" for why in _idle(options, section, key)]
    return notes


def check_settings(settings: Settings) -> None:
    """Make sure that named files exist and that settings go together, before the data set is read.

    Raises
    ------
    UsageError
        A mode has no group level; settings of a training do not go together; or a model, a prior, a split, a
        filter file or a file for a cluster cannot be used.
    """
    from iqtflow.bids.index import read_filters
    from iqtflow.models.model_file import find_model
    from iqtflow.models.registry import allow_network
    from iqtflow.models.zoo import candidates
    from iqtflow.simulation.snr_prior import read_prior
    from iqtflow.training.split import read_split

    run, enhance, train = settings.run, settings.enhance, settings.train
    if run.mode == "enhance" and "group" in run.levels:
        raise UsageError(
            "group",
            found="the group level in --mode enhance, which has none",
            expected="participant; or group together with --mode train, calibrate or adapt",
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
    except InputError as fault:  # without this file the whole run is impossible
        raise UsageError(
            fault.path, found=fault.found, expected=fault.expected, next_step=fault.next_step
        ) from fault
    if run.mode == "adapt" and "group" in run.levels:
        _check_highfield(settings)
    if train.split is not None:
        read_split(train.split)
    if settings.inputs.filter_file is not None:
        contrast = enhance.contrast if run.mode == "enhance" else "T1w"
        read_filters(settings.inputs.filter_file, contrast)
    if run.use_plugin is not None:
        from iqtflow.workflows.execution.cluster import read_plugin_file

        read_plugin_file(run.use_plugin)


def _check_highfield(settings: Settings) -> None:
    """Make sure that there are high-field people, in a folder of their own."""
    highfield, paths = settings.adapt.highfield, settings.paths
    if highfield is None:
        raise UsageError(
            "--highfield",
            found="not given",
            expected="a BIDS data set with high-field T1w scans of people",
            next_step=FETCH,
        )
    check_dataset(highfield)
    for what, other in (("the low-field scans", paths.bids_dir), ("the output", paths.output_dir)):
        if os.path.realpath(highfield) == os.path.realpath(other):
            raise UsageError(
                "--highfield",
                found=f"{highfield}, the folder of {what}",
                expected="a data set of its own",
                next_step=FETCH,
            )


def _mistakes(options: argparse.Namespace, section: str, key: str) -> Iterator[str]:
    """Yield why an option is refused in this run."""
    mode = options.run__mode
    modes = SETTING_MODES.get(key) or SECTION_MODES.get(section, (mode,))
    levels = options.run__levels or ()
    if mode not in modes:
        yield f"is for --mode {' or '.join(modes)}; the mode is {mode}"
    fresh = section == "train" and key in FRESH_ONLY and options.train__evaluate_as == "paper"
    if fresh and levels and "group" not in levels:
        yield "is for the group level; the participant level always simulates scans as in the paper"
    if key == "patch_fraction" and options.train__patch_library != "pairs":
        yield "is for --patch-library pairs"
    if key == "split_ratio" and options.train__split is not None:
        yield "is for a split that is drawn; there is --split"
    if key in ("spm_dir", "tpm", "octave") and options.segmentation__engine in ("ants", "derivatives"):
        yield f"is for SPM; there is --segmentation {options.segmentation__engine}"
    if key == "acquired_axis" and options.enhance__acquired_spacing is None:
        yield "is for --acquired-spacing MM; add it"
    if key == "combine_stacks" and options.enhance__acquired_spacing is not None:
        yield "is for scans as they were acquired; there is --acquired-spacing"
    if key == "bids_database_wipe" and options.inputs__database_dir is None:
        yield "is for an index that is kept; add --bids-database-dir DIR"


def _idle(options: argparse.Namespace, section: str, key: str) -> Iterator[str]:
    """Yield why an option has no effect in this run, though it may in another run with the same options."""
    level = SETTINGS[section][key].level if section in SETTINGS else ""
    if section == "segmentation" and options.run__mode == "adapt":
        return  # both levels make tissue maps
    if level and options.run__levels and level not in options.run__levels:
        yield f"is for the {level} level"
    elif (
        level == "group"
        and options.train__evaluate_model is not None
        and key not in ("evaluate_model", "split", "model_name", "cross_validation")
    ):
        yield "is for training; with --evaluate-model no network is trained"
