"""Whether settings of a training go together: known before anything has been computed."""

from __future__ import annotations

from iqtflow.config import FRESH_ONLY, SNR_SCALE_LIMITS, TrainSettings, default_of
from iqtflow.simulation.artifacts import require_range
from iqtflow.utils.errors import InputError, UsageError
from iqtflow.utils.files import require_name


def check_training(train: TrainSettings) -> None:
    """Make sure that settings of a training go together, before hours are spent on half of them.

    Raises
    ------
    UsageError
        They do not, or the model's name is no name.
    """
    try:
        require_range("--thickness-fraction", train.thickness_fraction, 0.01, 1)
        require_range("--snr-scale", train.snr_scale, *SNR_SCALE_LIMITS)
    except InputError as fault:
        raise UsageError(
            fault.path, found=fault.found, expected=fault.expected, next_step=fault.next_step
        ) from fault
    widened = [key for key in FRESH_ONLY if getattr(train, key) != default_of(TrainSettings, key)]
    if train.model_name is not None:
        require_name(train.model_name, "--model-name")
    for option, wrong, found, expected, next_step in (
        (
            "--patch-library pairs",
            train.patch_library == "pairs" and train.draws == "fresh",
            "fresh draws, which cannot be written out",
            "a number of stored draws",
            "Add --draws N; the paper has 1, 2, 4 and 8.",
        ),
        (
            " ".join(f"--{key.replace('_', '-')}" for key in widened),
            widened and train.draws != "fresh",
            f"--draws {train.draws}: stored draws are simulated as in the paper",
            "--draws fresh, where every batch is simulated anew",
            "Leave one of the two out.",
        ),
        (
            "--patch-size",
            train.patch_edge % train.upsampling_factor != 0,
            f"{train.patch_edge} voxels",
            f"a multiple of k = {train.upsampling_factor}",
            "Choose another size; 48 suits all factors.",
        ),
        (
            "--uncertainty only",
            train.uncertainty == "only" and train.start_from is None,
            "no model whose estimate is to be kept",
            "one",
            "Add --start-from MODEL.",
        ),
        (
            "--batch-size",
            train.batch_size % (train.devices * train.num_nodes) != 0,
            f"{train.batch_size} patches for {train.devices * train.num_nodes} devices",
            "the same number for each",
            "Choose a multiple of the number of devices.",
        ),
    ):
        if wrong:
            raise UsageError(option, found=found, expected=expected, next_step=next_step)
