"""Write the card of a shipped model from its file, its table of results (``docs/results``) and its remarks.

Usage: ``python docs/model-cards/render.py NAME [EVALUATED]``

``EVALUATED`` is the output folder of ``--evaluate-model NAME``, to draw the picture again; it needs the
subject of `PICTURED` only.
"""

from __future__ import annotations

import sys
from pathlib import Path

from iqtflow.models.model_file import find_model
from iqtflow.reports.assemble.group import find_examples, read_metrics
from iqtflow.reports.assemble.index import find_evaluated
from iqtflow.reports.assemble.model_card import Pictured, card_markdown, write_picture

CARDS = Path(__file__).parent
#: Evaluation subjects of the pictures: skull-stripped, with the median gain or close to it.
PICTURED = {"iqt-k4": "hfA60", "iqt-k8": "hfA66"}


def render(name: str) -> str:
    """Return the card of a shipped model, with the picture that is there."""
    evaluation = read_metrics(CARDS.parent / f"results/{name}_metrics.tsv")
    remarks = (CARDS / f"{name}.remarks.md").read_text(encoding="utf-8")
    pictured = Pictured(f"{name}.png", PICTURED[name]) if name in PICTURED else None
    return card_markdown(find_model(name)[0], evaluation, pictured=pictured, remarks=remarks)


def draw(name: str, evaluated: Path) -> None:
    """Draw the subject of the picture, from its volumes and its scores there."""
    scans = [scan for scan in find_evaluated(evaluated, name) if scan.subject == PICTURED[name]]
    examples = find_examples(evaluated, name, scans)
    write_picture(CARDS / f"{name}.png", examples, read_metrics(evaluated / "group_metrics.tsv"))


if __name__ == "__main__":
    for folder in sys.argv[2:]:
        draw(sys.argv[1], Path(folder))
    (CARDS / f"{sys.argv[1]}.md").write_text(render(sys.argv[1]), encoding="utf-8")
