"""What Lightning's trainer is given besides the problem: callbacks, checkpoints, processes, loggers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, TQDMProgressBar

from iqtflow.training.checkpoints import BEST, LAST, AtomicCheckpointIO
from iqtflow.training.module import CurvesOnDisk
from iqtflow.utils.errors import UsageError


def make_callbacks(folder: Path, *, patience: int, progress: bool) -> list[Callback]:
    """What accompanies a training: curves and checkpoints after each epoch, early stopping, progress bar."""
    # The best weights first: the last checkpoint knows of them.
    kept = {"enable_version_counter": False, "save_top_k": 1}
    callbacks: list[Callback] = [
        CurvesOnDisk(folder),
        ModelCheckpoint(folder, filename=Path(BEST).stem, monitor="val_loss", **kept),
        ModelCheckpoint(folder, filename=Path(LAST).stem, monitor=None, **kept),
    ]
    if patience:
        # Once validated: a training that is taken up passes the end of an epoch first, and has no loss there.
        when = {"check_finite": False, "check_on_train_epoch_end": False}
        callbacks.append(_Patience("val_loss", patience=patience, mode="min", **when))
    if progress:
        callbacks.append(TQDMProgressBar())
    return callbacks


class _Patience(EarlyStopping):
    """Early stopping whose patience is this run's, not the checkpoint's."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the count, but not the limit."""
        super().load_state_dict({**state_dict, "patience": self.patience})


def make_plugins() -> list[Any]:
    """Our writer of checkpoints, and who starts the processes."""
    from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment

    plugins: list[Any] = [AtomicCheckpointIO()]
    if _started_by_srun():
        # A job that is started again goes on from the last epoch by itself; no checkpoint in between.
        plugins.append(SLURMEnvironment(auto_requeue=False))
    elif SLURMEnvironment.detect():
        # Within a job, but alone: the job's number of tasks is not for us.
        plugins.append(LightningEnvironment())
    return plugins


def _started_by_srun() -> bool:
    """Whether SLURM has started one process for each device."""
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1


def is_first_process() -> bool:
    """Whether this is the first process, before Lightning has looked."""
    if _started_by_srun():
        return int(os.environ.get("SLURM_PROCID", 0)) == 0
    return int(os.environ.get("LOCAL_RANK", 0)) == 0 and int(os.environ.get("NODE_RANK", 0)) == 0


def make_logger(tensorboard: str | os.PathLike | None) -> Any:
    """TensorBoard in this folder; False for None.

    Raises
    ------
    UsageError
        TensorBoard is not installed.
    """
    if tensorboard is None:
        return False
    try:
        from lightning.pytorch.loggers import TensorBoardLogger

        return TensorBoardLogger(Path(tensorboard).absolute(), name="", version="")
    except ModuleNotFoundError as fault:
        raise UsageError(
            "--tensorboard",
            found="no TensorBoard",
            expected="the package tensorboard",
            next_step='Install it (pip install "iqtflow[tensorboard]"), or leave the option out.',
        ) from fault


def count_workers() -> int:
    """Processes that prepare batches for a GPU."""
    return max(min(8, (os.cpu_count() or 1) - 1), 0)
