"""The demonstration of the README, with a network that is quick because it is small and untrained."""

from __future__ import annotations

import re

import nibabel as nib
import numpy as np
import pytest
from clinics import python

from iqtflow.cli.commands.demo import GM_OVER_WM, main, make_truth
from iqtflow.simulation.snr_prior import tissue_mean
from iqtflow.utils.files import write_text


def test_the_truth_is_a_head_with_the_contrast_of_a_high_field_scan(tmp_path):
    image, mask = make_truth(tmp_path)
    head = nib.load(image)
    maps = {n: nib.load(tmp_path / f"{n}.nii.gz").get_fdata(dtype=np.float32) for n in ("wm", "gm")}
    inside = nib.load(mask).get_fdata() > 0
    intensity = head.get_fdata(dtype=np.float32)
    np.testing.assert_allclose(nib.affines.voxel_sizes(head.affine), 1)
    assert 1200 < inside.sum() / 1000 < 2100, "brain in ml"
    ratio = tissue_mean(intensity, maps["gm"], tissue="GM") / tissue_mean(intensity, maps["wm"], tissue="WM")
    assert ratio == pytest.approx(GM_OVER_WM, abs=0.01)


@pytest.mark.parametrize("place", ["bids/dataset_description.json", "truth/T1w.nii.gz", "work/notes.txt"])
def test_the_demonstration_writes_nothing_into_a_folder_that_somebody_uses(tmp_path, capsys, place):
    mine = write_text(tmp_path / place, '{"Name": "my data", "BIDSVersion": "1.10.0"}')
    assert main([str(tmp_path)]) == 2
    assert "Choose another folder" in capsys.readouterr().err
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [mine]
    assert "my data" in mine.read_text()


def test_the_demonstration_fails_when_the_scan_was_not_enhanced(tmp_path):
    """Whatever comes after, the exit code tells ``make``."""
    run = python("-m", "iqtflow.cli.commands.demo", tmp_path, "--model", "no-such-model")
    assert run.returncode != 0
    assert "no shipped model of this name" in run.stderr
    assert "page to open" not in run.stdout


@pytest.mark.slow
def test_the_demonstration_ends_with_figures_and_a_page(untrained_model, tmp_path):
    run = python("-m", "iqtflow.cli.commands.demo", tmp_path, "--model", untrained_model)
    assert run.returncode == 0, run.stdout + run.stderr
    figures = dict(re.findall(r"^(cubic spline|iqtflow) +(\d+\.\d+)", run.stdout, re.MULTILINE))
    # untrained, the residual network is the spline itself, but for the borders and negative values
    assert float(figures["iqtflow"]) == pytest.approx(float(figures["cubic spline"]), abs=0.2)
    page = tmp_path / "derivatives/sub-mni.html"
    assert str(page) in run.stdout
    assert page.stat().st_size > 5000
    assert (tmp_path / "derivatives/sub-mni/anat/sub-mni_desc-iqt_T1w.nii.gz").exists()
