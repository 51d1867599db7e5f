"""From HCP downloads to a model, with ready-made tissue maps; and the texts about it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from clinics import iqtflow as run_iqtflow
from conftest import make_affine, write_scan
from phantoms import make_brain
from validate_bids import find_faults

import iqtflow
from iqtflow.models.model_file import read_card

PEOPLE = ("100307", "100408", "101107")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Return the output of both levels of a training."""
    folder = tmp_path_factory.mktemp("hcp")
    affine = make_affine((1.6, 1.6, 1.6))
    for seed, label in enumerate(PEOPLE):
        brain = make_brain((72, 76, 72), seed=seed)
        write_scan(folder / f"HCP/{label}/T1w/T1w_acpc_dc_restore_brain.nii.gz", brain.intensity, affine)
        csf = np.where(brain.mask, 1 - brain.wm - brain.gm, 0).astype(np.float32)
        for name, tissue in (("WM", brain.wm), ("GM", brain.gm), ("CSF", csf)):
            write_scan(
                folder / f"maps/sub-{label}/anat/sub-{label}_label-{name}_probseg.nii.gz", tissue, affine
            )
    split = dict(zip(("train", "validation", "evaluation"), ([label] for label in PEOPLE), strict=True))
    (folder / "split.json").write_text(json.dumps(split))
    command = [
        *(folder / "HCP", folder / "out", "participant", "group"),
        *("--mode", "train", "--split", folder / "split.json", "-w", folder / "work", "--device", "cpu"),
        *("--segmentation", "derivatives", "--derivatives", folder / "maps", "--nprocs", "2"),
        *("--filters", "2", "--batch-size", "2", "--steps", "4", "--steps-per-epoch", "2"),
        *("--model-name", "tiny", "--random-seed", "3"),
    ]
    run = run_iqtflow(*command)
    assert run.returncode == 0, run.stdout + run.stderr
    return folder / "out"


def sidecar(out: Path, name: str) -> dict:
    return json.loads((out / f"sub-100307/anat/sub-100307_{name}.json").read_text())


def test_every_derivative_says_where_it_comes_from(trained):
    names = ("label-WM_probseg", "label-GM_probseg", "label-CSF_probseg", "desc-brain_mask", "desc-sim01_T1w")
    for name in names:
        assert (trained / f"sub-100307/anat/sub-100307_{name}.nii.gz").is_file()
        fields = sidecar(trained, name)
        assert fields["Sources"] == ["bids:raw:100307/T1w/T1w_acpc_dc_restore_brain.nii.gz"]
        assert fields["PackageVersion"] == iqtflow.__version__
        assert fields["RandomSeed"] == 3
    assert sidecar(trained, "label-WM_probseg")["Engine"] == "ready-made"
    assert sidecar(trained, "desc-brain_mask")["Type"] == "Brain"


def test_a_simulated_scan_says_what_was_drawn_for_it(trained):
    fields = sidecar(trained, "desc-sim01_T1w")
    assert fields["SkullStripped"] is True
    assert {"WM", "GM"} == set(fields["SNR"])
    assert fields["SliceThickness"] + fields["SliceGap"] == pytest.approx(4 * 1.6)
    assert isinstance(fields["Seed"], int)
    assert fields["UpsamplingFactor"] == 4


def test_the_model_and_its_figures_are_there(trained):
    card = read_card(trained / "models/tiny.safetensors")
    assert card["training"]["split"]["evaluation"] == ["101107"]
    assert (trained / "group_metrics.tsv").read_text().splitlines()[1].startswith("sub-101107\tspline")
    assert (trained / "group.html").is_file()


def test_the_derivatives_are_valid_bids(trained):
    # HCP downloads name no authors.
    assert find_faults(trained) == ["warning: TOO_FEW_AUTHORS /dataset_description.json"]


def test_the_citation_tells_both_levels(trained):
    text = (trained / "logs" / "CITATION.md").read_text()
    for sentence in ("ready-made", "algorithm 1", "was trained on patches", "Wilcoxon, 1945"):
        assert sentence in text
