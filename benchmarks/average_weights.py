"""Average the weights of a model with those of the model that its training started from.

    python benchmarks/average_weights.py BEFORE TUNED OUTPUT [--share 0.5]

``iqtflow-train --average-with-start`` does it at the end of a training. This averages after the training.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from iqtflow.models.model_file import load_model, save_model
from iqtflow.training.averaging import mix_weights


def main() -> None:
    """Read, average, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before")
    parser.add_argument("tuned")
    parser.add_argument("output", type=Path)
    parser.add_argument("--share", type=float, default=0.5, help="share of the tuned weights")
    options = parser.parse_args()
    before, tuned = load_model(options.before), load_model(options.tuned)
    weights = [
        mix_weights(old.state_dict(), new.state_dict(), options.share)
        for old, new in zip(before.members, tuned.members, strict=True)
    ]
    facts = {**tuned.card.training, "averaged": {"with": before.sha256, "share": options.share}}
    split = {"split": before.card.training["split"]} if "split" in before.card.training else {}
    card = {**tuned.card, "training": {"members": [facts], **split}}
    save_model(options.output, weights, card)


if __name__ == "__main__":
    main()
