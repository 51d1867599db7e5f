"""The group level of training alone, as a job of its own: it reads the outputs of the participant level."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from clinics import dataset, iqtflow, run_here, settle
from conftest import make_affine, write_scan
from phantoms import make_brain
from training_phantoms import SHAPE, simulate, write_libraries

from iqtflow.image.geometry import thick_affine
from iqtflow.interfaces.train import TrainModel
from iqtflow.models.model_file import read_card, stamp_figures
from iqtflow.reports.draw.model_picture import MAX_BYTES
from iqtflow.training.folds import deal_folds, read_folds
from iqtflow.training.library import read_library
from iqtflow.training.pairs import write_pairs
from iqtflow.utils.errors import EXIT_TERMINATED, InputError, UsageError
from iqtflow.workflows.app.base import run_workflow
from iqtflow.workflows.app.cross_validation import describe_folds
from iqtflow.workflows.app.plan import print_plan

AFFINE = make_affine((1.6, 1.6, 1.6))
SMALL = ["--filters", "2", "--batch-size", "2", "--steps", "4", "--steps-per-epoch", "2", "--nprocs", "2"]
SMALL += ["--validation-batches", "1", "--device", "cpu"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> tuple[Path, Path]:
    """Three people as the participant level leaves them: data set, and derivatives."""
    root = tmp_path_factory.mktemp("group")
    bids, out = dataset(root / "bids"), root / "out"
    (out / "patches").mkdir(parents=True)
    for path in write_libraries(out / "patches", n_draws=2):
        label = path.name.split("_")[0].removeprefix("sub-")
        pairs = out / f"patches/sub-{label}_pairs.npy"
        write_pairs(pairs, read_library(path), n_draws=2, fraction=0.2)
        brain = make_brain(SHAPE, seed=int(label))
        draw = simulate(brain, axis=2, k=4, seed=int(label))
        anat = out / f"sub-{label}/anat"
        write_scan(bids / f"sub-{label}/anat/sub-{label}_T1w.nii.gz", brain.intensity, AFFINE)
        write_scan(anat / f"sub-{label}_desc-sim01_T1w.nii.gz", draw.volume, thick_affine(AFFINE, 4))
        write_scan(anat / f"sub-{label}_desc-brain_mask.nii.gz", brain.mask.astype(np.uint8), AFFINE)
        (anat / f"sub-{label}_desc-sim01_T1w.json").write_text('{"SkullStripped": true}')
    return bids, out


def group(bids, out, work, *options):
    """Train into one folder; several trainings may have the default name."""
    return iqtflow(*training(bids, out, work, *options), timeout=3000)


def training(bids, out, work, *options) -> list:
    """Arguments of the command."""
    return [bids, out, "group", "--mode", "train", "-w", work, *SMALL, *options, "--overwrite"]


@pytest.fixture(scope="module")
def trained(prepared, tmp_path_factory):
    """Two networks on fresh draws; nobody said who trains and who judges."""
    run = group(*prepared, tmp_path_factory.mktemp("work"), "--model-name", "tiny", "--ensemble", "2")
    assert run.returncode == 0, run.stdout + run.stderr
    return prepared[1], run.stdout


@pytest.mark.slow
def test_a_split_is_drawn_kept_and_written_into_the_model(trained):
    out, said = trained
    split = json.loads((out / "models/split.json").read_text())
    assert sorted(label for labels in split.values() for label in labels) == ["sub-0", "sub-1", "sub-2"]
    assert [len(labels) for labels in split.values()] == [1, 1, 1]
    card = read_card(out / "models/tiny.safetensors")
    assert {
        part: [f"sub-{label}" for label in labels] for part, labels in card["training"]["split"].items()
    } == split
    assert "drawn and stored" in said


@pytest.mark.slow
def test_members_have_seeds_of_their_own_and_are_judged_one_by_one(trained):
    out, said = trained
    card = read_card(out / "models/tiny.safetensors")
    plans = [facts["plan"] for facts in card["training"]["members"]]
    assert plans[0]["seed"] != plans[1]["seed"]
    assert {**plans[0], "seed": None} == {**plans[1], "seed": None}
    judged = card["figures"]["subjects"]
    rows = [row.split("\t") for row in (out / "group_metrics.tsv").read_text().splitlines()]
    assert [row[:2] for row in rows[1:]] == [
        [f"sub-{label}", method] for label in judged for method in ("spline", "iqt", "member-1", "member-2")
    ]
    assert set(rows[0]) == set(json.loads((out / "group_metrics.json").read_text()))
    summary = json.loads((out / "models/tiny_summary.json").read_text())
    for figure in ("psnr", "mssim", "mssim_slicewise"):
        alone = [summary[figure]["members"][f"member-{i}"]["mean"] for i in (1, 2)]
        assert summary[figure]["mean_of_members"]["mean"] == pytest.approx(np.mean(alone))
    assert f"PSNR {summary['psnr']['iqt']['mean']:.2f} dB" in said
    found = summary["reliability"]
    assert found == card["figures"]["reliability"] and found["n"] == len(judged)
    assert f"uncertainty: error / standard deviation {found['error_over_std']['mean']:.2f}" in said
    assert "group_reliability.svg" in (out / "group.html").read_text()
    for file in ("group.html", "models/tiny_member-1_curves.csv", "models/tiny_member-2_curves.csv"):
        assert (out / file).exists(), file


@pytest.mark.slow
def test_the_card_beside_a_model_has_the_figures_of_its_evaluation(trained):
    out, said = trained
    text, summary = (
        (out / "models/tiny.md").read_text(),
        json.loads((out / "models/tiny_summary.json").read_text()),
    )
    top, results = text.split("## Results on 1 unseen subject\n")
    (judged,) = summary["subjects"]
    assert "![" in top and "(tiny.png)" in top and f"sub-{judged}" in top
    assert "of 1 subject (data set: test)," in top
    assert f"{summary['psnr']['iqt']['mean']:.2f} dB" in top
    assert f"| {summary['psnr']['gain']['mean']:+.2f} dB |" in results
    assert f"| {summary['reliability']['error_over_std']['mean']:.2f} |" in results
    assert "OpenNeuro" not in text and "not tested" in results, "one subject cannot be tested"
    assert 0 < (out / "models/tiny.png").stat().st_size <= MAX_BYTES
    assert 'href="models/tiny.md"' in (out / "group.html").read_text()
    assert str(out / "models/tiny.md") in said


@pytest.mark.slow
def test_figures_on_a_subject_that_was_trained_on_are_not_written(trained, tmp_path):
    """The last of several guards."""
    out, _ = trained
    model = out / "models/tiny.safetensors"
    trained_on = read_card(model)["training"]["members"][0]["training_subjects"]
    with pytest.raises(InputError, match=f"tiny.safetensors: .*sub-{trained_on[0]}"):
        stamp_figures(model, tmp_path / "x.safetensors", {"subjects": trained_on})
    assert list(tmp_path.iterdir()) == []


def test_subjects_without_the_library_that_is_asked_for_are_named(prepared, tmp_path):
    bids, out = prepared
    (tmp_path / "split.json").write_text('{"train": ["0"], "validation": ["9"], "evaluation": []}')
    run = group(bids, out, tmp_path / "work", "--split", tmp_path / "split.json")
    assert run.returncode == 2
    assert "sub-9" in run.stderr and "participant level" in run.stderr


@pytest.mark.slow
def test_a_model_that_exists_is_judged_on_people_that_it_has_never_seen(trained, prepared, tmp_path):
    out, _ = trained
    model, before = out / "models/tiny.safetensors", (out / "group_metrics.tsv").read_text().splitlines()
    judge = ["--model-name", "again", "--evaluate-model", model]
    split = json.loads((out / "models/split.json").read_text())
    turned = tmp_path / "turned.json"
    turned.write_text(json.dumps({**split, "train": split["evaluation"], "evaluation": split["train"]}))
    further = group(*prepared, tmp_path / "further", "--start-from", model, "--split", turned)
    assert further.returncode == 2 and "among the subjects that trained tiny" in further.stderr
    everybody = group(*prepared, tmp_path / "work", *judge)
    assert everybody.returncode == 2 and "among the subjects that trained tiny" in everybody.stderr
    judged = group(*prepared, tmp_path / "work", *judge, "--split", out / "models/split.json")
    assert judged.returncode == 0, judged.stdout + judged.stderr
    after = (out / "group_metrics.tsv").read_text().splitlines()
    figures = [[row.split("\t") for row in rows[1:] if "member-" not in row] for rows in (before, after)]
    assert [row[:2] for row in figures[0]] == [row[:2] for row in figures[1]]
    scores = [np.array([row[2:] for row in rows], float) for rows in figures]
    np.testing.assert_allclose(*scores, atol=2e-3)  # the same model, the same figures
    cards = [read_card(out / f"models/{name}.safetensors") for name in ("tiny", "again")]
    assert cards[0]["training"] == cards[1]["training"]
    assert cards[0]["figures"]["subjects"] == cards[1]["figures"]["subjects"]


@pytest.fixture
def trainings(monkeypatch) -> list[str]:
    """Names of the trainings, which run in this process; after the first one, the run is ended as a cluster
    ends it.
    """
    stops = iter([True])

    def stop(node):
        if isinstance(node.interface, TrainModel) and next(stops, False):
            os.kill(os.getpid(), signal.SIGTERM)

    return run_here(monkeypatch, stop)


@pytest.mark.slow
def test_a_cross_validation_judges_everybody_once_and_goes_on_after_it_was_stopped(
    prepared, trainings, tmp_path, monkeypatch, capsys
):
    """With the explicit library of stored draws."""
    monkeypatch.chdir(tmp_path)  # nipype changes it
    out = shutil.copytree(prepared[1], tmp_path / "out", ignore=shutil.ignore_patterns("models", "logs"))
    options = ["--cross-validation", "3", "--model-name", "cv", "--steps", "2", "--random-seed", "7"]
    options += ["--draws", "2", "--patch-library", "pairs", "--omp-nthreads", "1"]
    settings, listing = settle(*training(prepared[0], out, tmp_path / "work", *options))
    assert print_plan(settings, listing) == 0 and not (out / "models").exists()
    planned = capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        run_workflow(settings)
    assert ended.value.code == EXIT_TERMINATED and len(trainings) == 1
    assert run_workflow(settings) == 0
    said = capsys.readouterr().out
    assert sorted(trainings) == ["cv", "cv_fold-1", "cv_fold-2", "cv_fold-3"], "none is trained twice"

    folds = read_folds(out / "models/folds-3.json", folds=3)
    for line in describe_folds(folds):
        assert line in planned and line in said
    fewer = settle(*training(prepared[0], out, tmp_path / "work", *options, "--participant-label", "0", "1"))
    with pytest.raises(UsageError, match=r"folds-3\.json: found sub-2, from an earlier run"):
        print_plan(*fewer)
    rows = [row.split("\t") for row in (out / "group_metrics.tsv").read_text().splitlines()]
    assert rows[0][-1] == "fold" and set(rows[0]) == set(json.loads((out / "group_metrics.json").read_text()))
    assert {(row[0], row[-1]) for row in rows[1:]} == {
        (f"sub-{label}", str(number))
        for number in (1, 2, 3)
        for label in folds[f"fold-{number}"]["evaluation"]
    }
    for number in (1, 2, 3):
        card = read_card(out / f"models/cv_fold-{number}.safetensors")
        assert tuple(card.figures["subjects"]) == folds[f"fold-{number}"]["evaluation"]
        assert card.subjects().isdisjoint(card.figures["subjects"]) and len(card.subjects()) == 2
        assert ("reliability" in card.figures) == (card.uncertainty() is not None)
        (member,) = card.training["members"]
        assert member["plan"]["draws"] == 2 and member["plan"]["seed"] == 7
    final = read_card(out / "models/cv.safetensors")
    summary = json.loads((out / "models/cv_summary.json").read_text())
    assert final.subjects() == set(summary["subjects"]) == {"0", "1", "2"} and not final.figures
    assert final.cross_validation == summary and [fold["fold"] for fold in summary["folds"]] == [1, 2, 3]
    page = (out / "group.html").read_text()
    assert "Cross-validation with 3 folds" in page and "(fold 3)" in page
    text = (out / "models/cv.md").read_text()
    assert (
        "## Results of 3-fold cross-validation on 3 unseen subjects" in text
        and "not evaluated itself" in text
    )
    assert len(list(out.glob("models/cv_evaluation/*_desc-iqt_T1w.nii.gz"))) == 3


def test_a_model_for_another_factor_is_not_judged(prepared, tmp_path):
    run = group(*prepared, tmp_path / "work", "--evaluate-model", "iqt-k8")
    assert run.returncode == 2
    assert "found iqt-k8, a model for k = 8; expected one for k = 4" in run.stderr


def test_two_visits_of_an_evaluation_subject_have_files_of_their_own(tmp_path):
    from iqtflow.config import PathSettings, RunSettings, Settings, TrainSettings
    from iqtflow.workflows.app.group import EvaluationScan, build_train_graph, find_libraries

    paths = PathSettings(bids_dir=tmp_path, output_dir=tmp_path / "out", work_dir=tmp_path / "work")
    settings = Settings(
        paths=paths, run=RunSettings(mode="train"), train=TrainSettings(evaluate_model="iqt-k4")
    )
    stems = ["sub-01_ses-a", "sub-01_ses-b", "sub-01+a"]
    evaluation = []
    for stem in stems:
        (tmp_path / f"{stem}_desc-sim01_T1w.json").write_text('{"SkullStripped": "false"}')
        (tmp_path / f"{stem}_patches.safetensors").touch()
        low = tmp_path / f"{stem}_desc-sim01_T1w.nii.gz"
        evaluation.append(EvaluationScan(stem[4:6], stem, low, low, low))
    graph = build_train_graph({}, evaluation, settings, split={}, model_name="m")
    written = [node.inputs.name for node in graph._graph if node.name.startswith("sink_")]
    assert len(set(written)) == len(written)
    for stem in stems:
        assert f"models/m_evaluation/{stem}_desc-iqt_T1w.nii.gz" in written
    assert graph.get_node("evaluate_01_ses_a.inputnode").inputs.skull_stripped == "auto", "a text is no yes"

    patches = paths.output_dir / "patches"
    patches.mkdir(parents=True)
    for file in tmp_path.glob("*_patches.safetensors"):
        file.rename(patches / file.name)
    of_b = dataclasses.replace(settings, run=RunSettings(mode="train", session_labels=("b",)))
    found = find_libraries(of_b, ["01"])
    assert [file.name for file in found] == ["sub-01_ses-b_patches.safetensors"]


def test_no_network_of_a_fold_gets_the_library_of_a_subject_that_it_is_judged_on(tmp_path):
    from iqtflow.config import PathSettings, RunSettings, Settings, TrainSettings
    from iqtflow.workflows.app.cross_validation import build_folds_graph
    from iqtflow.workflows.app.group import EvaluationScan

    paths = PathSettings(bids_dir=tmp_path, output_dir=tmp_path / "out", work_dir=tmp_path / "work")
    train = TrainSettings(cross_validation=2, ensemble=2)
    settings = Settings(paths=paths, run=RunSettings(mode="train"), train=train)
    (tmp_path / "out/patches").mkdir(parents=True)
    evaluation = []
    for label in "1234":
        (tmp_path / f"sub-{label}_T1w.json").write_text("{}")
        (tmp_path / f"sub-{label}_T1w.nii.gz").touch()
        for visit in "ab":
            stem, low = f"sub-{label}_ses-{visit}", tmp_path / f"sub-{label}_T1w.nii.gz"
            (tmp_path / f"out/patches/{stem}_patches.safetensors").touch()
            evaluation.append(EvaluationScan(label, stem, low, low, low))
    dealt = deal_folds(list("1234"), folds=2, seed=0)
    graph = build_folds_graph(dealt, evaluation, settings, model_name="m")

    given = {}
    for fold in ("_fold1", "_fold2", ""):
        inputs = graph.get_node(f"train{fold}.inputnode").inputs
        files = [*inputs.train_libraries, *inputs.validation_libraries]
        given[fold] = {Path(file).name.split("_")[0].removeprefix("sub-") for file in files}
        assert len(files) == 2 * len(given[fold]), "both visits"
    assert given[""] == set("1234")
    for fold in ("_fold1", "_fold2"):
        after = [node for node in graph._graph.successors(graph.get_node(f"train{fold}"))]
        judged = {node.get_node("inputnode").inputs.subject for node in after if "evaluate" in node.name}
        assert len(judged) == 2 and judged == set("1234") - given[fold]
    names = [node.inputs.name for node in graph._graph if node.name.startswith("sink_")]
    assert len(set(names)) == len(names), "no file is written twice"
