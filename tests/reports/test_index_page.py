"""The index, the page of a training, and the node that writes pages."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from report_phantoms import FAMILIAR, Page, failed, make_record
from training_phantoms import train_command, write_libraries

from iqtflow.evaluation.metrics import wilcoxon
from iqtflow.evaluation.scores import table
from iqtflow.interfaces.report import ReportSubject
from iqtflow.models.model_file import join_models, list_shipped, read_card
from iqtflow.reports.assemble import facts
from iqtflow.reports.assemble.group import (
    Evaluated,
    rank_examples,
    read_metrics,
    write_group_page,
    write_training_page,
)
from iqtflow.reports.assemble.index import last_trained, rebuild, write_index_page, write_pages
from iqtflow.reports.assemble.subject import write_subject_page
from iqtflow.reports.assemble.training_checks import FEWEST, LEVEL, check_training
from iqtflow.reports.ratings import check_ratings
from iqtflow.reports.record import Record
from iqtflow.reports.verdict import judge
from iqtflow.utils.errors import InputError
from iqtflow.utils.files import write_text


@pytest.fixture(scope="module")
def record(tmp_path_factory) -> Record:
    return make_record(tmp_path_factory.mktemp("volumes"))


def test_the_index_lists_who_passed_who_failed_and_who_is_missing(record, tmp_path):
    write_subject_page(tmp_path, "01", [replace(record, truth=None)])
    write_subject_page(tmp_path, "02", [failed("sub-02_T1w")])
    found = Page(write_index_page(tmp_path, ["03"]))
    assert found.says("3 scans of 3 subjects: 1 missing, 1 failed, 1 look closer.")
    assert found.says("too dark")
    assert found.text.index("sub-02") < found.text.index("sub-01"), "failed scans are first"
    assert "sub-01.html#sub-01_ses-1_T1w" in found.links
    assert {path.name for path in found.image_files()} == {"sub-01_ses-1_T1w_thumbnail.webp"}
    assert all(path.exists() for path in found.image_files())


def audited(record: Record, **details) -> Record:
    """The record of a scan with all figures of the table, without volumes: nothing is drawn."""
    places = [{"Kind": kind} for kind in ("missing", "missing", "unsupported")]
    found = {
        "DataConsistency": {"ResidualRMS": 1.25, "UncheckedShare": 0.1, "Places": places},
        "WhiteMatter": {"ScanOverEstimate": 1.25, "Factor": 1.0},
        "OutOfDistribution": FAMILIAR,
    }
    return replace(record, truth=None, output=None, details={**record.details, **found, **details})


def read_table(folder: Path) -> dict[str, dict[str, str]]:
    with open(folder / "group_iqt.tsv", newline="", encoding="utf-8") as stream:
        return {row["scan"]: row for row in csv.DictReader(stream, delimiter="\t")}


@pytest.fixture(scope="module")
def audited_site(record, tmp_path_factory) -> Path:
    """Output with an audited scan and a failed one."""
    out = tmp_path_factory.mktemp("audited")
    write_subject_page(out, "01", [audited(record)])
    write_subject_page(out, "02", [failed("sub-02_T1w")])
    return out


def test_the_table_has_the_figures_of_the_sidecars(audited_site):
    page = Page(write_index_page(audited_site))
    row = read_table(audited_site)["sub-01_ses-1_T1w"]
    figures = {"residual_rms": "1.25", "places": "3", "places_missing": "2", "ood_score": "0.7"}
    figures |= {"white_matter_change": "-20", "seconds": "31.4", "unchecked_share": "0.1", "rating": "n/a"}
    assert {name: row[name] for name in figures} == figures
    assert row["trust"] in page.text and page.says(row["reason"])
    broken = read_table(audited_site)["sub-02_T1w"]
    assert (broken["status"], broken["reason"], broken["places"]) == ("failed", "too dark", "n/a")
    described = json.loads((audited_site / "group_iqt.json").read_text())
    assert list(described) == list(row)
    assert broken["status"] in described["status"]["Levels"] and row["trust"] in described["trust"]["Levels"]


def test_a_sidecar_that_somebody_has_edited_costs_only_its_figures(record, tmp_path):
    odd = {"DataConsistency": {"Places": 7, "ResidualRMS": "high"}, "WhiteMatter": [1], "Seconds": True}
    write_subject_page(tmp_path, "01", [audited(record, **odd)])
    write_index_page(tmp_path)
    row = read_table(tmp_path)["sub-01_ses-1_T1w"]
    assert {row[name] for name in ("places", "residual_rms", "white_matter_change", "seconds")} == {"n/a"}
    assert row["ood_score"] == "0.7"


def test_a_rating_is_shown_and_goes_into_the_table(audited_site):
    (audited_site / "ratings.tsv").write_text(
        'scan\trating\tnote\r\nsub-01_ses-1_T1w\tDoubt\t"a ""double"" edge"\r\n'
    )
    page = Page(write_index_page(audited_site))
    row = read_table(audited_site)["sub-01_ses-1_T1w"]
    assert (row["rating"], row["note"]) == ("doubt", 'a "double" edge')
    assert page.says('doubt: a "double" edge') and not page.says("not used")


def test_a_rating_of_another_result_or_scan_is_named_and_exported_again(audited_site):
    (audited_site / "ratings.tsv").write_text(
        "scan\trating\tnote\tresult\nsub-01_ses-1_T1w\tpass\tn/a\t00000000\nsub-09_T1w\tfail\tn/a\tn/a\n"
    )
    page = Page(write_index_page(audited_site))
    assert page.says("sub-01_ses-1_T1w: the rating is of another result of this scan")
    assert page.says("sub-09_T1w: there is no result of this scan")
    assert read_table(audited_site)["sub-01_ses-1_T1w"]["rating"] == "n/a"
    assert page.says("not used") and "sub-09_T1w" in page.source.split("data-others=")[1].split(">")[0]


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        (["sub-01_T1w\tgood\tx"], ["line 2", "'good'", "pass, doubt, fail"]),
        (["sub-01_T1w\tpass"], ["line 2", "2 fields", "expected 3"]),
        (["sub-01_T1w\tpass\t"] * 2, ["line 3", "sub-01_T1w again", "one line for each scan"]),
        (["\tpass\t"], ["line 2", "no scan"]),
        (["sub-01_T1w\tx\ty"] * 30, ["line 11", "And 20 more"]),
    ],
)
def test_a_line_of_ratings_that_cannot_be_used_is_named(tmp_path, lines, named):
    (tmp_path / "ratings.tsv").write_text("\n".join(["scan\trating\tnote", *lines]) + "\n")
    with pytest.raises(InputError) as fault:
        check_ratings(tmp_path)
    for words in ("ratings.tsv", *named):
        assert words in str(fault.value)


@pytest.mark.parametrize("content", [b"", b"name,rating\n", b"\xff\xfe\x00s"])
def test_a_file_that_is_no_table_of_ratings_is_refused_and_the_index_still_written(tmp_path, content):
    (tmp_path / "ratings.tsv").write_bytes(content)
    with pytest.raises(InputError, match="scan, rating, note"):
        check_ratings(tmp_path)
    write_subject_page(tmp_path, "02", [failed("sub-02_T1w")])
    assert Page(write_index_page(tmp_path)).says("not used")


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "3", "[" * 100_000, '{"scans": 3, "figures": []}', '{"scans": [{}], "figures": []}'),
        *('{"scans": ["x"], "figures": []}', '{"scans": [], "figures": 3}', '{"scans": [], "figures": [3]}'),
    ],
)
def test_a_summary_of_an_earlier_run_that_is_none_is_passed_over(tmp_path, content):
    """The subject is listed, and the page is written anew."""
    summary = write_text(tmp_path / "sub-01/figures/sub-01_desc-report.json", content)
    skipped = {"subject": "01", "status": "skipped", "input": "/d/sub-01_T1w.nii.gz", "message": "too thin"}
    assert "sub-02" in write_pages(tmp_path, [{**skipped, "subject": "02"}]).read_text()
    index = Page(write_pages(tmp_path, [skipped]))
    assert index.says("too thin")
    assert json.loads(summary.read_text())["scans"][0]["status"] == "skipped"


@pytest.mark.parametrize("content", ["", "[1]", "[" * 100_000, "\0"])
def test_a_sidecar_that_cannot_be_read_is_said_on_the_page(record, tmp_path, content):
    anat = tmp_path / "sub-01/anat"
    anat.mkdir(parents=True)
    shutil.copy(record.output, anat / "sub-01_desc-iqt_T1w.nii.gz")
    write_text(anat / "sub-01_desc-iqt_T1w.json", content)
    rebuild(tmp_path)
    assert Page(tmp_path / "sub-01.html").says("sub-01_desc-iqt_T1w.json cannot be read")


def test_a_figure_of_an_earlier_page_is_never_looked_for_in_another_folder(record, tmp_path):
    mine = write_text(tmp_path / "mine.txt", "my own")
    write_subject_page(tmp_path, "01", [replace(record, truth=None, output=None)])
    summary = tmp_path / "sub-01/figures/sub-01_desc-report.json"
    fields = json.loads(summary.read_text())
    summary.write_text(json.dumps({**fields, "figures": ["../../mine.txt"], "fingerprint": "old"}))
    write_subject_page(tmp_path, "01", [replace(record, truth=None, output=None)])
    assert mine.read_text() == "my own"


def test_a_subject_with_one_good_and_one_bad_scan_shows_both(record, tmp_path):
    anat = tmp_path / "sub-01" / "anat"
    anat.mkdir(parents=True)
    for path, name in ((record.output, "sub-01_desc-iqt_T1w"), (record.std, "sub-01_desc-iqtstd_T1w")):
        shutil.copy(path, anat / f"{name}.nii.gz")
    details = {"Device": "cpu", "Model": {"Name": "from-sidecar"}}
    (anat / "sub-01_desc-iqt_T1w.json").write_text(json.dumps(details))
    output = str(anat / "sub-01_desc-iqt_T1w.nii.gz")
    good = {"subject": "01", "status": "enhanced", "input": record.input, "output": output}
    write_pages(tmp_path, [good, failed("sub-01_run-2_T1w", "4 dimensions", subject="01")])
    found = Page(tmp_path / "sub-01.html")
    for words in ("4 dimensions", "from-sidecar", "Median in the foreground"):
        assert found.says(words), words
    assert Page(tmp_path / "index.html").says("2 scans of 1 subject: 1 failed, 1 look closer.")


EVALUATION = [
    Evaluated(
        f"E{i}",
        spline={"psnr": 22.0 + i, "mssim": 0.7 + 0.01 * i},
        members=[{"psnr": 25.0 + i, "mssim": 0.8}, {"psnr": 25.5 + i, "mssim": 0.81}],
        mean={"psnr": 26.0 + 1.5 * i, "mssim": 0.85 + 0.01 * i},
    )
    for i in range(6)
]


@pytest.fixture(scope="module")
def group_page(record, tmp_path_factory) -> Page:
    out = tmp_path_factory.mktemp("group")
    curves = out / "curves.csv"
    rows = [f"{100 * i},{1 / (i + 1)},{'' if i % 2 else 1.1 / (i + 1)},1" for i in range(20)]
    curves.write_text("\n".join(["step,train_loss,val_loss,seconds", *rows]) + "\n")
    page = write_group_page(
        out,
        "aniso-k4",
        curves={"network 1": curves, "network 2": curves},
        evaluation=EVALUATION,
        examples=[replace(record, subject=f"E{i}") for i in range(5)],
    )
    return Page(page)


def test_the_group_page_gives_every_subjects_figures_and_an_exact_test(group_page):
    assert group_page.says("n = 6, p = 0.031"), "six subjects that all gained: 2 / 2^6"
    assert group_page.says("IQT is better in 6 of 6")
    assert group_page.says("E5 27.00 30.00 30.50 33.50 6.50")
    names = {path.name for path in group_page.image_files()}
    assert {"group_curves.svg", "group_psnr.svg", "group_mssim.svg"} <= names
    assert all(path.stat().st_size > 0 for path in group_page.image_files())


def test_examples_are_the_largest_the_median_and_the_smallest_gain(record, group_page):
    ranked = rank_examples([replace(record, subject=f"E{i}") for i in range(5)], EVALUATION)
    chosen = [("Best", "E4"), ("Median", "E2"), ("Worst", "E0")]
    assert [(rank, e.subject) for rank, _, e in ranked] == chosen
    names = {path.name for path in group_page.image_files()}
    for rank, label in chosen:
        for kind in ("truth", "spline", "iqt", "errspline", "erriqt"):
            assert f"group_{rank.lower()}-{label}_{kind}.webp" in names


CROSS_VALIDATED = "Cross-validation of models trained in the same way"
#: Rows of the training table that only some cards have.
OPTIONAL = {"Licence of the data", "Fine-tuned from", "Evaluation subjects", CROSS_VALIDATED}


def training_rows(card: dict) -> dict[str, str]:
    expected = {label for label, *_ in facts.CARD_TABLES["Training"]}
    rows = dict(facts.card_tables(card)["Training"])
    assert expected - OPTIONAL <= set(rows) <= expected
    return rows


@pytest.mark.parametrize("name", [info.name for info in list_shipped()])
def test_the_training_table_of_a_shipped_model_is_full(name):
    card = read_card(name)
    rows = training_rows(card)
    for part in ("train", "validation", "evaluation"):
        label = {"train": "Training"}.get(part, part.capitalize())
        subjects = card["training"]["split"][part]
        assert rows[f"{label} subjects"] == f"{len(subjects)}: {', '.join(subjects)}"
    assert rows["Steps"] == str(card["training"]["members"][0]["steps"])
    assert rows["SNR prior"] == "ibadan-0.36T"


def test_the_training_table_of_a_new_model_is_full(tmp_path):
    """As iqtflow-train writes it, and as an ensemble of two such models."""
    from iqtflow.cli.commands.train import main

    libraries = write_libraries(tmp_path, n_draws=1)
    assert main(train_command(libraries[:2], libraries[2:], tmp_path, steps=2)) == 0
    single = tmp_path / "model.safetensors"
    rows = training_rows(read_card(single))
    assert rows["Steps"] == "2" and rows["Training subjects"] == "2: 0, 1"
    assert rows["Validation subjects"] == "1: 2" and rows["Simulated scans"] == "new ones for every batch"
    (tmp_path / "models").mkdir()
    split = {"train": ["0", "1"], "validation": ["2"], "evaluation": ["3"]}
    join_models(
        tmp_path / "models/both.safetensors", [single, single], name="both", training={"split": split}
    )
    rows = training_rows(read_card(tmp_path / "models/both.safetensors"))
    assert rows["Steps"] == "2, 2" and rows["Evaluation subjects"] == "1: 3"
    assert Page(write_training_page(tmp_path, "both")).says("Training subjects 2: 0, 1")


def test_the_group_page_reads_what_the_evaluation_wrote(tmp_path):
    """Single networks are not mixed up with their mean, nor one definition of MSSIM with the other."""
    scores = {
        name: {"psnr": p, "mssim": 0.8, "mssim_slicewise": 0.9}
        for name, p in (("spline", 20.0), ("iqt", 27.0), ("member-1", 26.0), ("member-2", 25.0))
    }
    (tmp_path / "group_metrics.tsv").write_text(table([{"subject": "E1", "methods": scores}]))
    (one,) = read_metrics(tmp_path / "group_metrics.tsv")
    assert one.mean["psnr"] == 27.0 and [m["psnr"] for m in one.members] == [26.0, 25.0]
    found = Page(write_group_page(tmp_path, "m", evaluation=[one]))
    assert found.says("MSSIM, Wang 2004 in 3-D") and found.says("MSSIM, slice by slice (authors’ code)")
    assert found.says("never compare")


def test_the_page_of_a_cross_validation_has_a_row_for_each_fold(tmp_path):
    records = [
        {
            "subject": f"E{i}",
            "fold": 1 + i % 2,
            "methods": {
                name: {"psnr": p + i, "mssim": 0.8, "mssim_slicewise": 0.9}
                for name, p in (("spline", 20.0), ("iqt", 27.0))
            },
        }
        for i in range(4)
    ]
    (tmp_path / "group_metrics.tsv").write_text(table(records))
    evaluation = read_metrics(tmp_path / "group_metrics.tsv")
    assert [one.fold for one in evaluation] == [1, 2, 1, 2] and "fold" not in evaluation[0].mean
    found = Page(write_group_page(tmp_path, "m", evaluation=evaluation))
    assert found.says("Cross-validation with 2 folds: 4 subjects") and found.says("E3 (fold 2) 23.00 30.00")
    for fold, start in ((1, 21), (2, 22)):  # means of E0 and E2, and of E1 and E3
        assert found.says(f"{fold} 2 {start}.00 {start + 7}.00 +7.00")


def test_the_page_is_that_of_the_final_model_not_of_a_fold(tmp_path):
    for age, name in enumerate(("other_fold-1", "m_fold-2", "m_fold-1", "m", "old")):
        (tmp_path / f"{name}.safetensors").touch()
        os.utime(tmp_path / f"{name}.safetensors", (1000 - age, 1000 - age))
    models = sorted(tmp_path.iterdir())
    assert last_trained([one for one in models if "other" not in one.name]).stem == "m"
    assert last_trained(models).stem == "other_fold-1", "its final model is not trained yet"


def test_curves_without_validation_loss_are_refused_by_name(tmp_path):
    (tmp_path / "c.csv").write_text("step,train_loss\n1,2\n")
    with pytest.raises(InputError, match="no val_loss"):
        write_group_page(tmp_path, "m", curves={"a": tmp_path / "c.csv"})


def test_the_group_page_begins_with_a_verdict(group_page):
    """Six subjects that all gain are too few for p < .01, and the page says how many are needed."""
    assert group_page.says("Look closer. 6 unseen subjects: the smallest possible p is 0.031")
    assert group_page.says("at least 8 subjects") and group_page.says("p = 2 / 2^8 = 0.0078")


def calibrated(ratio: float) -> dict[str, dict[str, float]]:
    return {"error_over_std": {"mean": ratio}, "within_1_std": {"mean": 0.7}}


@pytest.mark.parametrize(
    ("gains", "ratio", "trust", "words"),
    [
        ([1.0] * 8, 1.1, "good", "All 4"),
        ([1.0] * 8, 1.6, "look closer", "predicted error is too small"),
        ([1.0] * 8, 0.7, "look closer", "predicted error is too large"),
        ([1.0, -0.9] * 6, 1.0, "look closer", "not consistent"),
        ([1.0, -1.5] * 6, 1.0, "do not use", "not better than the cubic spline"),
        ([1.0] * 7, 1.0, "look closer", "at least 8 subjects"),
    ],
)
def test_a_model_is_judged_by_gain_number_of_subjects_and_predicted_error(gains, ratio, trust, words):
    spline = [20.0 + i for i in range(len(gains))]
    ours = [value + gain * (1 + 0.01 * i) for i, (value, gain) in enumerate(zip(spline, gains, strict=True))]
    checks = check_training({"PSNR": (ours, spline), "MSSIM": (ours, spline)}, calibrated(ratio))
    verdict = judge(checks)
    assert verdict.trust == trust and words in verdict.reason
    assert wilcoxon([1.0] * FEWEST, [0.0] * FEWEST).p < LEVEL < wilcoxon([1.0] * 7, [0.0] * 7).p


def test_a_model_that_was_not_evaluated_is_not_called_good():
    assert judge(check_training({}, None)).trust == "look closer"


def test_one_evaluation_subject_alone_is_not_tested(tmp_path):
    found = Page(write_group_page(tmp_path, "m", evaluation=EVALUATION[:1]))
    assert found.says("One subject alone cannot be tested") and not found.says(" SD ")


def make_node(out: Path, scan: str, stored: Path, **inputs) -> ReportSubject:
    return ReportSubject(
        n_scans=1,
        base_directory=str(out),
        subject="01",
        inputs_named=[scan],
        outputs_named=[str(stored)],
        **inputs,
    )


def test_the_node_writes_the_page_with_the_names_of_the_derivatives(record, tmp_path):
    details = tmp_path / "details.json"
    details.write_text(json.dumps(record.details))
    stored = tmp_path / "out" / "sub-01" / "anat" / "sub-01_desc-iqt_T1w.nii.gz"
    volumes = {"enhanced1": record.output, "spline1": record.spline, "details1": str(details)}
    node = make_node(tmp_path / "out", record.input, stored, **volumes)
    assert node.always_run
    found = Page(Path(node.run().outputs.out_file))
    assert found.says("sub-01/anat/sub-01_desc-iqt_T1w.nii.gz") and found.says("aniso-k4")
    assert found.says("no uncertainty map") and not node.always_run


def test_the_page_does_not_depend_on_whether_its_volumes_are_stored_yet(tmp_path):
    """The node that stores them runs at the same time: a page drawn before it would be drawn twice."""
    stored = tmp_path / "sub-01_desc-iqt_T1w.nii.gz"
    node = make_node(tmp_path, "scan.nii.gz", stored)
    before = node.inputs.get_hashval(hash_method="content")
    stored.write_bytes(b"stored")
    assert node.inputs.get_hashval(hash_method="content") == before


def test_writing_pages_never_loads_torch():
    code = "import iqtflow.interfaces.report, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
