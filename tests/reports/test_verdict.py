"""The verdict on an enhanced scan: which figures give it, and what it says when figures are missing."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from report_phantoms import FAMILIAR, UNFAMILIAR, failed

from iqtflow.reports.record import Record
from iqtflow.reports.verdict import ESSENTIAL, judge, make_checks

#: Fields of the sidecar of a scan without faults.
GOOD: dict[str, Any] = {
    "BrainMask": {"Method": "deepbet"},
    "Geometry": {"Ratio": 4.2},
    "UpsamplingFactor": 4,
    "Model": {"Contrast": "T1w"},
    "WhiteMatter": {"ScanOverEstimate": 1.04, "UsualRange": [1.02, 1.06], "Factor": 1.0},
    "OutOfDistribution": FAMILIAR
    | {"Features": {"BrainVolume": {"Value": 1300.0}, "Coverage": {"Value": 140.0}}},
    "DataConsistency": {"ResidualRMS": 1.2, "UncheckedShare": 0.1, "Places": [{"Kind": "missing"}]},
    "SliceIntensity": {"AlternatingShare": 0.03, "PValue": 0.2, "Corrected": False},
}


def record_of(*, scan: str = "/d/sub-01_T1w.nii.gz", metrics: Any = None, **changed: Any) -> Record:
    """Record of a good scan in which some fields of the sidecar are changed; None leaves a field out."""
    details = {**copy.deepcopy(GOOD), **changed}
    return Record(
        "enhanced", scan, details={k: v for k, v in details.items() if v is not None}, metrics=metrics or {}
    )


def test_a_scan_without_faults_is_good():
    checks = make_checks(record_of())
    assert judge(checks).trust == "good"
    assert {check.passed for check in checks} == {True}
    assert not any(check.severe for check in checks)


def test_a_scan_whose_slices_are_as_acquired_is_good_and_an_unknown_resolution_is_named():
    assert judge(make_checks(record_of(**resolved(5.2)))).trust == "good"
    unknown = judge(make_checks(record_of(**resolved(None))))
    assert unknown.trust == "good"
    assert "slices as acquired" in unknown.reason


def white_matter(ratio: float, factor: float) -> dict[str, Any]:
    return {"ScanOverEstimate": ratio, "UsualRange": [1.02, 1.06], "Factor": factor}


def features(volume: float, length: float) -> dict[str, Any]:
    found = {"BrainVolume": {"Value": volume}, "Coverage": {"Value": length}}
    return FAMILIAR | {"Features": found}


def audit(**changed: Any) -> dict[str, Any]:
    return {**GOOD["DataConsistency"], **changed}


def resolved(mm: float | None) -> dict[str, Any]:
    """A scan with slices 5 mm apart along the third axis, and its measured resolution."""
    geometry = {"Ratio": 4.2, "SpacingMm": 5.0}
    measured = {"i": 1.0, "j": 1.0, "k": mm}
    return {"Geometry": geometry, "SliceAxis": "k", "EffectiveResolutionMm": measured}


@pytest.mark.parametrize(
    ("changed", "trust", "told"),
    [
        ({"BrainMask": {"Method": "head"}}, "do not use", "No brain"),
        ({"OutOfDistribution": features(2600, 150)}, "look closer", "2600 ml"),
        ({"OutOfDistribution": features(200, 140)}, "look closer", "14 cm²"),
        ({"OutOfDistribution": UNFAMILIAR | {"Score": 2.0}}, "look closer", "less of the brain"),
        ({"OutOfDistribution": UNFAMILIAR | {"Score": 5.0}}, "do not use", "less of the brain"),
        ({"WhiteMatter": white_matter(1.2, 1.132)}, "look closer", "+13 %"),
        ({"WhiteMatter": white_matter(1.6, 1.35)}, "do not use", "could not be corrected"),
        ({"Geometry": {"Ratio": 13.0}}, "look closer", "13.0 pixels"),
        ({"Model": {"Contrast": "T2w"}}, "look closer", "T2w"),
        ({"DataConsistency": audit(ResidualRMS=4.0)}, "look closer", "4.0 times the noise"),
        ({"DataConsistency": audit(ResidualRMS=6.0)}, "do not use", "6.0 times the noise"),
        ({"DataConsistency": audit(Places=[{"Kind": "missing"}] * 4)}, "look closer", "4 missing"),
        ({"DataConsistency": audit(UncheckedShare=0.5)}, "look closer", "50 %"),
        ({"SliceIntensity": {"AlternatingShare": -0.05, "PValue": 0.001}}, "look closer", "5.0 %"),
        (resolved(8.0), "look closer", "--acquired-spacing"),
        (
            {"metrics": {"iqt": {"psnr": 20.0}, "spline": {"psnr": 22.0}}},
            "look closer",
            "-2.0 dB",
        ),
    ],
)
def test_one_fault_decides_the_verdict_and_is_its_reason(changed, trust, told):
    checks = make_checks(record_of(**changed))
    verdict = judge(checks)
    assert (verdict.trust, told in verdict.reason) == (trust, True), verdict
    faults = [check.words for check in checks if check.passed is False]
    assert faults[0] == verdict.reason
    assert len(faults) == 1 + (told == "could not be corrected"), "a drift that is left was a drift before"


def test_stripes_that_were_corrected_pass():
    found = {"AlternatingShare": 0.05, "PValue": 0.001, "Corrected": True}
    assert judge(make_checks(record_of(SliceIntensity=found))).trust == "good"


@pytest.mark.parametrize("field", ["DataConsistency", "OutOfDistribution", "BrainMask"])
def test_without_an_essential_figure_no_scan_is_good(field):
    checks = make_checks(record_of(**{field: None}))
    assert judge(checks).trust == "look closer"
    missing = [check.name for check in checks if check.passed is None]
    assert set(missing) & set(ESSENTIAL)


def test_without_a_minor_figure_a_scan_can_be_good():
    checks = make_checks(record_of(SliceIntensity=None, DataConsistency=audit(UncheckedShare=None)))
    assert judge(checks).trust == "good"
    assert sum(check.passed is None for check in checks) == 2


@pytest.mark.parametrize("value", ["x", 3, [], {"Score": "x", "ResidualRMS": [], "Places": [1]}])
def test_sidecars_that_somebody_has_edited_do_not_stop_the_page(value):
    checks = make_checks(record_of(**dict.fromkeys(GOOD, value)))
    assert judge(checks).trust == "look closer"


def test_a_scan_that_was_not_enhanced_has_no_checks():
    assert make_checks(failed()) == []


@pytest.mark.parametrize("advice", ["", ": doubt the contrast, check the scan"])
def test_the_reason_names_what_differs_and_not_the_advice(advice):
    """The sidecars of older versions have no advice."""
    reasons = [f"CSF is brighter than usual (0.6; expected 0.2 to 0.5){advice}", "more noise than usual"]
    record = record_of(OutOfDistribution=UNFAMILIAR | {"Score": 2.0, "Reasons": reasons})
    told = judge(make_checks(record)).reason
    assert told.endswith("learned from: CSF is brighter than usual (0.6; expected 0.2 to 0.5).")
