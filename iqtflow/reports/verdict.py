"""Whether the enhanced volume of a scan can be trusted: checks of the figures in its sidecar, and a verdict.

Each check compares one figure with a threshold. The thresholds are the constants below, with their origin,
or those of the step that made the figure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from iqtflow.bids.names import stem_of
from iqtflow.config import CONTRASTS
from iqtflow.image.geometry import NEAR_ISOTROPIC_RATIO, RATIO_OVER_K
from iqtflow.image.slice_intensity import LARGEST_P, LEAST_SHARE
from iqtflow.inference.ood import ADVICE
from iqtflow.reports.record import Record

Trust = Literal["good", "look closer", "do not use"]
#: Names of the styles of verdicts on pages.
STYLES: dict[str, str] = {"good": "good", "look closer": "warn", "do not use": "bad"}

#: A score this many times the threshold of `iqtflow.inference.ood` is far outside of the training scans: with
#: so much noise, the enhanced volume is worse than the spline (docs/results/out-of-distribution.md).
FAR_FROM_TRAINING = 2.0
#: Adult brains with their CSF have 900 to 1900 ml; a newborn's has about 400 ml. A slab shows a part of a
#: brain, so the smallest value is one for the mean area of the brain in a slice (of adults: 70 to 110 cm²).
LARGEST_BRAIN_ML, SMALLEST_AREA_CM2 = 2100.0, 25.0
#: A larger correction of white matter means that the network did not recognise the contrast of the scan. On
#: simulated scans of the evaluation, there is no correction at all.
LARGEST_CORRECTION = 0.10
#: White matter may differ from its usual ratio by so much after the correction. It is more only if the
#: correction was at its limit (`iqtflow.inference.white_matter.LARGEST_FACTOR`).
LEFT_OVER = 0.02
#: Difference between the scan and the enhanced volume put through the forward model, in standard deviations
#: of the noise: 0.7 to 1.4 on real low-field scans, 1.6 to 2.3 on simulated scans of people of the evaluation
#: (docs/results/audit.md).
LARGEST_RESIDUAL, FAR_RESIDUAL = 2.5, 5.0
#: The audit has about one false alarm a scan; more than three are expected in 2 % of the scans (Poisson).
MOST_PLACES = 3
#: Gaps of 10 to 20 % of the spacing are usual in two-dimensional scans.
LARGEST_UNCHECKED = 0.30

_AGAIN = "Enhance the scan again with this version."


@dataclass(frozen=True)
class Check:
    """One check of an enhanced scan.

    Attributes
    ----------
    name
        What is checked, in a few words.
    passed
        True, False, or None if the sidecar does not have the figure.
    value
        The figure, as text; empty if there is none.
    threshold
        What is expected, as text.
    words
        What was found, in a sentence.
    severe
        The check failed by so much that the enhanced volume should not be used.
    """

    name: str
    passed: bool | None
    value: str
    threshold: str
    words: str
    severe: bool = False

    @property
    def order(self) -> int:
        """Place in a list: checks that failed come first, then those that were not made."""
        return (False, None, True).index(self.passed)


@dataclass(frozen=True)
class Verdict:
    """The verdict on an enhanced scan, and the one reason for it."""

    trust: Trust
    reason: str


def make_checks(record: Record) -> list[Check]:
    """Check the figures of an enhanced scan.

    Parameters
    ----------
    record
        Of the scan; its ``details`` (content of the sidecar) and ``metrics`` are used.

    Returns
    -------
    list of Check
        The most important first; empty for a scan that was not enhanced.
    """
    if record.status != "enhanced":
        return []
    checks = []
    for name, make in _CHECKS.items():
        try:
            found = make(record)
        except (TypeError, KeyError, ValueError, AttributeError, IndexError, ZeroDivisionError):
            # somebody has edited the sidecar
            found = _unknown("The sidecar has no readable figure for this check.")
        if found is not None:
            checks.append(Check(name, **found))
    return checks


def judge(checks: Sequence[Check]) -> Verdict:
    """Return the verdict that follows from checks.

    Parameters
    ----------
    checks
        From `make_checks`, the most important first.

    Returns
    -------
    Verdict
        ``do not use`` if a check failed by far; ``look closer`` if one failed, or if one of `ESSENTIAL` could
        not be made; else ``good``. The reason is the first check that decided.
    """
    for check in checks:
        if check.severe:
            return Verdict("do not use", check.words)
    for check in checks:
        if check.passed is False:
            return Verdict("look closer", check.words)
    for check in checks:
        if check.passed is None and check.name in ESSENTIAL:
            return Verdict("look closer", check.words)
    if not checks:
        return Verdict("look closer", "Nothing was checked.")
    passed = sum(check.passed is True for check in checks)
    rest = [check.name.lower() for check in checks if check.passed is None]
    more = f" Not known: {', '.join(rest)}." if rest else ""
    return Verdict("good", f"All {passed} checks passed.{more}")


# --- the checks; each returns the fields of a `Check` besides its name, or None if it does not apply ---

Fields = dict[str, Any] | None


def _found(*, passed: bool, value: str, threshold: str, words: str, severe: bool = False) -> dict[str, Any]:
    return {"passed": passed, "value": value, "threshold": threshold, "words": words, "severe": severe}


def _unknown(words: str, threshold: str = "") -> dict[str, Any]:
    return {"passed": None, "value": "", "threshold": threshold, "words": words}


def _brain(record: Record) -> Fields:
    details = record.details
    method = (details.get("BrainMask") or {}).get("Method")
    if method is None:
        return _unknown("The sidecar does not say how the brain was found.")
    threshold = f"{SMALLEST_AREA_CM2:.0f} cm² or more in a slice; up to {LARGEST_BRAIN_ML:.0f} ml"
    if method == "head":
        words = "No brain was found in the scan, so the intensities were not normalised on brain tissue."
        return _found(passed=False, value="none", threshold=threshold, words=words, severe=True)
    figures = (details.get("OutOfDistribution") or {}).get("Features") or {}
    if "BrainVolume" not in figures or "Coverage" not in figures:
        return _found(passed=True, value="found", threshold=threshold, words="A brain was found.")
    ml, length_mm = (float(figures[name]["Value"]) for name in ("BrainVolume", "Coverage"))
    area = 10 * ml / length_mm
    passed = area >= SMALLEST_AREA_CM2 and ml <= LARGEST_BRAIN_ML
    words = f"The brain mask has {ml:.0f} ml, {area:.0f} cm² in a slice"
    end = "." if passed else ": it may be wrong. Look at its outline."
    return _found(passed=passed, value=f"{area:.0f} cm²; {ml:.0f} ml", threshold=threshold, words=words + end)


def _training(record: Record) -> Fields:
    found = record.details.get("OutOfDistribution")
    if not isinstance(found, Mapping) or "Score" not in found:
        return _unknown("The scan was not compared with the training data: the model has no ranges for it.")
    score, limit = float(found["Score"]), float(found.get("Threshold") or 1.0)
    passed = not found.get("Flagged", score > limit)
    reasons = [str(reason) for reason in found.get("Reasons") or ()]
    if passed:
        words = "Contrast, noise, coverage and voxel size are like those of the training data."
    else:
        far = "much " if score > FAR_FROM_TRAINING * limit else ""
        # The advice stands with the reasons, below the verdict.
        why = "".join(f": {reason.partition(ADVICE)[0]}" for reason in reasons[:1])
        words = f"The scan differs {far}from those that the model learned from{why}."
    return _found(
        passed=passed,
        value=f"{score:.1f}",
        threshold=f"up to {limit:.1f}",
        words=words,
        severe=score > FAR_FROM_TRAINING * limit,
    )


def _residual(record: Record) -> Fields:
    found = record.details.get("DataConsistency")
    threshold = f"up to {LARGEST_RESIDUAL:.1f} × noise"
    if not isinstance(found, Mapping) or found.get("ResidualRMS") is None:
        words = f"The enhanced volume was not compared with the acquired slices. {_AGAIN}"
        return _unknown(words, threshold)
    rms = float(found["ResidualRMS"])
    passed = rms <= LARGEST_RESIDUAL
    words = (
        "The enhanced volume reproduces the acquired slices"
        if passed
        else "The enhanced volume does not reproduce the acquired slices"
    )
    words += f": it differs by {rms:.1f} times the noise of the scan."
    return _found(
        passed=passed, value=f"{rms:.1f} × noise", threshold=threshold, words=words, severe=rms > FAR_RESIDUAL
    )


def _places(record: Record) -> Fields:
    found = record.details.get("DataConsistency")
    threshold = f"up to {MOST_PLACES} places"
    if not isinstance(found, Mapping) or "Places" not in found:
        return _unknown(f"Single places were not compared with the acquired slices. {_AGAIN}", threshold)
    places = found["Places"]
    missing = sum(place["Kind"] == "missing" for place in places)
    n = len(places)
    words = (
        f"The enhanced volume differs from the acquired slices at {n} place{'' if n == 1 else 's'}: "
        f"{missing} missing, {n - missing} not supported by the slices."
        if n
        else "No place differs from the acquired slices."
    )
    return _found(
        passed=n <= MOST_PLACES, value=f"{n} place{'' if n == 1 else 's'}", threshold=threshold, words=words
    )


def _drift(record: Record) -> Fields:
    found = record.details.get("WhiteMatter")
    threshold = f"correction up to {100 * LARGEST_CORRECTION:.0f} %"
    if not isinstance(found, Mapping) or found.get("ScanOverEstimate") is None:
        return _unknown(
            "White matter of the scan and of the enhanced volume could not be compared.", threshold
        )
    factor = float(found.get("Factor") or 1.0)
    change = 100 * (factor - 1)
    if abs(factor - 1) <= LARGEST_CORRECTION:
        words = (
            "White matter keeps its intensity."
            if factor == 1
            else f"White matter keeps its intensity after a correction of {change:+.0f} %."
        )
        return _found(passed=True, value=f"{change:+.0f} %", threshold=threshold, words=words)
    words = (
        f"The network made white matter {'darker' if factor > 1 else 'brighter'} than in the scan; this was "
        f"corrected by {change:+.0f} %. Do not rely on the contrast of grey and white matter."
    )
    return _found(passed=False, value=f"{change:+.0f} %", threshold=threshold, words=words)


def _corrected(record: Record) -> Fields:
    found = record.details.get("WhiteMatter")
    if not isinstance(found, Mapping) or not found.get("UsualRange") or found.get("ScanOverEstimate") is None:
        return _unknown("The usual ratio of white matter in scan and enhanced volume is not known.")
    low, high = (float(limit) for limit in found["UsualRange"])
    ratio = float(found["ScanOverEstimate"]) / float(found.get("Factor") or 1.0)
    passed = low - LEFT_OVER <= ratio <= high + LEFT_OVER
    words = (
        "White matter has the same intensity in the scan and in the enhanced volume."
        if passed
        else "White matter differs between the scan and the enhanced volume, and could not be corrected."
    )
    threshold = f"{low - LEFT_OVER:.2f} to {high + LEFT_OVER:.2f}"
    return _found(passed=passed, value=f"{ratio:.2f}", threshold=threshold, words=words, severe=not passed)


def _model(record: Record) -> Fields:
    details = record.details
    wanted = (details.get("Upsampling") or {}).get("Ratio")  # sidecars of older versions lack it
    ratio = float(details["Geometry"]["Ratio"] if wanted is None else wanted)
    k = int(details["UpsamplingFactor"])
    own, contrast = _contrast_of(record), (details.get("Model") or {}).get("Contrast")
    low, high = RATIO_OVER_K
    threshold = f"{low * k:.1f} to {high * k:.1f} pixels"
    if own and contrast and own != contrast:
        words = f"The scan is {own}, and the model was trained on {contrast}."
        return _found(passed=False, value=own, threshold=contrast, words=words)
    passed = low <= ratio / k <= high
    words = f"The slices are {ratio:.1f} pixels apart; the model is for {k}."
    if not passed:
        words += " The plane was resampled: detail in plane can be lost."
    return _found(passed=passed, value=f"{ratio:.1f} pixels", threshold=threshold, words=words)


def _resolution(record: Record) -> Fields:
    details = record.details
    measured = details.get("EffectiveResolutionMm")
    if not isinstance(measured, Mapping):
        return None  # older sidecars
    mm, spacing = measured.get(details["SliceAxis"]), float(details["Geometry"]["SpacingMm"])
    limit = NEAR_ISOTROPIC_RATIO * spacing
    threshold = f"below {limit:.1f} mm along the slice axis"
    if mm is None:
        return _unknown("The resolution along the slice axis cannot be measured in this scan.", threshold)
    words = (
        f"Along the slice axis, the scan resolves {float(mm):.1f} mm; its slices are {spacing:.1f} mm apart."
    )
    passed = float(mm) < limit
    if not passed:
        words += (
            " It was interpolated before: enhance it again with --acquired-spacing, and the spacing of the "
            "protocol."
        )
    return _found(passed=passed, value=f"{float(mm):.1f} mm", threshold=threshold, words=words)


def _contrast_of(record: Record) -> str:
    """Return the BIDS suffix of the scan if it names a contrast, else an empty text."""
    suffix = stem_of(str(record.input or "").rpartition("/")[2]).rpartition("_")[2]
    return suffix if suffix in CONTRASTS else ""


def _alternation(record: Record) -> Fields:
    found = record.details.get("SliceIntensity")
    threshold = f"up to {100 * LEAST_SHARE:.0f} %, or corrected"
    if not isinstance(found, Mapping) or found.get("AlternatingShare") is None:
        return _unknown(f"Odd and even slices were not compared. {_AGAIN}", threshold)
    share = 100 * abs(float(found["AlternatingShare"]))
    p, corrected = found.get("PValue"), bool(found.get("Corrected"))
    differ = share > 100 * LEAST_SHARE and (p is None or float(p) < LARGEST_P)
    value = f"{share:.1f} %"
    if corrected:
        words = f"Odd and even slices differed by {share:.1f} %; this was corrected."
        return _found(passed=True, value=f"{value}, corrected", threshold=threshold, words=words)
    words = (
        f"Odd and even slices differ by {share:.1f} %: expect stripes in the enhanced volume."
        if differ
        else "Odd and even slices have the same intensity."
    )
    return _found(passed=not differ, value=value, threshold=threshold, words=words)


def _unchecked(record: Record) -> Fields:
    found = record.details.get("DataConsistency")
    threshold = f"up to {100 * LARGEST_UNCHECKED:.0f} %"
    if not isinstance(found, Mapping) or found.get("UncheckedShare") is None:
        return _unknown("The gap between the slices is not known.", threshold)
    share = float(found["UncheckedShare"])
    words = (
        f"{100 * share:.0f} % of the enhanced volume lies in gaps between the slices and cannot be checked."
    )
    return _found(
        passed=share <= LARGEST_UNCHECKED, value=f"{100 * share:.0f} %", threshold=threshold, words=words
    )


def _stacks(record: Record) -> Fields:
    found = record.details.get("Stacks")
    if not found:
        return None  # only of volumes that were made of several scans
    out = [stack for stack in found if not stack["Used"]]
    n = len(found)
    words = f"All {n} scans are part of the combined volume."
    if out:
        words = f"{out[0]['Scan']} is left out of the combined volume. {out[0]['Reason']}"
    value = f"{n - len(out)} of {n} scans"
    return _found(passed=not out, value=value, threshold="all scans fit", words=words)


def _against_truth(record: Record) -> Fields:
    psnr = {method: values["psnr"] for method, values in record.metrics.items() if "psnr" in values}
    if "iqt" not in psnr or "spline" not in psnr:
        return None  # only of simulated scans
    gain = float(psnr["iqt"]) - float(psnr["spline"])
    words = f"PSNR against the high-field scan is {gain:+.1f} dB compared with the spline."
    return _found(passed=gain > 0, value=f"{gain:+.1f} dB", threshold="above 0 dB", words=words)


#: Name of each check and how it is made, the most important first.
_CHECKS: dict[str, Callable[[Record], Fields]] = {
    "Brain found": _brain,
    "Better than the spline": _against_truth,
    "Scans combined": _stacks,
    "Agrees with the acquired slices": _residual,
    "White matter after correction": _corrected,
    "Like the training data": _training,
    "Places that differ": _places,
    "White matter kept": _drift,
    "Model fits the scan": _model,
    "Slices as acquired": _resolution,
    "Odd and even slices": _alternation,
    "Gaps between slices": _unchecked,
}
#: Without these checks, nobody knows whether the enhanced volume is good.
ESSENTIAL = ("Brain found", "Agrees with the acquired slices", "Like the training data")
