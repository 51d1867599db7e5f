"""Write the card of a model from its file, its table of results, and remarks. No number is typed by hand.

Usage: ``python docs/model-cards/render.py MODEL.safetensors group_metrics.tsv REMARKS.md > CARD.md``
"""

from __future__ import annotations

import csv
import hashlib
import sys
from pathlib import Path
from typing import Any

from iqtflow.models.model_file import read_card

#: Gain in PSNR (dB) over the paper's own (shifted) spline, by k: Table 1, ANISO U-Net(2).
PAPER_GAIN = {4: 31.045 - 20.689, 8: 27.346 - 18.974}
ROWS = 7  #: rows of the table of errors against standard deviations


def main(model: Path, metrics: Path, remarks: Path) -> None:
    """Print the card as Markdown."""
    card = read_card(model)
    member = card.training["members"][0]
    plan, split, figures = member["plan"], card.training["split"], card.figures
    degradation, network = plan["degradation"], card["network"]
    size = model.stat().st_size / 1e6
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    print(f"# {card['name']}: k = {card['k']}, {card['contrast']}\n")
    print("For research only. Read [what it cannot know](../../README.md#what-it-cannot-know) first.\n")
    for name, value in {
        "file": f"`iqtflow/models/weights/{model.name}`, {size:.1f} MB, half precision, SHA-256 `{digest}`",
        "network": f"{network['name']} {network['kwargs']}, {card['n_members']} network(s)",
        "input": f"scan / {card['normalisation']['name']} (80th percentile of the brain); slices are "
        f"{card['geometry']}",
        "training": "; then ".join(_training(facts) for facts in _trainings(member)),
        "simulator": f"SNR prior {degradation['prior']['name']}, slice thickness "
        f"{degradation['thickness_fraction']} of the slice spacing, SNR times {degradation['snr_scale']}, "
        f"bias field up to {degradation['bias_amplitude']}, mirroring {degradation['mirror']}"
        f"{_wider(degradation)}; fresh draws for every batch",
        "data": "OpenNeuro ds002748 (A, CC0; 3 T, skull-stripped) and OpenfMRI ds000011 (B, PDDL-1.0; 3 T, "
        "whole heads, defaced); the data sets themselves do not state the field strength",
        **{f"{part} subjects": f"{len(labels)}: {' '.join(labels)}" for part, labels in split.items()},
        "licence of the weights": "Apache-2.0",
    }.items():
        print(f"* **{name}**: {value}")
    print(f"\n## Results on {figures['n']} unseen subjects\n")
    print(
        "The scans were simulated with the paper's setting (slice thickness 3/4 of the slice spacing, SNR of "
        "each subject drawn from the published 0.36 T distribution), enhanced, and compared with the "
        "high-field scan inside the brain.\n"
    )
    print(
        "| | cubic spline | this model | gain | smallest gain | better on | Wilcoxon p "
        "|\n|---|---|---|---|---|---|---|"
    )
    for name, unit in (("psnr", " dB"), ("mssim", ""), ("mssim_slicewise", "")):
        print(_summary_row(name, unit, figures))
    gain = figures["psnr"]["gain"]["mean"]
    if card.k in PAPER_GAIN:
        print(
            f"\nThe gain here is {gain:.1f} dB over the spline on the correct grid. The paper states a gain "
            f"of {PAPER_GAIN[card['k']]:.1f} dB at k = {card['k']}, but with fixed SNR, 0.7 mm data of 30 "
            "people, and a spline on a grid that is shifted by (k - 1) / 2 voxels, which costs the spline "
            "several dB."
        )
    print(
        "\nMSSIM: 3-D, Gaussian with sigma 1.5 (Wang 2004). Slice-wise MSSIM: sigma 2.5, as in the authors' "
        "code. The two cannot be compared.\n"
    )
    print("| subject | PSNR spline | PSNR | gain | MSSIM spline | MSSIM |\n|---|---|---|---|---|---|")
    for label, rows in _by_subject(metrics).items():
        spline, iqt = rows["spline"], rows["iqt"]
        print(
            f"| {label} | {spline['psnr']:.2f} | {iqt['psnr']:.2f} | +{iqt['psnr'] - spline['psnr']:.2f} | "
            f"{spline['mssim']:.3f} | {iqt['mssim']:.3f} |"
        )
    if figures.get("residual_rms"):
        print(
            "\nDifference from the slices of the scan in the brain (root mean square, mean of subjects): "
            f"{figures['residual_rms']['mean']:.2f} times the noise (1: as expected)."
        )
    if figures.get("reliability"):
        print(f"\n{_uncertainty(figures['reliability'], card.uncertainty())}")
    print("\n" + remarks.read_text().strip())


