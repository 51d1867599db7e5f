"""A model adapted to a scanner, from its scans to the page."""

from __future__ import annotations

import json
import os
import re
import signal

import numpy as np
import pytest
from clinics import dataset, run_here, settle, write_mapped_scans
from conftest import make_affine, write_scan

from iqtflow.image.nifti import read_volume
from iqtflow.interfaces.train import TrainModel
from iqtflow.models.model_file import read_card
from iqtflow.reports.assemble.index import rebuild
from iqtflow.training import adaptation
from iqtflow.utils.errors import EXIT_TERMINATED, UsageError
from iqtflow.workflows.app import adapt
from iqtflow.workflows.app.site import survey


def stop_after(name: str):
    """Return what ends a run once, as a cluster ends it, when the training of this model has ended."""
    stops = iter([True])

    def stop(node) -> None:
        if isinstance(node.interface, TrainModel) and node.inputs.name == name and next(stops, False):
            os.kill(os.getpid(), signal.SIGTERM)

    return stop


def headers(folder, voxel_mm, labels):
    """Write a data set of scans without content."""
    dataset(folder)
    for label in labels:
        data = np.zeros([round(48 / size) for size in voxel_mm], np.int16)
        write_scan(folder / f"sub-{label}/anat/sub-{label}_T1w.nii.gz", data, make_affine(voxel_mm))
    return folder


def surveyed(root, *options):
    """Return what the group level would start from."""
    high = root / "high" if (root / "high").exists() else headers(root / "high", (1, 1, 1), "abcdef")
    level = ["group", "--mode", "adapt", "--highfield", high, "--segmentation", "ants"]
    return survey(*settle(root / "low", root / "out", *level, *options))


def test_the_model_the_people_and_the_axis_follow_from_headers(tmp_path):
    headers(tmp_path / "low", (1, 8, 1), "123")
    site = surveyed(tmp_path)
    assert site.card.name == "iqt-k8" and site.ratio == pytest.approx(8) and not site.notes
    assert site.name == "test-k8", "the name of the data set"
    assert site.slice_axes == ("y", "x", "z") and site.people == tuple("abcdef")
    assert len(surveyed(tmp_path, "--budget", "1s").people) == 4, "as few people as possible"
    headers(tmp_path / "high2", (1, 1, 1.2), "abcd")
    coarse = survey(*settle(tmp_path / "low", tmp_path / "out", "group", "--mode", "adapt", "--highfield",
                            tmp_path / "high2", "--segmentation", "ants"))  # fmt: skip
    assert coarse.slice_axes == ("y", "x"), "none along the coarse axis"


def test_scans_of_several_protocols_are_told_or_refused(tmp_path):
    headers(tmp_path / "low", (1, 1, 4), "12")
    assert any("3 scans or more" in note for note in surveyed(tmp_path).notes)
    low = tmp_path / "low/sub-3/anat/sub-3_T1w.nii.gz"
    write_scan(low, np.zeros((48, 48, 10), np.int16), make_affine((1, 1, 5)))
    (note,) = surveyed(tmp_path).notes
    assert "sub-3" in note and "5.00" in note
    write_scan(low, np.zeros((48, 48, 6), np.int16), make_affine((1, 1, 8)))
    with pytest.raises(UsageError, match=r"k = 4.*sub-3_T1w \(k = 8\).*--participant-label"):
        surveyed(tmp_path)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--model-name", "IQT-k4"], "--model-name: found IQT-k4, the name of a shipped model"),
        (["--split", "split.json"], "--split: found sub-A01 among the subjects that trained iqt-k4"),
        (["--highfield", "low"], "--highfield: found .*folder of the low-field scans"),
        ([], "--highfield: found not given.*ds002748.*curl"),
    ],
)
def test_what_cannot_be_adapted_is_refused_before_anything_is_computed(tmp_path, monkeypatch, options, told):
    headers(tmp_path / "low", (1, 1, 4), "123")
    monkeypatch.chdir(tmp_path)
    high = headers(tmp_path / "high", (1, 1, 1), ["a", "b", "c", "A01"])
    (tmp_path / "split.json").write_text('{"train": ["a"], "validation": ["b"], "evaluation": ["A01"]}')
    given = options if not options or "--highfield" in options else [*options, "--highfield", high]
    with pytest.raises(UsageError, match=re.compile(told, re.DOTALL)):
        survey(*settle("low", "out", "group", "--mode", "adapt", "--segmentation", "ants", *given))


