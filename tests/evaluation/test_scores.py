"""Figures of a model on people it has never seen, and the command that compares volumes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import make_affine, write_scan
from phantoms import make_brain
from report_phantoms import records

from iqtflow.cli.commands.evaluate import COLUMNS as SHOWN
from iqtflow.cli.commands.evaluate import main as evaluate
from iqtflow.evaluation.scores import COLUMNS, evaluate_files, summarise, table
from iqtflow.utils.errors import InputError

AFFINE = make_affine((1, 1, 1))


@pytest.fixture
def volumes(tmp_path):
    """A truth of 83 slices, and estimates of the 80 that the simulator keeps for k = 4 or 8."""
    brain = make_brain((48, 52, 83))
    rng = np.random.default_rng(0)
    files = {"truth": tmp_path / "truth.nii.gz", "mask": tmp_path / "mask.nii.gz"}
    write_scan(files["truth"], brain.intensity, AFFINE)
    write_scan(files["mask"], brain.mask.astype(np.uint8), AFFINE)
    for name, noise in (("good", 10), ("bad", 100)):
        files[name] = tmp_path / f"{name}.nii.gz"
        noisy = brain.intensity + noise * rng.standard_normal(brain.intensity.shape)
        write_scan(files[name], noisy[:, :, :80].astype(np.float32), AFFINE)
    return files


def test_noise_of_known_size_gives_the_psnr_that_it_must(volumes):
    brain = make_brain((48, 52, 83))
    scores = evaluate_files(volumes["truth"], volumes["mask"], {n: volumes[n] for n in ("good", "bad")})
    peak = brain.intensity[:, :, :80][brain.mask[:, :, :80]].max()
    assert scores["good"]["psnr"] == pytest.approx(20 * np.log10(peak / 10), abs=0.1)
    assert scores["bad"]["psnr"] == pytest.approx(20 * np.log10(peak / 100), abs=0.1)
    assert 1 > scores["good"]["mssim"] > scores["bad"]["mssim"] > 0
    assert scores["good"]["mssim"] != scores["good"]["mssim_slicewise"]


def test_an_estimate_on_another_grid_is_refused(volumes, tmp_path):
    shifted = AFFINE.copy()
    shifted[2, 3] += 1.5  # half of k - 1 voxels: the classical mistake
    write_scan(tmp_path / "shifted.nii.gz", np.ones((48, 52, 80), np.float32), shifted)
    with pytest.raises(InputError, match="grid"):
        evaluate_files(volumes["truth"], volumes["mask"], {"shifted": tmp_path / "shifted.nii.gz"})


def test_the_command_prints_and_writes_the_same_figures(volumes, tmp_path, capsys):
    truth, good, mask = (str(volumes[name]) for name in ("truth", "good", "mask"))
    assert evaluate([truth, good, "--mask", mask, "--json", str(tmp_path / "out.json")]) == 0
    scores = json.loads((tmp_path / "out.json").read_text())
    told = capsys.readouterr().out.split("\n")
    assert told[0].split("  ")[-1] == "ULF-EnC" and told[1].startswith(good)
    assert [float(cell) for cell in told[1].split()[1:]] == pytest.approx(
        [scores[good][name] for name, *_ in SHOWN], abs=6e-3
    )


def test_without_a_mask_the_truth_says_where_to_look(volumes, tmp_path):
    """The truth itself: infinite PSNR on the terminal, null in JSON, which knows no infinity."""
    out = tmp_path / "out.json"
    assert evaluate([str(volumes["truth"]), str(volumes["truth"]), "--json", str(out)]) == 0
    best = {"psnr": None, "psnr_monotone": None, "nmse": 0, "mae": 0, "ulf_enc": pytest.approx(1.15)}
    best |= dict.fromkeys(("mssim", "mssim_slicewise", "mssim_linear"), pytest.approx(1))
    found = json.loads(out.read_text())[str(volumes["truth"])]
    found.pop("psnr_linear")  # infinite, but for rounding
    assert found == best


def test_the_summary_counts_who_gained_and_tests_it_exactly():
    summary = summarise(records([3.0, 4.0, 5.0, 2.0, 1.0, 6.0]))
    gain = summary["psnr"]["gain"]
    assert (gain["mean"], gain["min"], gain["subjects_gained"]) == (pytest.approx(3.5), pytest.approx(1), 6)
    assert summary["psnr"]["wilcoxon"]["p"] == pytest.approx(2 / 2**6)  # all six on one side, two tails
    mixed = summarise(records([3.0, -4.0, 5.0]))
    assert mixed["psnr"]["gain"]["subjects_gained"] == 2


def test_the_summary_has_the_mean_difference_from_the_slices_where_it_was_measured():
    audited = [{**r, "residual_rms": rms} for r, rms in zip(records([3.0, 4.0]), (1.0, 2.0), strict=True)]
    assert summarise([*audited, *records([5.0])])["residual_rms"]["mean"] == 1.5
    assert "residual_rms" not in summarise(records([3.0]))


def test_one_subject_has_neither_spread_nor_test():
    summary = summarise(records([3.0]))
    assert summary["psnr"]["iqt"]["std"] is None
    assert summary["psnr"]["wilcoxon"] is None


def test_the_table_has_a_described_column_for_each_figure():
    lines = table(records([1.0, 2.0])).splitlines()
    assert lines[0].split("\t") == list(COLUMNS)
    assert len(lines) == 5
    assert all("Description" in column for column in COLUMNS.values())


def test_an_empty_truth_is_named(volumes, tmp_path):
    empty = write_scan(tmp_path / "empty.nii.gz", np.zeros((48, 52, 83), np.float32), AFFINE)
    with pytest.raises(InputError, match=r"empty\.nii\.gz: found zeros only"):
        evaluate_files(empty, empty, {"good": volumes["good"]})
    with pytest.raises(InputError, match=r"empty\.nii\.gz: found no voxel above 0"):
        evaluate_files(volumes["truth"], empty, {"good": volumes["good"]})