def _trainings(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """List a training after the earlier trainings whose weights it started from."""
    before = facts.get("before", {})
    earlier = before.get("members", [before])[0]
    return [*(_trainings(earlier) if earlier else []), facts]


def _wider(degradation: dict[str, Any]) -> str:
    """Degradation beyond the paper's."""
    return "".join(
        f", {name.replace('_', ' ')} {degradation[name]}"
        for name in ("zoom", "spacing_jitter", "contrast_jitter", "coarse_plane", "stripes")
        if degradation.get(name)
    )


def _training(facts: dict[str, Any]) -> str:
    plan = facts["plan"]
    what = "only the predicted error (likelihood)" if plan.get("only_uncertainty") else plan["loss"].upper()
    return (
        f"{facts['steps']} steps of {plan['batch_size']} patches, {plan.get('optimiser', 'adam')}, "
        f"{plan['schedule']} learning rate from {plan['learning_rate']:g}, {what}, "
        f"{facts['seconds']:.0f} s on {facts['device']} "
        f"({facts['precision']})"
        + (
            f", then averaged with the weights before (share of the new ones {facts['averaged']['share']:g})"
            if "averaged" in facts
            else ""
        )
    )


def _summary_row(name: str, unit: str, figures: dict[str, Any]) -> str:
    row = figures[name]
    decimals = 2 if unit else 3

    def spread(method: str) -> str:
        return f"{row[method]['mean']:.{decimals}f} ± {row[method]['std']:.{decimals}f}{unit}"

    gain, test = row["gain"], row["wilcoxon"]
    label = {"psnr": "PSNR", "mssim": "MSSIM", "mssim_slicewise": "MSSIM, slice-wise"}[name]
    return (
        f"| {label} | {spread('spline')} | {spread('iqt')} | {gain['mean']:+.{decimals}f}{unit} | "
        f"{gain['min']:+.{decimals}f}{unit} | {gain['subjects_gained']} of {figures['n']} | "
        f"{test['p']:.2g} (n = {test['n']}) |"
    )


def _uncertainty(found: dict[str, Any], kind: str | None) -> str:
    """Table of the standard deviation against the error, over all voxels and in bins."""
    what = {
        "predicted": "`desc-iqtstd` is the predicted error (standard deviation) at each voxel. The first row "
        "is 1 if the prediction is right, and above 1 if errors are larger than predicted.",
        "ensemble": "`desc-iqtstd` shows how far the networks disagree. It is not the size of the error if "
        "the first row is not near 1.",
    }.get(kind or "", "")
    lines = [
        "## Predicted and true error\n" if kind == "predicted" else "## Disagreement and true error\n",
        f"{what} In the same {found['n']} subjects, over the voxels of the brain:\n",
        "| | mean | smallest | largest |\n|---|---|---|---|",
    ]
    for label, name, form in (
        ("error (root mean square) / standard deviation", "error_over_std", ".2f"),
        ("voxels within 1 standard deviation (Gaussian errors: 68 %)", "within_1_std", ".0%"),
        ("voxels within 2 standard deviations (Gaussian errors: 95 %)", "within_2_std", ".0%"),
        ("Spearman's rho of error and standard deviation, over voxels", "spearman", ".2f"),
        ("Spearman's rho over the bins below", "spearman_bins", ".3f"),
    ):
        values = (f"{found[name][key]:{form}}".replace("%", " %") for key in ("mean", "min", "max"))
        lines.append(f"| {label} | {' | '.join(values)} |")
    bins = found["bins"]
    lines += [
        f"\nThe voxels are sorted by standard deviation into {len(bins)} bins of equal size. Values are in "
        f"{found['units']}, mean over the subjects.\n",
        "| bin | standard deviation | error (root mean square) | smallest to largest error of a subject "
        "|\n|---|---|---|---|",
    ]
    for i in sorted({round(i * (len(bins) - 1) / (ROWS - 1)) for i in range(ROWS)}):
        row = bins[i]
        span = f"{row['error_min']:.2f} to {row['error_max']:.2f}"
        lines.append(f"| {i + 1} | {row['std']:.2f} | {row['error']:.2f} | {span} |")
    lines.append(
        "\nThis holds for people and scans like those of the training. See "
        "[limits](../limits.md#how-to-read-numbers-from-the-output)."
    )
    return "\n".join(lines)


def _by_subject(metrics: Path) -> dict[str, dict[str, dict[str, float]]]:
    found: dict[str, dict[str, dict[str, float]]] = {}
    with open(metrics, newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            scores = {name: float(row[name]) for name in ("psnr", "mssim")}
            found.setdefault(row["participant_id"], {})[row["method"]] = scores
    return found


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
