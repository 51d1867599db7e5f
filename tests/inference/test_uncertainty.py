"""What a standard deviation map is said to be: on pages, on cards, in sidecars and by a dry run, for each way
that it can come about; and how it is held against the truth.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_affine, write_scan
from phantoms import make_brain
from report_phantoms import Page, make_record, records
from small_models import write_model
from training_phantoms import SHAPE, simulate

from iqtflow.bids import Scan
from iqtflow.config import EnhanceSettings, PathSettings, Settings
from iqtflow.evaluation.scores import summarise, table
from iqtflow.evaluation.uncertainty_calibration import in_percent, reliability, summarise_reliability
from iqtflow.image.geometry import thick_affine
from iqtflow.image.intensity import NORMALISATION
from iqtflow.inference.uncertainty import (
    KINDS,
    NOT_COVERED,
    as_sidecar,
    description,
    kind_of_scan,
    measured,
)
from iqtflow.models.card import Card
from iqtflow.models.model_file import find_model, read_card, save_model, stamp_figures
from iqtflow.reports.assemble.group import write_group_page
from iqtflow.reports.assemble.model_card import card_markdown
from iqtflow.reports.assemble.subject import write_subject_page

AFFINE = make_affine((1.6, 1.6, 1.6))


def card(*, n_members=1, uncertainty=False, **fields):
    kwargs = {"k": 4, **({"uncertainty": True} if uncertainty else {})}
    network = {"name": "u", "kwargs": kwargs}
    return Card({"name": "m", "n_members": n_members, "network": network, **fields})


def measured_on(n, *, gain=1.0):
    """Summary over people whose errors are Gaussian, and `gain` times as large as the map states."""
    found = []
    for seed in range(n):
        rng = np.random.default_rng(seed)
        truth = rng.uniform(500, 1000, (30, 30, 30))
        std = rng.uniform(1, 50, truth.shape)
        estimate = truth + gain * std * rng.standard_normal(truth.shape)
        found.append(in_percent(reliability(truth, estimate, std, truth > 0)))
    return summarise_reliability(found)


# --- which kind, in which words ---


def test_a_model_that_predicts_its_error_does_so_alone_in_an_ensemble_and_mirrored():
    for n in (1, 4):
        for mirror in (False, True):
            assert card(n_members=n, uncertainty=True).uncertainty(mirror=mirror) == "predicted"
    assert card(n_members=4).uncertainty(mirror=True) == "ensemble"
    assert card().uncertainty(mirror=True) == "mirrored"
    assert card().uncertainty() is None and as_sidecar(card(), None) is None


def test_sidecars_that_do_not_state_the_kind_are_read_as_ever():
    assert kind_of_scan({"Model": {"Members": 3}, "MirroredAveraging": True}) == "ensemble"
    assert kind_of_scan({"Model": {"Members": 1}, "MirroredAveraging": True}) == "mirrored"
    assert kind_of_scan({"Model": {"Members": 1}, "Uncertainty": None}) == "ensemble"
    assert kind_of_scan({"Model": {"Members": 1}, "Uncertainty": {"Kind": "predicted"}}) == "predicted"


def test_what_no_kind_of_map_covers_is_said_under_each():
    assert set(NOT_COVERED) == set(KINDS)
    for kind, lines in NOT_COVERED.items():
        text = " ".join(lines)
        for word in ("lesions", "implants", "other scanners", "motion", "no proof"):
            assert word in text, (kind, word)
        assert ("disagree" in text) == (kind != "predicted")


def test_figures_of_the_card_are_told_with_maps_of_the_kind_that_they_were_measured_on():
    figures = {"reliability": measured_on(3, gain=2)}
    predicting = card(uncertainty=True, figures=figures)
    assert measured(predicting, "predicted") == {
        "Subjects": 3,
        "ErrorOverStd": pytest.approx(2, abs=0.05),
        "Within1Std": pytest.approx(0.383, abs=0.02),
        "ErrorOverStdWhereSmallest": pytest.approx(2, abs=0.2),
    }
    said = description(predicting, "predicted")
    assert "3 unseen subjects" in said and "smallest" in said
    mirrored = description(predicting, "predicted", mirror=True)
    assert "unseen" not in mirrored and "mirrored scan" in mirrored
    assert measured(card(figures=figures), "mirrored") is None, "measured without mirrored averaging"
    assert measured(card(uncertainty=True, figures={}), "predicted") is None
    assert "Measured" not in as_sidecar(card(uncertainty=True), "predicted")
    assert "disagree" in description(card(n_members=2), "ensemble")


@pytest.mark.parametrize(
    ("kind", "says", "never"),
    [
        (
            "predicted",
            [
                "Predicted error (standard deviation)",
                "11 unseen subjects, the true error (root mean square) was 0.97",
                "72 % of the voxels",
                "A lesion can be wrong without any colour",
                *NOT_COVERED["predicted"],
            ],
            "disagree",
        ),
        ("mirrored", ["of the scan and of the mirrored scan", *NOT_COVERED["mirrored"]], "Predicted error"),
        (None, ["over the 3 networks of the ensemble", *NOT_COVERED["ensemble"]], "Predicted error"),
    ],
)
def test_a_subjects_page_says_what_its_map_shows(tmp_path, kind, says, never):
    record = make_record(tmp_path)
    if kind is not None:
        record.details["Uncertainty"] = {"Kind": kind, "Description": "…"}
        record.details["Model"]["Members"] = 1
    if kind == "predicted":
        found = {"Subjects": 11, "ErrorOverStd": 0.97, "Within1Std": 0.72}
        record.details["Uncertainty"]["Measured"] = found
    page = Page(write_subject_page(tmp_path / "out", "01", [record], max_bytes=1_000_000))
    for words in says:
        assert page.says(words), words
    assert not page.says(never)


# --- dry run and sidecar ---


@pytest.fixture
def scan(tmp_path) -> Scan:
    path = write_scan(tmp_path / "in/sub-1/anat/sub-1_T1w.nii.gz", np.ones((20, 20, 6), np.float32))
    return Scan(path, "1", None, {"sub": "1"}, "T1w", {}, None, tmp_path / "in")


@pytest.mark.parametrize(("kind", "words"), [("predicted", "Predicted error"), (None, None)])
def test_a_dry_run_and_a_sidecar_know_the_map_of_a_single_network(tmp_path, scan, kind, words):
    from iqtflow.workflows.app.graphs import build_participant_graph
    from iqtflow.workflows.app.plan import outputs_of

    fields = {"k": 4, "contrast": "T1w", "geometry": "slab-centred", "context": "whole"}
    fields |= {**card(uncertainty=kind == "predicted"), "normalisation": {"name": NORMALISATION}}
    weights = {"weight": torch.zeros(2)}  # nobody looks at them
    model = save_model(tmp_path / "m.safetensors", [weights], fields)
    paths = PathSettings(bids_dir=tmp_path, output_dir=tmp_path / "out", work_dir=tmp_path / "work")
    settings = Settings(paths=paths, enhance=EnhanceSettings(model=str(model)))
    names = [path.name for path in outputs_of(scan, settings)]
    assert ("sub-1_desc-iqtstd_T1w.nii.gz" in names) == (kind is not None)
    graph = build_participant_graph([scan], settings, name="g")
    (sink,) = [node for node in graph._get_all_nodes() if node.name == "sink_std"]
    said = sink.inputs.metadata.get("Description")
    assert words in said if words else said is None


# --- against the truth ---


def test_people_without_a_map_leave_the_summary_as_it_was():
    rows = records([3.0, 4.0])
    assert "reliability" not in summarise(rows)
    found = summarise([{**rows[0], "reliability": _of_one()}, rows[1]])
    assert found["reliability"]["n"] == 1 and found["n"] == 2
    assert {**found, "reliability": None} == {**summarise(rows), "reliability": None}
    assert table([{**rows[0], "reliability": _of_one()}]) == table(rows[:1])


def _of_one():
    rng = np.random.default_rng(0)
    truth, std = rng.uniform(500, 1000, (2, 30, 30, 30))
    return in_percent(reliability(truth, truth + std * rng.standard_normal(std.shape), std, truth > 0))


def _files(folder: Path, **volumes) -> dict[str, str]:
    return {n: str(write_scan(folder / f"{n}.nii.gz", v, AFFINE)) for n, v in volumes.items()}


def test_a_node_measures_the_map_that_it_is_given(tmp_path, monkeypatch, capsys):
    """Errors twice as large as the map states, in a scan of four times the grey scale of its truth's peak."""
    from iqtflow.interfaces.evaluate import EvaluateVolume

    brain = make_brain(SHAPE, seed=1)
    rng = np.random.default_rng(0)
    std = rng.uniform(1, 40, SHAPE).astype(np.float32)
    noisy = (brain.intensity + 2 * std * rng.standard_normal(SHAPE)).astype(np.float32)
    files = _files(
        tmp_path,
        reference=brain.intensity,
        mask=brain.mask.astype(np.uint8),
        enhanced=noisy,
        spline=noisy,
        std=std,
        flat=np.ones_like(std),
    )
    monkeypatch.chdir(tmp_path)
    given = {name: files[name] for name in ("reference", "mask", "enhanced", "spline")}

    def measure(**more):
        out = EvaluateVolume(subject="1", **given, **more).run().outputs.out_file
        return json.loads(Path(out).read_text())

    plain, with_map = measure(), measure(std=files["std"])
    assert "reliability" not in plain
    found = with_map.pop("reliability")
    assert with_map == plain
    assert found["error_over_std"] == pytest.approx(2, abs=0.05)
    peak = brain.intensity[brain.mask].max()
    assert found["bins"][-1]["std"] == pytest.approx(100 * 39 / peak, rel=0.02)
    assert measure(std=files["flat"]) == plain
    assert "sub-1: reliability not measured" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("n_members", [1, 2])
