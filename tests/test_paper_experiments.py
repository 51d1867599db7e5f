"""The paper's experiments as a grid of cells: design, tables, claims, and small cells from end to end."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from clinics import dataset, python
from conftest import make_affine, write_scan
from phantoms import make_brain

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.paper.claims import compare_spread, judge  # noqa: E402
from benchmarks.paper.design import Design, read_design  # noqa: E402
from benchmarks.paper.results import Results, format_table, has_asterisk, read_results, write_report  # noqa: E402
from benchmarks.paper.run import Place, settle_split  # noqa: E402
from iqtflow.config import format_section, read_sections  # noqa: E402
from iqtflow.utils.errors import UsageError  # noqa: E402

TINY = """
extends = "lin2019"
title = "Phantoms"
factors = [4]
split = {{ train = 1, validation = 1, evaluation = 1, seed = 3 }}
run = {run}

[train]
slice_axes = ["y"]
filters = 2
batch_size = 2
steps = 2
steps_per_epoch = 2
ensemble = 1

[always]
patch_library = "volumes"
"""


def paper(*arguments: object):
    return python("-m", "benchmarks.paper", *arguments, cwd=ROOT, timeout=1800)


@pytest.fixture(scope="module")
def lin2019() -> Design:
    return read_design("lin2019")


@pytest.mark.parametrize("preset", ["lin2019", "people23", "people23f16"])
def test_every_cell_is_a_settings_file_that_iqtflow_reads(preset, tmp_path):
    design = read_design(preset)
    for cell in design.order:
        path = tmp_path / "cell.toml"
        path.write_text(format_section("train", cell.train))
        read = read_sections(path)["train"]
        assert read["upsampling_factor"] == cell.k and read["draws"] == cell.train["draws"]


def test_the_design_is_the_papers(lin2019):
    rows = {(c.table, c.row, c.k): c for c in lin2019.cells}
    assert len(rows) == len(lin2019.cells)
    assert {c.row for c in lin2019.cells if c.table == "1"} == {"spline", "iso", "sru", "aniso2", "aniso3"}
    assert rows["1", "aniso2", 4].paper["psnr"] == [31.045, 2.654, "*"]
    assert rows["2", "aniso2-8", 8].paper["mssim"] == [0.843, 0.033, "*"]
    own = {c.name for c in lin2019.cells if c.table == "A" or "inf" in c.row or c.place == "2/spline"}
    assert all(len(c.paper) == 2 for c in lin2019.cells if c.name not in own), "the paper's cells have values"
    for cell in lin2019.order:
        assert cell.train["ensemble"] == 5 and cell.train["batch_size"] == 32 and cell.train["filters"] == 16
        assert cell.train["residual"] == (cell.row == "residual")
    assert rows["2", "aniso2-4", 4].train["patch_library"] == "pairs"


def test_const_is_the_network_of_table_1_evaluated_on_variable_snr(lin2019):
    cells = {c.name: c for c in lin2019.cells}
    fixed, const = cells["1-aniso2-k4"], cells["2-aniso2-const-k4"]
    assert const.training == fixed.training and const.evaluation != fixed.evaluation
    assert lin2019.homes["A-reference-k4"] == "2-aniso2-inf-k4", "the same cell is not run twice"
    assert lin2019.homes["A-stored-k8"] == "2-aniso2-1-k8"
    prepared = {p.name: p for p in lin2019.preparations(lin2019.order)}
    assert prepared["k4_variable"].draws == 8 and prepared["k4_variable"].patch_library == "pairs"
    assert prepared["k8_fixed"].draws == 1 and prepared["k8_fixed"].patch_library == "volumes"


def test_an_unknown_cell_is_refused_with_those_that_there_are(lin2019):
    with pytest.raises(UsageError, match="1-aniso2-k4"):
        lin2019.choose(["1-aniso2-k5"])


def scores(mean: float, *, spread: float = 1.0, n: int = 10) -> dict[str, dict[str, float]]:
    people = {f"sub-{i:02d}": mean + spread * (i - (n - 1) / 2) / n for i in range(n)}
    return {"psnr": people, "mssim": {s: v / 40 for s, v in people.items()}, "mssim_slicewise": people}


def test_an_asterisk_needs_all_rivals_and_a_missing_cell_is_marked(lin2019):
    cells = {c.name: c for c in lin2019.cells}
    best = cells["1-aniso2-k4"]
    results = Results(lin2019, {"1-spline-k4": scores(20), "1-sru-k4": scores(30), "1-aniso2-k4": scores(31)})
    assert has_asterisk(results, best, "psnr")
    mixed = {s: v + (0.5 if i % 2 else -0.5) for i, (s, v) in enumerate(scores(31)["psnr"].items())}
    near = Results(lin2019, {**results.figures, "1-iso-k4": {**scores(31), "psnr": mixed}})
    assert not has_asterisk(near, best, "psnr"), "one rival that does not differ takes it away"
    text = format_table(results, [c for c in lin2019.cells if (c.table, c.k) == ("1", 4)])
    lines = {line.split(" | ")[0].strip("| "): line for line in text.splitlines()}
    assert "not run" in lines["ISO U-Net"] and "30.798 ± 2.573" in lines["ISO U-Net"]
    assert "**31.00**" in lines["ANISO U-Net(2)"] and "+11.00" in lines["ANISO U-Net(2)"]
    assert "**" not in lines["3D-SRU-Net"].split(" | ")[1].split(" ± ")[0]


def test_claims_hold_fail_or_stay_open(lin2019):
    figures = {
        "1-spline-k4": scores(20),
        "1-sru-k4": scores(31),
        "1-aniso2-k4": scores(30),
        "2-aniso2-const-k4": scores(28, spread=3),
        "2-aniso2-1-k4": scores(29, spread=2),
        "2-aniso2-8-k4": scores(30, spread=1),
        "2-aniso2-inf-k4": scores(30, spread=1),
    }
    lines = judge(Results(lin2019, figures))

    def verdict(claim: str) -> str:
        return next(line for line in lines if claim in line and "k = 8, " not in line)

    assert sum(", PSNR: " in line for line in lines) == sum(", MSSIM (3-D): " in line for line in lines) > 0
    assert "holds for what has been run" in verdict("better than the cubic spline")
    assert "does not hold" in verdict("ANISO U-Net(2) is the best")
    better = verdict("More draws are better")
    assert ": holds" in better and "2-aniso2-4-k4" in better
    assert ": holds" in verdict("more stable")
    assert ": holds." in verdict("not worse than 8")
    assert "cannot be decided" in next(line for line in lines if "k = 8 is worse" in line)


def test_a_difference_that_another_seed_could_make_decides_nothing(lin2019):
    figures = {"2-aniso2-1-k4": scores(29), "2-aniso2-8-k4": scores(30)}

    def verdict(*means: float) -> str:
        seeds = {"2-aniso2-1-k4": {"psnr": [28.5, 29, 29.5]}, "2-aniso2-8-k4": {"psnr": means}}
        lines = judge(Results(lin2019, figures, seeds))
        return next(line for line in lines if "More draws are better" in line and "k = 4, PSNR" in line)

    assert ": holds for what" in verdict(29.6, 30.0, 30.4)
    assert ": not decided" in verdict(29.4, 30.0, 30.6)
    assert "(seeds: 29.40 30.00 30.60 against 28.50 29.00 29.50)" in verdict(29.4, 30.0, 30.6)


def test_paired_spreads_are_told_apart():
    rng = np.random.default_rng(0)
    shared, extra = rng.normal(0, 1, 30), rng.normal(0, 1, 30)
    steady = {str(i): v for i, v in enumerate(shared)}
    shaky = {str(i): 2 * v + 0.1 * e for i, (v, e) in enumerate(zip(shared, extra, strict=True))}
    difference, p = compare_spread(steady, shaky)
    assert difference > 0.5 and p < 1e-6
    assert compare_spread(steady, dict(steady)) == (0.0, 1.0)


def write_people(root: Path, n: int) -> tuple[Path, Path]:
    """A data set of phantoms, and their tissue maps as derivatives of another program."""
    bids, maps = dataset(root / "bids"), dataset(root / "maps")
    for i in range(n):
        brain, affine = make_brain((64, 68, 64), seed=i), make_affine((1.8, 1.8, 1.8), tilt_degrees=0)
        name = f"sub-{i}/anat/sub-{i}"
        write_scan(bids / f"{name}_T1w.nii.gz", brain.intensity, affine)
        (bids / f"{name}_T1w.json").write_text('{"SkullStripped": true}')
        for label, data in (("WM", brain.wm), ("GM", brain.gm), ("CSF", brain.mask - brain.wm - brain.gm)):
            write_scan(
                maps / f"{name}_label-{label}_probseg.nii.gz", np.clip(data, 0, 1).astype("f4"), affine
            )
        write_scan(maps / f"{name}_desc-brain_mask.nii.gz", brain.mask.astype("u1"), affine)
    return bids, maps


def test_too_few_people_for_the_split(lin2019, tmp_path):
    bids, _ = write_people(tmp_path, 1)
    with pytest.raises(UsageError, match="found 1 subjects with a high-field T1w scan; expected 30"):
        settle_split(lin2019, Place(bids, tmp_path / "out"))


@pytest.mark.slow
def test_tiny_cells_of_each_kind_run_resume_and_fill_the_table(tmp_path):
    """Fixed SNR; the same network on variable SNR; stored draws; fresh draws with a network of the user."""
    run = ["1-sru-k4", "2-sru-const-k4", "2-aniso2-2-k4", "A-instance-norm-k4"]
    preset = tmp_path / "tiny.toml"
    preset.write_text(TINY.format(run=json.dumps(run)))
    bids, maps = write_people(tmp_path, 3)
    out = tmp_path / "out"
    common = (bids, out, "--preset", preset)
    passed_on = (
        "--",
        *["--segmentation", "derivatives", "--nprocs", "1", "--device", "cpu", "--derivatives"],
        maps,
    )

    plan = paper("plan", *common, *passed_on)
    assert plan.returncode == 0, plan.stdout + plan.stderr
    assert "CPU hours" in plan.stdout and "GB free" in plan.stdout and "1-sru-k4" in plan.stdout
    assert not (out / "prepared").exists(), "an estimate runs nothing"
    split = json.loads((out / "split.json").read_text())
    assert split["seed"] == 3 and [len(split[p]) for p in ("train", "validation", "evaluation")] == [1, 1, 1]

    first = paper("run", *common, "--cells", "1-sru-k4", *passed_on)
    assert first.returncode == 0, first.stdout + first.stderr
    table = paper("table", *common)
    assert table.returncode == 0, table.stderr
    assert table.stdout.count("not run") > 10 and "3D-SRU-Net | " in table.stdout

    rest = paper("run", *common, *passed_on)
    assert rest.returncode == 0, rest.stdout + rest.stderr
    assert "paper: 1-sru-k4: group level" not in rest.stdout, "a cell that is done is not run again"
    curves = [p.read_bytes() for p in sorted((out / "cells").glob("*-sru-*/models/*curves.csv"))]
    assert len(curves) == 2 and curves[0] == curves[1], "the network of Table 1 was not trained again"

    drawn = [
        json.loads(p.read_text())["SNR"]
        for p in sorted((out / "cells/2-sru-const-k4").glob("sub-*/anat/*sim01*.json"))
    ]
    assert len({json.dumps(snr) for snr in drawn}) == 3, "variable SNR differs from person to person"
    fixed = json.loads(next((out / "cells/1-sru-k4").glob("sub-*/anat/*sim01*.json")).read_text())["SNR"]
    assert fixed == {"WM": 61.0, "GM": 53.0}

    design, place = read_design(str(preset)), Place(bids, out)
    results = read_results(design, place)
    spline = {f"{table}-spline-k4" for table in "12A"}
    assert {*run, *spline} >= results.figures.keys() >= {*run, "1-spline-k4"}
    text = write_report(design, place)
    assert "split drawn with seed 3" in text and "What the paper claims" in text
    with open(out / "results.tsv", newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    assert {r["participant_id"] for r in rows} == {f"sub-{label}" for label in split["evaluation"]}

    figures = paper("figures", *common)
    assert figures.returncode == 0, figures.stderr
    drawn = {p.name for p in (out / "figures").iterdir()}
    assert {"slices_table-1_k4.png", "slices_table-2_k4.png", "samples_table-2_k4.png"} <= drawn

    again = paper("run", *common, *passed_on)
    assert again.returncode == 0 and "level" not in again.stdout, again.stdout
    assert nib.load(next((out / "cells/1-sru-k4/models").glob("*_evaluation/*iqt*"))).ndim == 3
