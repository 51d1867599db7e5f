"""Give a model the predicted error of another one, in the size that its errors have on validation subjects.

    python benchmarks/join_error.py MODEL TUNED LIBRARIES OUTPUT --evaluation LABEL...

TUNED is MODEL after ``iqtflow-train --uncertainty only --start-from MODEL``. LIBRARIES is a folder of patch
libraries of MODEL's factor. A scan of each validation subject is simulated along each slice axis in the
paper's setting, and enhanced by TUNED. The predicted error is then multiplied by one number, so that errors
and predicted errors in the brain have the same root mean square. OUTPUT has MODEL's card; `predicted_error`
in it is the record of TUNED's training, with this number.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from simulated import simulated

from iqtflow.inference.predict import enhance_volume
from iqtflow.models.model_file import Model, load_model, save_model
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
    parser.add_argument("--evaluation", nargs="+", default=[], help="subjects that will judge the model")
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
    facts = {key: value for key, value in tuned.card.training.items() if key != "before"}
    member = {**model.card.training, "predicted_error": {**facts, "factor": round(factor, 4)}}
    split = {
        "train": member["training_subjects"],
        "validation": member["validation_subjects"],
        "evaluation": options.evaluation,
    }
    card = {**model.card, "training": {"members": [member], "split": split}}
    save_model(options.output, [weights], card)


def mean_squares(library: PatchLibrary, axis: int, model: Model) -> tuple[float, float]:
    """Mean square of the errors and of the predicted errors in the brain, for one simulated scan."""
    one = simulated(library, model, axis)
    enhanced = enhance_volume(one.scan, model, scale=one.scale)
    error = (enhanced.mean - one.truth)[one.brain]
    return float(np.square(error).mean()), float(np.square(enhanced.std[one.brain]).mean())


if __name__ == "__main__":
    main()
