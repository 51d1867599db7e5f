"""Write the card of a shipped model from its file, its table of results (``docs/results``) and its remarks.

Usage: ``python docs/model-cards/render.py NAME [EVALUATED]``

``EVALUATED`` is the output folder of ``--evaluate-model NAME``, to draw the picture again. The evaluation
subject with the median gain is enough.
"""

from __future__ import annotations

import sys
from pathlib import Path

from iqtflow.models.model_file import find_model
from iqtflow.reports.assemble.group import find_examples, read_metrics
from iqtflow.reports.assemble.index import find_evaluated
from iqtflow.reports.assemble.model_card import Pictured, card_markdown, median_subject, write_picture

CARDS = Path(__file__).parent


def render(name: str) -> str:
    """Return the card of a shipped model, with the picture that is there."""
    evaluation = read_metrics(CARDS.parent / f"results/{name}_metrics.tsv")
    remarks = (CARDS / f"{name}.remarks.md").read_text(encoding="utf-8")
    picture = CARDS / f"{name}.png"
    pictured = Pictured(picture.name, median_subject(evaluation)) if picture.exists() else None
    return card_markdown(find_model(name)[0], evaluation, pictured=pictured, remarks=remarks)


def draw(name: str, evaluated: Path) -> None:
    """Draw the evaluation subject with the median gain, from its volumes and its scores there."""
    examples = find_examples(evaluated, name, find_evaluated(evaluated, name))
    write_picture(CARDS / f"{name}.png", examples, read_metrics(evaluated / "group_metrics.tsv"))


if __name__ == "__main__":
    for folder in sys.argv[2:]:
        draw(sys.argv[1], Path(folder))
    (CARDS / f"{sys.argv[1]}.md").write_text(render(sys.argv[1]), encoding="utf-8")
