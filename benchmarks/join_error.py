"""Give a model the predicted error of another one, in the size that its errors have on validation subjects.

    python benchmarks/join_error.py MODEL TUNED LIBRARIES OUTPUT

TUNED is MODEL after ``iqtflow-train --uncertainty only --start-from MODEL``. LIBRARIES is a folder of patch
libraries of MODEL's factor. A scan of each validation subject is simulated along each slice axis in the
paper's setting, and enhanced by TUNED. The predicted error is then multiplied by one number, so that errors
and predicted errors in the brain have the same root mean square. OUTPUT has MODEL's card; `predicted_error`
in it is the record of TUNED's training, with this number.
"""

from __future__ import annotations

import argparse
import copy
import math
from pathlib import Path

import numpy as np
import torch
from gpu_grid import simulate

from iqtflow.image.intensity import intensity_scale
from iqtflow.inference.predict import enhance_volume
from iqtflow.models.model_file import Model, load_model, save_model
from iqtflow.simulation.snr_prior import read_prior
from iqtflow.training.library import PatchLibrary, read_library
from iqtflow.training.module import ERROR_HEAD


def main() -> None:
    """Measure, scale, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("tuned")
    parser.add_argument("libraries", type=Path)
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    model, tuned = load_model(options.model), load_model(options.tuned)
    weights = tuned.members[0].state_dict()
    if any(
        not torch.equal(value, weights[name])
        for name, value in model.members[0].state_dict().items()
        if not name.startswith(ERROR_HEAD)
    ):
        raise SystemExit(f"{options.tuned}: not only the predicted error differs from {options.model}")
    squares = []
    for label in tuned.card.training["validation_subjects"]:
        library = read_library(options.libraries / f"sub-{label}_patches.safetensors")
        for axis in sorted(library.references):
            squares.append(mean_squares(library, axis, tuned))
            ratio = math.sqrt(squares[-1][0] / squares[-1][1])
            print(f"sub-{label}, axis {axis}: error / predicted error {ratio:.3f}", flush=True)
    true, predicted = np.mean(squares, axis=0)
    factor = math.sqrt(true / predicted)
    print(f"predicted errors times {factor:.3f}")
    weights[f"{ERROR_HEAD}layers.2.bias"] += 2 * math.log(factor)  # the logarithm of the variance
    card = copy.deepcopy(dict(model.card))
    facts = {key: value for key, value in tuned.card.training.items() if key != "before"}
    card["training"]["predicted_error"] = {**facts, "factor": round(factor, 4)}
    save_model(options.output, [weights], card)


def mean_squares(library: PatchLibrary, axis: int, model: Model) -> tuple[float, float]:
    """Mean square of the errors and of the predicted errors in the brain, for one simulated scan."""
    prior = read_prior(model.card["snr_prior"]["name"])
    draw = simulate(library, axis=axis, k=model.k, prior=prior, seed=0)
    scan, truth, brain = (np.moveaxis(v, axis, 2) for v in (draw.volume, library.intensity, library.brain))
    thick = brain[:, :, : scan.shape[2] * model.k].reshape(*scan.shape, model.k).mean(3) > 127
    scan = scan.astype(np.float32)
    enhanced = enhance_volume(scan, model, scale=intensity_scale(scan[thick]))
    inside = brain[:, :, : enhanced.mean.shape[2]] > 0
    truth = truth[:, :, : enhanced.mean.shape[2]]
    error = enhanced.mean[inside] - truth[inside].astype(np.float32)
    return float(np.square(error).mean()), float(np.square(enhanced.std[inside]).mean())


if __name__ == "__main__":
    main()
