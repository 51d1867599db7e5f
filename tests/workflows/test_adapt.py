"""A model adapted to a scanner, from its scans to the page."""

from __future__ import annotations

import json
import os
import signal

import pytest
from clinics import dataset, run_here, settle, write_mapped_scans

from iqtflow.image.nifti import read_volume
from iqtflow.interfaces.train import TrainModel
from iqtflow.models.model_file import read_card
from iqtflow.training import adaptation
from iqtflow.utils.errors import EXIT_TERMINATED
from iqtflow.workflows.app import adapt


def stop_after(name: str):
    """Return what ends a run once, as a cluster ends it, when the training of this model has ended."""
    stops = iter([True])

    def stop(node) -> None:
        if isinstance(node.interface, TrainModel) and node.inputs.name == name and next(stops, False):
            os.kill(os.getpid(), signal.SIGTERM)

    return stop


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