def test_a_graph_judges_the_map_if_the_model_writes_one_and_is_not_run_twice(tmp_path, n_members):
    from iqtflow.workflows.evaluate import init_evaluate_wf

    brain = make_brain(SHAPE, seed=1)
    thick = simulate(brain, axis=2, k=4, seed=1).volume
    files = _files(tmp_path, truth=brain.intensity, mask=brain.mask.astype(np.uint8))
    in_file = write_scan(tmp_path / "low.nii.gz", thick, thick_affine(AFFINE, 4))
    (tmp_path / "low.json").write_text("{}")
    model = write_model(tmp_path / "m.safetensors", n_members=n_members)

    def run() -> tuple[Path, int]:
        graph = init_evaluate_wf()
        graph.base_dir = tmp_path / "work"
        given = graph.get_node("inputnode").inputs
        given.model, given.in_file, given.sidecar_file = str(model), str(in_file), str(tmp_path / "low.json")
        given.skull_stripped, given.subject = "yes", "1"
        given.truth, given.mask = files["truth"], files["mask"]
        nodes = {node.name: node for node in graph.run(plugin="Linear").nodes}
        out = Path(nodes["evaluate"].result.outputs.out_file)
        return out, out.stat().st_mtime_ns

    out, when = run()
    found = json.loads(out.read_text())
    assert ("reliability" in found) == (n_members > 1)
    if n_members > 1:
        assert len(found["reliability"]["bins"]) == 20
    assert run() == (out, when)


