"""The page of a volume that was made of several scans says which, and how they fit."""

from __future__ import annotations

from dataclasses import replace

import pytest
from report_phantoms import Page, make_record

from iqtflow.reports.assemble.subject import write_subject_page
from iqtflow.reports.record import Record, find_records
from iqtflow.reports.verdict import judge, make_checks

STACKS = [
    {"Scan": "sub-01/anat/sub-01_acq-tra_T1w.nii.gz", "Used": True, "SpacingMm": 8.0, "Weight": 0.55},
    {
        "Scan": "sub-01/anat/sub-01_acq-sag_T1w.nii.gz",
        "Used": False,
        "Reason": "The two heads do not match after registration.",
        "TranslationMm": 4.2,
        "RotationDegrees": 3.1,
        "BrainOverlap": 0.71,
        "Correlation": 0.52,
    },
]


def test_the_verdict_names_the_scan_that_was_left_out():
    verdict = judge(make_checks(Record("enhanced", details={"Stacks": STACKS})))
    assert verdict.trust == "look closer"
    assert "sub-01_acq-sag_T1w.nii.gz" in verdict.reason and "do not match" in verdict.reason


def test_a_combined_volume_is_another_entry_of_the_page_than_its_first_scan(tmp_path):
    single = Record("enhanced", input="a_T1w.nii.gz", output="a_desc-iqt_T1w.nii.gz")
    joined = replace(single, output="sub-01_desc-iqtcombined_T1w.nii.gz")
    assert not single.combined and joined.combined
    assert single.key != joined.key
    folder = tmp_path / "sub-01" / "anat"
    folder.mkdir(parents=True)
    for desc in ("iqtcombined", "iqtcombinedstd"):
        (folder / f"sub-01_desc-{desc}_T1w.nii.gz").touch()
    (found,) = find_records(tmp_path, "01")
    assert found.combined and found.std == folder / "sub-01_desc-iqtcombinedstd_T1w.nii.gz"


@pytest.mark.usefixtures("small_pictures")
def test_the_page_has_a_table_of_the_scans(tmp_path):
    record = make_record(tmp_path)
    name = tmp_path / "out/sub-01/anat/sub-01_desc-iqtcombined_T1w.nii.gz"
    record = replace(record, names={"output": name}, details={**record.details, "Stacks": STACKS})
    page = Page(write_subject_page(tmp_path / "out", "01", [record], viewer_mb=0))
    assert page.says("sub-01_desc-iqtcombined_T1w") and page.says("best single enhanced volume")
    for words in ("sub-01_acq-tra_T1w.nii.gz", "4.2 mm, 3.1°", "0.71, 0.52", "left out", "55%"):
        assert page.says(words)
