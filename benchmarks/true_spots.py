"""Are the new dark spots of an enhanced volume in the truth? On simulated scans of unseen people.

    python benchmarks/true_spots.py LIBRARY... --models MODEL... [--json FILE]

`benchmarks/lesions.py` counts small dark spots of an enhanced volume that the cubic spline does not have.
On a real scan nobody knows which of them are true. Here a scan of each LIBRARY (patch library of a subject)
is simulated along its first slice axis in the paper's setting, and enhanced. A spot is *true* if the
high-field volume there is darker than its surroundings by 7 % on average, half of what makes a spot.
*Chance* is the share of true spots when they are moved by 6 mm along the slices.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from lesions import below_surround, find_spots
from scipy import ndimage
from simulated import simulated

from iqtflow.image.geometry import cubic_upsample
from iqtflow.inference.predict import enhance_volume
from iqtflow.models.model_file import Model, load_model
from iqtflow.training.library import PatchLibrary, read_library

TRUE, MOVED = 0.07, 6  #: least drop of a true spot; voxels of about 1 mm


def main() -> None:
    """Measure each model on each subject; print and write the sums."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("libraries", nargs="+", type=Path, metavar="LIBRARY")
    parser.add_argument("--models", nargs="+", required=True)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    table = {}
    for name in options.models:
        model = load_model(name)
        rows = [measure(read_library(path), model) for path in options.libraries]
        total = {key: sum(row[key] for row in rows) for key in rows[0]}
        table[name] = total
        for place in ("white", "anywhere"):
            true, chance = (
                100 * total[f"{place}_{kind}"] / max(total[place], 1) for kind in ("true", "chance")
            )
            print(
                f"{name}, {place}: {total[place]} spots, {true:.0f} % true, by chance {chance:.0f} %",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps(table, indent=1) + "\n")


def measure(library: PatchLibrary, model: Model) -> dict[str, Any]:
    """Count the new spots of one enhanced scan, the true ones, and those that are true by chance."""
    one = simulated(library, model, min(library.references))
    after = enhance_volume(one.scan, model, scale=one.scale).mean
    depth, sizes = ndimage.distance_transform_edt(one.brain), np.ones(3)
    drop, _ = below_surround(one.truth, sizes)
    row = dict.fromkeys(("white", "white_true", "white_chance"), 0)
    row |= dict.fromkeys(("anywhere", "anywhere_true", "anywhere_chance"), 0)
    for spot, is_white in find_spots(cubic_upsample(one.scan, model.k), after, depth, sizes):
        moved = (*spot[:2], np.clip(spot[2] + MOVED, 0, drop.shape[2] - 1))
        for place in ("anywhere", *(["white"] if is_white else [])):
            row[place] += 1
            row[f"{place}_true"] += bool(drop[spot].mean() > TRUE)
            row[f"{place}_chance"] += bool(drop[moved].mean() > TRUE)
    return row


if __name__ == "__main__":
    main()
