"""Cards of models: the shipped ones are up to date, and a card says what is not known."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from small_models import write_model

from iqtflow.models.model_file import read_card, save_model
from iqtflow.reports.assemble.model_card import card_markdown, write_model_card
from iqtflow.reports.draw.model_picture import MAX_BYTES

CARDS = Path(__file__).parents[2] / "docs/model-cards"


def shipped_card(name: str) -> str:
    spec = importlib.util.spec_from_file_location("render", CARDS / "render.py")
    render = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(render)
    return render.render(name)


@pytest.mark.parametrize("name", ["iqt-k4", "iqt-k8"])
def test_the_card_of_a_shipped_model_is_what_its_file_and_its_scores_say(name):
    card = shipped_card(name)
    assert card == (CARDS / f"{name}.md").read_text(encoding="utf-8")
    assert 0 < (CARDS / f"{name}.png").stat().st_size <= MAX_BYTES and f"({name}.png)" in card


def test_a_model_without_evaluation_subjects_gets_a_card_that_says_so(tmp_path):
    (tmp_path / "models").mkdir()
    write_model(tmp_path / "models/own.safetensors")
    card = write_model_card(tmp_path, "own").read_text()
    assert "not evaluated on unseen subjects" in card.split("## ")[0]
    assert "![" not in card and not (tmp_path / "models/own.png").exists()
    assert "training data**: not recorded" in card and "OpenNeuro" not in card


def test_a_card_names_the_data_set_and_all_people_whose_scans_the_weights_have_seen(tmp_path):
    from torch import zeros

    first = read_card("iqt-k4")
    tuned = {key: value for key, value in first.training["members"][0].items() if key != "before"}
    earlier = {**tuned, "training_subjects": ["X1", "X2"], "validation_subjects": ["X3"]}
    facts = {**tuned, "before": earlier, "training_subjects": ["Y1"], "validation_subjects": ["X2"]}
    training = {
        "members": [facts],
        "split": {"train": ["Y1"], "validation": ["X2"], "evaluation": []},
        "data": {"Name": "Our <scans> *a|b*", "DatasetDOI": "doi:10.0/x", "License": "CC0"},
    }
    card = {key: first[key] for key in ("k", "contrast", "network", "normalisation", "geometry")}
    model = save_model(
        tmp_path / "own.safetensors", [{"w": zeros(1)}], {**card, "name": "o", "training": training}
    )
    text = card_markdown(model, remarks="## Data and licence\n\nAsk us.\n\n## Limits\n\nAdults only.\n")
    assert r"of 3 subjects (data set: Our \<scans\> \*a\|b\*, doi:10.0/x, CC0)," in text
    assert "subjects of earlier trainings only**: 2: X1 X3" in text
    order = ["# own", "Ask us.", "## Training", "Adults only.", "SHA-256"]
    assert sorted(order, key=text.index) == order