# --- page of a training, card of a model ---


def test_the_page_of_a_training_holds_the_map_against_the_error(tmp_path):
    found = measured_on(4, gain=1.3)
    page = Page(write_group_page(tmp_path, "m", card=card(uncertainty=True, figures={"reliability": found})))
    assert page.says("predicts the size of its error") and page.says("4 unseen subjects")
    mean, low, high = (found["error_over_std"][key] for key in ("mean", "min", "max"))
    assert mean == pytest.approx(1.3, abs=0.02)
    assert page.says(f"Error / standard deviation {mean:.2f} {low:.2f} … {high:.2f} 1")
    (plot,) = [image for image in page.images if image["src"].endswith("group_reliability.svg")]
    assert "20 bins of voxels, 4 subjects" in plot["alt"]
    curve = found["bins"]
    assert f"from {curve[0]['error']:.2g} % at {curve[0]['std']:.2g} %" in plot["alt"]
    assert b"</svg>" in (tmp_path / "figures/group_reliability.svg").read_bytes()
    without = Page(write_group_page(tmp_path / "none", "m"))
    assert not without.says("standard deviation") and "group_reliability" not in without.source


def test_a_models_card_has_the_curve_when_it_was_measured(tmp_path):
    shipped = find_model("iqt-k4")[0]
    figures = {k: v for k, v in read_card(shipped)["figures"].items() if k != "reliability"}
    found = measured_on(5, gain=1.1)
    cards = []
    for name, more in (("without", {}), ("with", {"reliability": found})):
        model = stamp_figures(shipped, tmp_path / f"{name}.safetensors", {**figures, **more})
        cards.append(card_markdown(model))
    heading = "## Predicted and true error"
    assert heading not in cards[0] and heading in cards[1]
    section = cards[1].split(heading)[1].split("\n## ")[0]
    assert "5 subjects" in section
    assert f"{found['error_over_std']['mean']:.2f} |" in section
    rows = [line for line in section.splitlines() if line[2:].split(" ")[0].isdigit()]
    assert [row.split(" | ")[0] for row in rows][::6] == ["| 1", "| 20"] and len(rows) == 7
    last = found["bins"][-1]
    assert f"| 20 | {last['std']:.2f} | {last['error']:.2f} |" in section
