"""What is left of a model's gain on people of a scanner that it was not trained on?

    python benchmarks/other_scanner.py LIBRARY... --models A=MODEL B=MODEL

Model A was trained on people of scanner A only (labels A* or hfA*), model B on those of scanner B. A scan of
each LIBRARY (patch library of a subject that no model was trained on) is simulated along its first slice axis
in the paper's setting, enhanced by every model, and compared inside the brain with the high-field volume.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from simulated import simulated

from iqtflow.evaluation.metrics import mssim, psnr
from iqtflow.image.geometry import cubic_upsample
from iqtflow.inference.predict import enhance_volume
from iqtflow.models.model_file import load_model
from iqtflow.training.library import read_library


def main() -> None:
    """Measure each model on each person; print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("libraries", nargs="+", type=Path, metavar="LIBRARY")
    parser.add_argument("--models", nargs="+", required=True, metavar="SCANNER=MODEL")
    options = parser.parse_args()
    gains: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for given in options.models:
        scanner, _, path = given.partition("=")
        model = load_model(path)
        for file in options.libraries:
            library = read_library(file)
            of = library.subject.removeprefix("hf")[0]
            one = simulated(library, model, min(library.references))
            brain = one.brain & (one.truth != 0)
            both = (
                np.clip(cubic_upsample(one.scan, model.k), 0, None),
                enhance_volume(one.scan, model, scale=one.scale).mean,
            )
            values = [(psnr(one.truth, v, brain), mssim(one.truth, v, brain)) for v in both]
            gain = (values[1][0] - values[0][0], values[1][1] - values[0][1])
            gains.setdefault((scanner, of), []).append(gain)
            print(
                f"trained on {scanner}, sub-{library.subject}: {gain[0]:+.2f} dB, {gain[1]:+.3f}", flush=True
            )
    print("| trained on | people of | n | gain over the spline | share of the gain at home |")
    print("|---|---|---|---|---|")
    for (scanner, of), found in gains.items():
        mean, home = (np.mean(gains[scanner, who], axis=0) for who in (of, scanner))
        share = "" if of == scanner else f"{100 * mean[0] / home[0]:.0f} %"
        print(f"| {scanner} | {of} | {len(found)} | {mean[0]:+.2f} dB, MSSIM {mean[1]:+.3f} | {share} |")


if __name__ == "__main__":
    main()
