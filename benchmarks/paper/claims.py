"""Compare each claim of the paper with the results: the comparisons, and a verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from benchmarks.paper.design import Cell
from iqtflow.evaluation.metrics import wilcoxon

if TYPE_CHECKING:
    from benchmarks.paper.results import Results

LEVEL = 0.01  #: p value below which the paper gives an asterisk
#: Values of one measure by subject.
Scores = Mapping[str, float]
#: Measures of the claims: name, digits and unit of a difference.
MEASURES = {"psnr": ("PSNR", 2, " dB"), "mssim": ("MSSIM (3-D)", 4, "")}


class Pair(NamedTuple):
    """One comparison: its text, the difference (positive if the claim is right), and its p value.

    `seeds` has the means of the networks of both cells where both have several; empty otherwise.
    """

    text: str
    difference: float
    p: float
    seeds: tuple[Sequence[float], ...] = ()

    @property
    def sure(self) -> bool:
        """Whether p is small, and every network of one cell is better than every one of the other."""
        apart = not self.seeds or any(min(one) > max(other) for one, other in (self.seeds, self.seeds[::-1]))
        return self.p < LEVEL and apart


def judge(results: Results) -> list[str]:
    """Judge each claim of the design by PSNR and by MSSIM; each verdict is one item of a Markdown list.

    A claim holds at a k if all its differences have the claimed sign with p < 0.01 (for "not worse": if
    none has the opposite sign with p < 0.01). It does not hold if one has the opposite sign with p < 0.01.
    Otherwise it is not decided. Cells that were not run are named. The test is over people: it does not
    cover the effect of another seed. Where both cells have networks of several seeds, a difference also
    counts only if every network of one cell is better on average than every one of the other.
    """
    lines = []
    for claim in results.design.fields.get("claims", ()):
        for measure, (name, digits, unit) in MEASURES.items():
            for label, pairs, missing in _pairs(results, claim, measure):
                verdict = _verdict(pairs, missing, at_least=claim.get("at_least", False))
                shown = [
                    f"{p.text} {p.difference:+.{digits}f}{unit}, p = {p.p:.3g}{_seeds(p, digits)}"
                    for p in pairs
                ]
                absent = [f"not run: {', '.join(missing)}"] if missing else []
                lines.append(
                    f"* **{claim['text']}**{label}, {name}: {verdict}. {'; '.join([*shown, *absent])}"
                )
    return lines


def _seeds(pair: Pair, digits: int) -> str:
    """Means of the networks of both cells."""
    sides = [" ".join(f"{mean:.{digits}f}" for mean in means) for means in pair.seeds]
    return f" (seeds: {' against '.join(sides)})" if sides else ""


def _verdict(pairs: Sequence[Pair], missing: Sequence[str], *, at_least: bool) -> str:
    if not pairs:
        return "cannot be decided"
    against = [pair for pair in pairs if pair.difference < 0 and pair.sure]
    if against:
        return "does not hold"
    suffix = " for what has been run" if missing else ""
    if at_least or all(pair.difference > 0 and pair.sure for pair in pairs):
        return "holds" + suffix
    return "not decided"


def _pairs(
    results: Results, claim: Mapping[str, Any], measure: str
) -> list[tuple[str, list[Pair], list[str]]]:
    """Label, comparisons and missing cells of a claim, for each k (or for all together)."""
    cells = {(c.place, c.k): c for c in results.design.cells}
    factors = results.design.fields["factors"]
    if "factors" in claim:
        wanted = [(cells[place, low], cells[place, high]) for place in claim["factors"]
                  for low, high in pairwise(factors)]  # fmt: skip
        return [
            (
                "",
                *_compare_all(
                    results, wanted, lambda low, high: f"{low.place}: k = {low.k} over {high.k}", measure
                ),
            )
        ]
    found = []
    for k in factors:
        if "ladder" in claim:
            steps = [cells[place, k] for place in claim["ladder"]]
            steps = (
                [c for c in steps if results.get(c)]
                if sum(bool(results.get(c)) for c in steps) > 1
                else steps
            )
            wanted = [(high, low) for low, high in pairwise(steps)]
            absent = [cells[place, k].name for place in claim["ladder"] if not results.get(cells[place, k])]
        else:
            wanted = [(cells[a, k], cells[b, k]) for a in claim["better"] for b in claim["than"]]
            absent = []
        pairs, missing = _compare_all(
            results,
            wanted,
            lambda a, b: f"{a.row} over {b.row}",
            measure,
            spread=claim.get("measure") == "spread",
        )
        found.append((f", k = {k}", pairs, sorted({*missing, *absent})))
    return found


def _compare_all(
    results: Results,
    wanted: Sequence[tuple[Cell, Cell]],
    label: Callable[[Cell, Cell], str],
    measure: str,
    *,
    spread: bool = False,
) -> tuple[list[Pair], list[str]]:
    pairs, missing = [], set()
    for first, second in wanted:
        absent = [c.name for c in (first, second) if not results.get(c)]
        missing.update(absent)
        if not absent:
            ours, theirs = results.get(first)[measure], results.get(second)[measure]
            test = compare_spread if spread else compare_mean
            seeds = tuple(results.seeds.get(results.home(c), {}).get(measure, ()) for c in (first, second))
            both = seeds if all(seeds) and not spread else ()
            pairs.append(Pair(label(first, second), *test(ours, theirs), both))
    return pairs, sorted(missing)


def compare(ours: Scores, theirs: Scores):
    """Test with the two-tailed Wilcoxon signed-rank test over the common subjects."""
    subjects = sorted(ours.keys() & theirs.keys())
    return wilcoxon([ours[s] for s in subjects], [theirs[s] for s in subjects])


def spread(scores: Scores) -> float:
    """Return the standard deviation over subjects (n - 1)."""
    values = list(scores.values())
    return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


def compare_mean(ours: Scores, theirs: Scores) -> tuple[float, float]:
    """Return the mean difference over the common subjects, and the p value of the Wilcoxon test."""
    both = ours.keys() & theirs.keys()
    return float(np.mean([ours[s] - theirs[s] for s in both])), compare(ours, theirs).p


def compare_spread(ours: Scores, theirs: Scores) -> tuple[float, float]:
    """Return by how much the standard deviation of `theirs` is larger, and its p value.

    The test of Pitman and Morgan for paired variances (doi:10.1093/biomet/31.1-2.13) uses the correlation
    of sum and difference.
    """
    from scipy.stats import pearsonr

    subjects = sorted(ours.keys() & theirs.keys())
    a, b = (np.array([scores[s] for s in subjects]) for scores in (ours, theirs))
    p = float(pearsonr(a + b, a - b).pvalue) if len(subjects) > 2 and np.any(a != b) else 1.0
    return spread(theirs) - spread(ours), p
