"""Write the card of a model: what is in its own file, and its figures by subject. No figure is typed by hand.

Usage: ``python docs/model-cards/render.py MODEL.safetensors group_metrics.tsv REMARKS.md > CARD.md``
"""

from __future__ import annotations

import csv
import hashlib
import sys
from pathlib import Path
from typing import Any

from iqtflow.inference.uncertainty import kind_of_model
from iqtflow.models.model_file import read_card

#: Gain over its own (shifted) spline that the paper states, in dB of PSNR, by k: Table 1, ANISO U-Net(2).
PAPER_GAIN = {4: 31.045 - 20.689, 8: 27.346 - 18.974}
ROWS = 7  #: of the curve of errors over standard deviations


def main(model: Path, metrics: Path, remarks: Path) -> None:
    """Print the card as Markdown."""
    card = read_card(model)
    member = card["training"]["members"][0]
    plan, split, figures = member["plan"], card["training"]["split"], card["figures"]
    degradation, network = plan["degradation"], card["network"]
    size = model.stat().st_size / 1e6
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    print(f"# {card['name']}: k = {card['k']}, {card['contrast']}\n")
    print("For research only. What it cannot know is in the [README](../../README.md#what-it-cannot-know).\n")
    for name, value in {
        "file": f"`iqtflow/models/weights/{model.name}`, {size:.1f} MB, half precision, SHA-256 `{digest}`",
        "network": f"{network['name']} {network['kwargs']}, {card['n_members']} network(s)",
        "input": f"scan / {card['normalisation']['name']} (80th percentile of the brain), slices "
        f"{card['geometry']}",
        "training": "; then ".join(_training(facts) for facts in _trainings(member)),
        "simulator": f"SNR prior {degradation['prior']['name']}, slice thickness "
        f"{degradation['thickness_fraction']} of the "
        f"spacing, SNR times {degradation['snr_scale']}, shading up to {degradation['bias_amplitude']}, "
        f"mirroring {degradation['mirror']}; fresh draws for every batch",
        "data": "OpenNeuro ds002748 (A, CC0; 3 T, skull-stripped) and OpenfMRI ds000011 (B, PDDL-1.0; 3 "
        "T, whole heads, "
        "defaced); the field strengths are not stated by the data sets themselves",
        **{f"{part} subjects": f"{len(labels)}: {' '.join(labels)}" for part, labels in split.items()},
        "licence of the weights": "Apache-2.0",
    }.items():
        print(f"* **{name}**: {value}")
    print(f"\n## Figures on {figures['n']} people it has never seen\n")
    print(
        "Scans simulated with the paper's setting (thickness 3/4 of the spacing, SNR drawn for each "
        "subject from the published "
        "0.36 T distribution), enhanced by the inference code, compared inside the brain with the "
        "high-field scan.\n"
    )
    print(
        "| | cubic spline | this model | gain | smallest gain | better on | Wilcoxon p "
        "|\n|---|---|---|---|---|---|---|"
    )
    for name, unit in (("psnr", " dB"), ("mssim", ""), ("mssim_slicewise", "")):
        print(_summary_row(name, unit, figures))
    gain = figures["psnr"]["gain"]["mean"]
    if card["k"] in PAPER_GAIN:
        print(
            f"\nThe paper states a gain of {PAPER_GAIN[card['k']]:.1f} dB at k = {card['k']} (fixed SNR, "
            "0.7 mm data of 30 people, a spline "
            f"on a grid shifted by (k - 1) / 2 voxels, which costs the spline several dB); here {gain:.1f} "
            "dB over the spline on the right grid."
        )
    print(
        "\nMSSIM: 3-D, Gaussian sigma 1.5 (Wang 2004). Slice-wise: sigma 2.5, as in the authors' code; "
        "not comparable.\n"
    )
    print("| subject | PSNR spline | PSNR | gain | MSSIM spline | MSSIM |\n|---|---|---|---|---|---|")
    for label, rows in _by_subject(metrics).items():
        spline, iqt = rows["spline"], rows["iqt"]
        print(
            f"| {label} | {spline['psnr']:.2f} | {iqt['psnr']:.2f} | +{iqt['psnr'] - spline['psnr']:.2f} | "
            f"{spline['mssim']:.3f} | {iqt['mssim']:.3f} |"
        )
    if figures.get("reliability"):
        print(f"\n{_uncertainty(figures['reliability'], kind_of_model(card))}")
    print("\n" + remarks.read_text().strip())


def _trainings(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """A training and those before it whose weights it began with, the first one first."""
    before = facts.get("before", {})
    earlier = before.get("members", [before])[0]
    return [*(_trainings(earlier) if earlier else []), facts]


def _training(facts: dict[str, Any]) -> str:
    plan = facts["plan"]
    what = "likelihood of the error alone" if plan.get("only_uncertainty") else plan["loss"].upper()
    return (
        f"{facts['steps']} steps of {plan['batch_size']} patches, {plan['schedule']} learning rate from "
        f"{plan['learning_rate']:g}, {what}, {facts['seconds']:.0f} s on {facts['device']} "
        f"({facts['precision']})"
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
    """What the standard deviation map is worth: figures, and every other row or so of the curve."""
    what = {
        "predicted": "The model predicts, voxel by voxel, how large its error is to be expected "
        "(`desc-iqtstd`). Calibrated, the first figure is 1; above, errors are larger than predicted.",
        "ensemble": "`desc-iqtstd` is how far the networks disagree. It is no size of the error where the "
        "first figure is not near 1.",
    }.get(kind or "", "")
    lines = [
        "## How far to trust its uncertainty\n",
        f"{what} On the same {found['n']} people, over the brain's voxels:\n",
        "| | mean | smallest | largest |\n|---|---|---|---|",
    ]
    for label, name, form in (
        ("error (root mean square) / standard deviation", "error_over_std", ".2f"),
        ("voxels within 1 standard deviation (Gaussian errors: 68 %)", "within_1_std", ".0%"),
        ("voxels within 2 standard deviations (Gaussian errors: 95 %)", "within_2_std", ".0%"),
        ("Spearman's rho of error and standard deviation, over voxels", "spearman", ".2f"),
        ("the same, over the bins below", "spearman_bins", ".3f"),
    ):
        values = (f"{found[name][key]:{form}}".replace("%", " %") for key in ("mean", "min", "max"))
        lines.append(f"| {label} | {' | '.join(values)} |")
    bins = found["bins"]
    lines += [
        f"\nVoxels sorted by standard deviation into {len(bins)} bins of equal size; in {found['units']}, "
        "mean over people.\n",
        "| bin | standard deviation | error (root mean square) | of the people, smallest to largest "
        "|\n|---|---|---|---|",
    ]
    for i in sorted({round(i * (len(bins) - 1) / (ROWS - 1)) for i in range(ROWS)}):
        row = bins[i]
        span = f"{row['error_min']:.2f} to {row['error_max']:.2f}"
        lines.append(f"| {i + 1} | {row['std']:.2f} | {row['error']:.2f} | {span} |")
    lines.append(
        "\nThis holds for people and scans like those of training: see "
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
