"""The index, the page of a training, the node, and all pages in a browser."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from report_phantoms import K, Page, make_record

from iqtflow.reports.assemble.group import rank_examples, write_group_page
from iqtflow.reports.assemble.index import write_index_page, write_pages
from iqtflow.reports.assemble.rebuild import rebuild
from iqtflow.reports.assemble.subject import write_subject_page
from iqtflow.utils.errors import InputError
from iqtflow.utils.files import write_text


@pytest.fixture(scope="module")
def record(tmp_path_factory) -> dict:
    return make_record(tmp_path_factory.mktemp("volumes"))


@pytest.fixture(scope="module")
def page(record, tmp_path_factory) -> Page:
    return Page(write_subject_page(tmp_path_factory.mktemp("out"), "01", [record]))


def test_the_index_lists_who_passed_who_failed_and_who_is_missing(record, tmp_path):
    write_subject_page(tmp_path, "01", [{**record, "truth": None}])
    write_subject_page(
        tmp_path, "02", [{"status": "failed", "input": "/d/sub-02_T1w.nii.gz", "message": "too dark"}]
    )
    found = Page(write_index_page(tmp_path, ["03"]))
    assert found.says("3 subjects. Scans: 1 enhanced, 1 failed; 1 subject without a page.")
    assert found.says("too dark")
    assert found.text.index("sub-02") < found.text.index("sub-01"), "failures want attention first"
    assert "sub-01.html#sub-01_ses-1_T1w" in found.links
    assert {path.name for path in found.image_files()} == {"sub-01_ses-1_T1w_thumbnail.webp"}
    assert all(path.exists() for path in found.image_files())


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
    shutil.copy(record["output"], anat / "sub-01_desc-iqt_T1w.nii.gz")
    write_text(anat / "sub-01_desc-iqt_T1w.json", content)
    rebuild(tmp_path)
    assert Page(tmp_path / "sub-01.html").says("sub-01_desc-iqt_T1w.json cannot be read")


def test_a_figure_of_an_earlier_page_is_never_looked_for_in_another_folder(record, tmp_path):
    mine = write_text(tmp_path / "mine.txt", "my own")
    write_subject_page(tmp_path, "01", [{**record, "truth": None}])
    summary = tmp_path / "sub-01/figures/sub-01_desc-report.json"
    fields = json.loads(summary.read_text())
    summary.write_text(json.dumps({**fields, "figures": ["../../mine.txt"], "fingerprint": "old"}))
    write_subject_page(tmp_path, "01", [{**record, "truth": None}])
    assert mine.read_text() == "my own"


def test_a_subject_with_one_good_and_one_bad_scan_shows_both(record, tmp_path):
    anat = tmp_path / "sub-01" / "anat"
    anat.mkdir(parents=True)
    for key, name in (("output", "sub-01_desc-iqt_T1w"), ("std", "sub-01_desc-iqtstd_T1w")):
        shutil.copy(record[key], anat / f"{name}.nii.gz")
    (anat / "sub-01_desc-iqt_T1w.json").write_text(
        json.dumps({"Device": "cpu", "Model": {"Name": "from-sidecar"}})
    )
    output = str(anat / "sub-01_desc-iqt_T1w.nii.gz")
    good = {"subject": "01", "status": "enhanced", "input": record["input"], "output": output}
    bad = {
        "subject": "01",
        "status": "failed",
        "input": "/d/sub-01_run-2_T1w.nii.gz",
        "message": "4 dimensions",
    }
    write_pages(tmp_path, [good, bad])
    found = Page(tmp_path / "sub-01.html")
    assert (
        found.says("4 dimensions")
        and found.says("from-sidecar")
        and found.says("Half of the foreground is below")
    )
    assert Page(tmp_path / "index.html").says("1 enhanced, 1 failed")


EVALUATION = [
    {
        "subject": f"E{i}",
        "spline": {"psnr": 22.0 + i, "mssim": 0.7 + 0.01 * i},
        "members": [{"psnr": 25.0 + i, "mssim": 0.8}, {"psnr": 25.5 + i, "mssim": 0.81}],
        "mean": {"psnr": 26.0 + 1.5 * i, "mssim": 0.85 + 0.01 * i},
    }
    for i in range(6)
]


@pytest.fixture(scope="module")
def group_page(record, tmp_path_factory) -> Page:
    out = tmp_path_factory.mktemp("group")
    curves = out / "curves.csv"
    rows = [f"{100 * i},{1 / (i + 1)},{'' if i % 2 else 1.1 / (i + 1)},1" for i in range(20)]
    curves.write_text("\n".join(["step,train_loss,val_loss,seconds", *rows]) + "\n")
    example = {
        "truth": record["truth"],
        "spline": record["spline"],
        "iqt": record["output"],
        "input": record["input"],
        "mask": record["mask"],
    }
    summary = {
        "name": "aniso-k4",
        "k": K,
        "curves": {"network 1": curves, "network 2": curves},
        "evaluation": EVALUATION,
        "examples": [{"subject": f"E{i}", **example} for i in range(5)],
        "card": {"training": {"steps": 3000, "licence": "CC0"}, "network": {"name": "aniso-unet"}},
    }
    return Page(write_group_page(out, summary))


def test_the_group_page_gives_every_subjects_figures_and_an_exact_test(group_page):
    assert group_page.says("n = 6, p = 0.031"), "six subjects that all gained: 2 / 2^6"
    assert group_page.says("IQT is better in 6 of 6")
    assert group_page.says("E5 27.00 30.00 30.50 33.50 6.50")
    assert group_page.says("3000") and group_page.says("CC0") and group_page.says("aniso-unet")
    names = {path.name for path in group_page.image_files()}
    assert {"group_curves.svg", "group_psnr.svg", "group_mssim.svg"} <= names
    assert all(path.stat().st_size > 0 for path in group_page.image_files())


def test_examples_are_the_largest_the_median_and_the_smallest_gain(group_page):
    ranked = rank_examples([{"subject": f"E{i}"} for i in range(5)], EVALUATION)
    assert [(rank, e["subject"]) for rank, _, e in ranked] == [
        ("Best", "E4"),
        ("Median", "E2"),
        ("Worst", "E0"),
    ]
    names = {path.name for path in group_page.image_files()}
    for name in ("best-E4", "median-E2", "worst-E0"):
        assert {
            f"group_{name}_{kind}.webp" for kind in ("truth", "spline", "iqt", "errspline", "erriqt")
        } <= names


def test_the_group_page_reads_what_the_evaluation_wrote(group_page, tmp_path):
    """Networks of the ensemble are not taken for the averaged image; both definitions of MSSIM are told
    apart.
    """
    from iqtflow.evaluation.scores import table
    from iqtflow.reports.assemble.training import _read_metrics

    scores = {
        name: {"psnr": p, "mssim": 0.8, "mssim_slicewise": 0.9}
        for name, p in (("spline", 20.0), ("iqt", 27.0), ("member-1", 26.0), ("member-2", 25.0))
    }
    (tmp_path / "group_metrics.tsv").write_text(table([{"subject": "E1", "methods": scores}]))
    (record,) = _read_metrics(tmp_path / "group_metrics.tsv")
    assert record["mean"]["psnr"] == 27.0 and [m["psnr"] for m in record["members"]] == [26.0, 25.0]
    found = Page(write_group_page(tmp_path, {"name": "m", "evaluation": [record]}))
    assert found.says("MSSIM, Wang 2004 in 3-D") and found.says("MSSIM, slice by slice (authors’ code)")
    assert found.says("never compare the two")


def test_curves_without_validation_loss_are_refused_by_name(tmp_path):
    (tmp_path / "c.csv").write_text("step,train_loss\n1,2\n")
    with pytest.raises(InputError, match="no val_loss"):
        write_group_page(tmp_path, {"name": "m", "curves": {"a": tmp_path / "c.csv"}})


def test_one_evaluation_subject_alone_is_not_tested(tmp_path):
    found = Page(write_group_page(tmp_path, {"name": "m", "evaluation": EVALUATION[:1]}))
    assert found.says("One subject alone cannot be tested") and not found.says(" SD ")


def test_the_node_writes_the_page_with_the_names_of_the_derivatives(record, tmp_path):
    from iqtflow.interfaces.report import ReportSubject

    details = tmp_path / "details.json"
    details.write_text(json.dumps(record["details"]))
    stored = tmp_path / "out" / "sub-01" / "anat" / "sub-01_desc-iqt_T1w.nii.gz"
    node = ReportSubject(
        n_scans=1,
        base_directory=str(tmp_path / "out"),
        subject="01",
        inputs_named=[record["input"]],
        outputs_named=[str(stored)],
        enhanced1=record["output"],
        spline1=record["spline"],
        details1=str(details),
    )
    found = Page(Path(node.run().outputs.out_file))
    assert found.says("sub-01/anat/sub-01_desc-iqt_T1w.nii.gz") and found.says("aniso-k4")
    assert found.says("None was measured"), "a single network has no uncertainty"


def test_the_page_does_not_depend_on_whether_its_volumes_are_stored_yet(tmp_path):
    """The node that stores them runs at the same time: a page drawn before it would be drawn twice."""
    from iqtflow.interfaces.report import ReportSubject

    stored = tmp_path / "sub-01_desc-iqt_T1w.nii.gz"
    node = ReportSubject(
        n_scans=1,
        base_directory=str(tmp_path),
        subject="01",
        inputs_named=["scan.nii.gz"],
        outputs_named=[str(stored)],
    )
    before = node.inputs.get_hashval(hash_method="content")
    stored.write_bytes(b"stored")
    assert node.inputs.get_hashval(hash_method="content") == before


def test_writing_pages_never_loads_torch():
    code = "import iqtflow.interfaces.report, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
