"""Patch libraries of synthetic brains, with stored draws of the simulator, and a small training command."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from phantoms import make_brain

from iqtflow.image.geometry import cubic_upsample
from iqtflow.simulation.artifacts import Extras
from iqtflow.simulation.simulate import draw_scan, plan_slices, prepare_subject, realise
from iqtflow.simulation.snr_prior import PUBLISHED
from iqtflow.training.library import StoredDraw, write_library

SHAPE = (64, 72, 66)  # the last two slices are beyond the last thick one
TINY = {"k": 4, "filters": 2, "shrink": 2, "residual": True}


def write_libraries(folder: Path, *, subjects: int = 3, n_draws: int = 0, k: int = 4) -> list[Path]:
    """Write ``sub-I_patches.safetensors`` with thick slices along the first and the third axis."""
    paths = []
    for i in range(subjects):
        brain = make_brain(SHAPE, seed=i)
        draws = [simulate(brain, axis=(0, 2)[j % 2], k=k, seed=100 * i + j) for j in range(n_draws)]
        paths.append(folder / f"sub-{i}_patches.safetensors")
        write_library(
            paths[-1],
            subject=str(i),
            intensity=brain.intensity,
            wm=brain.wm,
            gm=brain.gm,
            mask=brain.mask,
            slice_axes=(0, 2),
            k=k,
            draws=draws,
        )
    return paths


def simulate(brain, *, axis: int, k: int, seed: int) -> StoredDraw:
    """Simulate one low-field scan of a phantom, as the command does."""
    prior = PUBLISHED["ibadan-0.36T"]
    stack = plan_slices(1.0, axis=axis, k=k)
    draw = draw_scan(prior, Extras(), stack, seed=seed)
    subject = prepare_subject(brain.intensity, [brain.wm, brain.gm], np.eye(4), stack)
    return StoredDraw(realise(subject, draw), axis, record={"SNRPrior": prior.as_dict(), "SNR": draw.snr})


def own_place(low, high):
    """Compare the spline of each low-field patch with all high-field patches: return the number of the
    closest one, and the mean squared error to its own.
    """
    splines = np.stack([cubic_upsample(p[0].numpy(), 4) for p in low])
    error = ((splines[:, None] - high[:, 0].numpy()[None]) ** 2).mean(axis=(2, 3, 4))
    return error.argmin(axis=1).tolist(), np.diag(error)


def train_command(train, validation, folder: Path, *options: str, steps: int = 12) -> list[str]:
    """Arguments of iqtflow-train for a tiny network; checkpoints and model go into `folder`."""
    return [
        *("--train", *map(str, train), "--validation", *map(str, validation)),
        *("--output", str(folder / "model.safetensors"), "--checkpoint-dir", str(folder / "checkpoints")),
        *("--filters", "2", "--batch-size", "2", "--steps", str(steps), "--steps-per-epoch", "2"),
        *("--patience", "0", "--schedule", "cosine", "--validation-batches", "2", *options),
    ]