@pytest.mark.slow
def test_a_model_is_adapted_to_a_scanner_and_compared_with_the_one_before(
    tmp_path, untrained_model, small_pictures, monkeypatch, capsys
):
    for name, n, k, first in (("low", 3, 4, 0), ("high", 4, 1, 10)):
        dataset(tmp_path / name)
        write_mapped_scans(tmp_path / name, tmp_path / f"{name}-maps", n, k=k, first=first)
    out, work = tmp_path / "out", tmp_path / "work"
    arguments = [tmp_path / "low", out, "participant", "group", "--mode", "adapt", "-w", work]
    arguments += ["--highfield", tmp_path / "high", "--start-from", untrained_model, "--budget", "1s"]
    arguments += ["--segmentation", "derivatives", "-d", tmp_path / "low-maps", tmp_path / "high-maps"]
    arguments += ["--device", "cpu", "--omp-nthreads", "1", "--model-name", "ours"]
    settings, listing = settle(*arguments)
    assert adapt.print_adaptation(settings, listing) == 0 and not (out / "training").exists()
    planned = capsys.readouterr().out
    assert "ours will be made of untrained (k = 4) for 3 scans" in planned and "--budget 1s" in planned

    monkeypatch.chdir(tmp_path)  # nipype changes it
    monkeypatch.setattr(adaptation, "LEAST_STEPS", 3)
    for name, value in (("validation_batches", 1), ("batch_size", 2)):
        monkeypatch.setitem(adaptation.SHIPPED, name, value)
    monkeypatch.setattr(adapt, "TIMED_STEPS", 2)
    monkeypatch.setattr(adapt, "MOST_SHOWN", 1)
    trainings = run_here(monkeypatch, stop_after("ours"))
    with pytest.raises(SystemExit) as ended:
        adapt.run_adaptation(settings, listing)
    assert ended.value.code == EXIT_TERMINATED and not (out / "adapt.html").exists()
    plan = json.loads((out / "training/models/plan.json").read_text())
    assert adapt.run_adaptation(settings, listing) == 0
    said = capsys.readouterr().out
    assert trainings == ["timed", "ours"], "nothing is trained twice"
    assert json.loads((out / "training/models/plan.json").read_text()) == plan
    record = json.loads((out / "adapt.json").read_text())
    assert record["sentence"] in said and record["sentence"] in (out / "models/ours.md").read_text()
    assert said.rstrip().endswith(f"open {out / 'adapt.html'} in a browser")
    page = (out / "adapt.html").read_text()
    assert record["sentence"] in page and "figures/adapt_sub-0_T1w.png" in page

    rebuild(out)
    assert (out / "adapt.html").read_text() == page, "--reports-only"

    card = read_card(out / "models/ours.safetensors")
    (member,) = card.training["members"]
    assert member["steps"] == 3 and member["plan"]["schedule"] == "cosine"
    prior = json.loads((out / "calibration/prior.json").read_text())
    assert member["plan"]["degradation"]["prior"]["mean"] == pytest.approx(prior["mean"])
    assert card.figures["subjects"] == record["comparison"]["subjects"]
    assert card.subjects().isdisjoint(card.figures["subjects"]) and card.familiar is not None
    stored = json.loads((out / "training/sub-10/anat/sub-10_desc-sim01_T1w.json").read_text())
    low, high = record["simulated"]["thickness_fraction"]
    assert low <= stored["Simulation"]["fwhm_mm"] / stored["SpacingBetweenSlices"] <= high
    assert stored["NoiseDistribution"] == record["simulated"]["noise"]
    image, _ = read_volume(out / "training/sub-10/anat/sub-10_desc-sim01_T1w.nii.gz")
    assert int(max(range(3), key=lambda a: image.header.get_zooms()[a])) == 1, "the slice axis of the scans"
    (row,) = record["scans"]
    assert row["after"]["residual"] > 0 and row["after"]["score"] is not None
