"""The card of a model as Markdown. Every number is read from the model file and from the table of results.

It begins with a picture and three sentences. Lists of subjects and the digest of the file are last.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iqtflow.bids.names import output_name
from iqtflow.image.geometry import LARGEST_RATIO, NEAR_ISOTROPIC_RATIO, RATIO_OVER_K
from iqtflow.models.card import Card
from iqtflow.models.model_file import read_card
from iqtflow.reports.assemble.group import Evaluated, find_examples, read_metrics
from iqtflow.reports.assemble.page import write_page
from iqtflow.reports.draw.model_picture import draw_model_picture
from iqtflow.reports.record import Place, Record
from iqtflow.utils.files import sha256_of

#: Measures of the tables: name, label, unit, decimals.
MEASURES = (
    ("psnr", "PSNR", " dB", 2),
    ("mssim", "MSSIM", "", 3),
    ("mssim_slicewise", "MSSIM, slice-wise", "", 3),
)
#: Gain in PSNR (dB) over the paper's own (shifted) spline, by k: Table 1, ANISO U-Net(2).
PAPER_GAIN = {4: 31.045 - 20.689, 8: 27.346 - 18.974}
ROWS = 7  #: rows of the table of errors against standard deviations
NOT_RECORDED = "not recorded in the model file"
WARNING = (
    "**For research only, not for diagnosis.** An enhanced volume may look good and be wrong: check each "
    "finding on the original scan."
)


@dataclass(frozen=True)
class Pictured:
    """The picture of a card: its file, beside the card, and the label of its evaluation subject."""

    file: str
    subject: str


def write_model_card(output_dir: Place, model_name: str, *, scans: Sequence[Record] = ()) -> Path:
    """Write ``models/NAME.md`` and, of the evaluation subject with the median gain, ``models/NAME.png``.

    Parameters
    ----------
    output_dir
        Root of the derivatives.
    model_name
        Name of the model under ``models``.
    scans
        As for `iqtflow.reports.assemble.group.write_training_page`.

    Returns
    -------
    Path
        The card.
    """
    output_dir = Path(output_dir)
    evaluation = read_metrics(output_dir / output_name("metrics")) if scans else []
    picture = output_dir / output_name("card_picture", model=model_name)
    pictured = write_picture(picture, find_examples(output_dir, model_name, scans), evaluation)
    text = card_markdown(output_dir / output_name("model", model=model_name), evaluation, pictured=pictured)
    return write_page(output_dir / output_name("card", model=model_name), text)


def write_picture(path: Path, examples: Sequence[Record], evaluation: Sequence[Evaluated]) -> Pictured | None:
    """Write the picture of the evaluation subject with the median gain in PSNR over the spline.

    Returns
    -------
    Pictured or None
        None, and no file, if there is no evaluation subject with scores and volumes.
    """
    there = {one.subject: one for one in examples if one.truth and Path(one.output or "").is_file()}
    judged = {one.subject: one for one in evaluation if one.subject in there}
    if not judged:
        return None
    subject = median_subject(list(judged.values()))
    psnr = {"spline_db": judged[subject].spline["psnr"], "enhanced_db": judged[subject].mean["psnr"]}
    write_page(path, draw_model_picture(there[subject], **psnr))
    return Pictured(path.name, subject)


def median_subject(evaluation: Sequence[Evaluated]) -> str:
    """Return the label of the subject with the median gain in PSNR; of two subjects, with the smaller one."""
    ranked = sorted(evaluation, key=lambda one: one.spline["psnr"] - one.mean["psnr"])
    return ranked[len(ranked) // 2].subject


def card_markdown(
    model: Path,
    evaluation: Sequence[Evaluated] = (),
    *,
    pictured: Pictured | None = None,
    remarks: str = "",
) -> str:
    """Return the card of a model as Markdown.

    Parameters
    ----------
    model
        The model file; the card has its name.
    evaluation
        Scores of each evaluation subject, for the table of subjects.
    pictured
        The picture, if there is one.
    remarks
        Markdown with headings of the second level. A section "Results" or "Data and licence" goes into the
        section of that name, the others come after the training.

    Returns
    -------
    str
        The card, with a line feed at its end.

    Raises
    ------
    InputError
        The model cannot be read.
    """
    card, name, written = read_card(model), model.stem, _sections(remarks)
    parts = [
        f"# {name}: k = {card.k}, {card.contrast}",
        *(_picture(name, pictured, evaluation) if pictured else ()),
        " ".join((_purpose(name, card), _origin(card), _verdict(card))),
        WARNING,
        *_results(card, evaluation, written.pop("Results", "")),
        *([_uncertainty(found, card.uncertainty())] if (found := card.evaluation.get("reliability")) else ()),
        "## Data and licence",
        written.pop("Data and licence", "") or _data(card),
        "## Training",
        _bullets(_training_facts(card)),
        *(f"## {title}\n\n{text}" for title, text in written.items()),
        "## Subjects and file",
        _bullets({**_subjects(card), **_file_facts(model)}),
    ]
    return "\n\n".join(parts) + "\n"


# --- what comes first ---


def _picture(name: str, pictured: Pictured, evaluation: Sequence[Evaluated]) -> list[str]:
    (scores,) = (one for one in evaluation if one.subject == pictured.subject)
    is_median = len(evaluation) > 2 and pictured.subject == median_subject(evaluation)
    rank = ", whose gain in PSNR is the median" if is_median else ""
    model = name if scores.fold is None else f"{name}_fold-{scores.fold}"
    return [
        f"![The simulated scan, the cubic spline, the enhanced volume and the truth]({pictured.file})",
        f"*The unseen subject sub-{pictured.subject}{rank}: simulated scan, "
        f"cubic spline (PSNR {scores.spline['psnr']:.2f} dB), volume enhanced by {model} (PSNR "
        f"{scores.mean['psnr']:.2f} dB) and truth, with the same grey scale.*",
    ]


def _purpose(name: str, card: Card) -> str:
    low, high = (card.k * share for share in RATIO_OVER_K)
    low, high = max(low, NEAR_ISOTROPIC_RATIO), min(high, LARGEST_RATIO)
    return (
        f"{name} makes {card.k} thin slices from each slice of a low-field {card.contrast} scan whose slice "
        f"spacing is {low:.2g} to {high:.2g} times its in-plane voxel size."
    )


def _origin(card: Card) -> str:
    trained, member = card.subjects("training_subjects"), card.first_member
    if not trained or "plan" not in member:
        return "Its training is not recorded in the model file."
    degradation, source = member["plan"]["degradation"], _source(card)
    return (
        f"It was trained on low-field scans that were simulated from the high-field scans of "
        f"{_count(len(trained))}{f' (data set: {source})' if source else ''}, with the SNR prior "
        f"{degradation['prior']['name']}."
    )


def _verdict(card: Card) -> str:
    figures = card.evaluation
    if not figures:
        return "It was not evaluated on unseen subjects, so the quality of its results is not known."
    psnr, mssim = (_short(figures, *measure) for measure in MEASURES[:2])
    mean = "" if figures["n"] == 1 else "the mean "
    words = f"{_count(figures['n'], 'unseen ')}, {mean}{psnr}, and {mean}{mssim}."
    if "folds" not in figures:
        return f"On {words}"
    return (
        f"In a {len(figures['folds'])}-fold cross-validation of models that were trained in the same way, on "
        f"{words} It was then trained and validated on all subjects, and not evaluated itself."
    )


def _short(figures: dict[str, Any], name: str, label: str, unit: str, decimals: int) -> str:
    row = figures[name]
    ours, theirs = (f"{row[method]['mean']:.{decimals}f}{unit}" for method in ("iqt", "spline"))
    better = f"better on {row['gain']['subjects_gained']} of {figures['n']}"
    p = f"; p = {row['wilcoxon']['p']:.2g}" if row["wilcoxon"] else ""
    return f"{label} was {ours} (cubic spline {theirs}; {better}{p})"


# --- results ---


def _results(card: Card, evaluation: Sequence[Evaluated], remark: str) -> list[str]:
    figures = card.evaluation
    if not figures:
        return ["## Results", "There was no evaluation subject.", *([remark] if remark else ())]
    folds, ours = "", "this model"
    if "folds" in figures:
        folds, ours = f"of {len(figures['folds'])}-fold cross-validation ", "model of the fold"
    parts = [
        f"## Results {folds}on {_count(figures['n'], 'unseen ')}",
        remark
        or "Scans that were simulated from high-field scans were enhanced, and compared with the high-field "
        "scan inside the brain.",
        "\n".join(
            (
                f"| | cubic spline | {ours} | gain | smallest gain | better on | Wilcoxon p |",
                "|---|---|---|---|---|---|---|",
                *(_summary_row(figures, *measure) for measure in MEASURES),
            )
        ),
    ]
    if card.k in PAPER_GAIN and card.contrast == "T1w":
        parts.append(
            f"The gain here is {figures['psnr']['gain']['mean']:.1f} dB over the spline on the correct grid. "
            f"The paper states a gain of {PAPER_GAIN[card.k]:.1f} dB at k = {card.k}, but with fixed SNR, "
            "0.7 mm data of 30 people, and a spline on a grid that is shifted by (k - 1) / 2 voxels, which "
            "costs the spline several dB."
        )
    parts.append(
        "MSSIM: 3-D, Gaussian with sigma 1.5 (Wang 2004). Slice-wise MSSIM: sigma 2.5, as in the authors' "
        "code. The two cannot be compared."
    )
    if evaluation:
        parts.append("\n".join(_subject_table(evaluation)))
    if figures.get("residual_rms"):
        parts.append(
            "Difference from the slices of the scan in the brain (root mean square, mean of subjects): "
            f"{figures['residual_rms']['mean']:.2f} times the noise (1: as expected)."
        )
    return parts


def _summary_row(figures: dict[str, Any], name: str, label: str, unit: str, decimals: int) -> str:
    row = figures[name]

    def spread(method: str) -> str:
        mean, std = row[method]["mean"], row[method]["std"]
        return f"{mean:.{decimals}f}{'' if std is None else f' ± {std:.{decimals}f}'}{unit}"

    gain, test = row["gain"], row["wilcoxon"]
    return (
        f"| {label} | {spread('spline')} | {spread('iqt')} | {gain['mean']:+.{decimals}f}{unit} | "
        f"{gain['min']:+.{decimals}f}{unit} | {gain['subjects_gained']} of {figures['n']} | "
        f"{'{p:.2g} (n = {n})'.format(**test) if test else 'not tested'} |"
    )


def _subject_table(evaluation: Sequence[Evaluated]) -> list[str]:
    rows = ["| subject | PSNR spline | PSNR | gain | MSSIM spline | MSSIM |", "|---|---|---|---|---|---|"]
    for one in evaluation:
        before, after = one.spline, one.mean
        fold = "" if one.fold is None else f" (fold {one.fold})"
        rows.append(
            f"| sub-{one.subject}{fold} | {before['psnr']:.2f} | {after['psnr']:.2f} | "
            f"{after['psnr'] - before['psnr']:+.2f} | {before['mssim']:.3f} | {after['mssim']:.3f} |"
        )
    return rows


def _uncertainty(found: dict[str, Any], kind: str | None) -> str:
    """Return the standard deviation against the error, over all voxels and in bins."""
    what = {
        "predicted": "`desc-iqtstd` is the predicted error (standard deviation) at each voxel. The first row "
        "is 1 if the prediction is right, and above 1 if errors are larger than predicted.",
        "ensemble": "`desc-iqtstd` shows how far the networks disagree. It is not the size of the error if "
        "the first row is not near 1.",
    }.get(kind or "", "")
    lines = [
        "## Predicted and true error\n" if kind == "predicted" else "## Disagreement and true error\n",
        f"{what} In the same {_count(found['n']).removeprefix('1 ')}, over the voxels of the brain:\n",
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
        f"\nThe voxels are sorted by standard deviation into {len(bins)} bins of equal size; the table has "
        f"some of them. Values are in {found['units']}, mean over the subjects.\n",
        "| bin | standard deviation | error (root mean square) | smallest to largest error of a subject "
        "|\n|---|---|---|---|",
    ]
    for i in sorted({round(i * (len(bins) - 1) / (ROWS - 1)) for i in range(ROWS)}):
        row = bins[i]
        span = f"{row['error_min']:.2f} to {row['error_max']:.2f}"
        lines.append(f"| {i + 1} | {row['std']:.2f} | {row['error']:.2f} | {span} |")
    lines.append("\nThis holds for people and scans like those of the training.")
    return "\n".join(lines)


# --- how it was made ---


def _data(card: Card) -> str:
    return _bullets({"training data": _source(card) or NOT_RECORDED, "licence of the weights": NOT_RECORDED})


def _source(card: Card) -> str:
    """Return the data set of the training subjects; empty if it is not recorded."""
    known = card.training.get("data") or {}
    stated = [str(known[key]) for key in ("Name", "DatasetDOI", "License") if key in known]
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(", ".join(stated).split()))


def _training_facts(card: Card) -> dict[str, str]:
    network, member = card["network"], card.first_member
    facts = {
        "network": f"{network['name']} {network['kwargs']}, {card.n_members} network(s)",
        "input": f"scan / {card['normalisation']['name']} (80th percentile of the brain); slices are "
        f"{card['geometry']}",
    }
    if "plan" not in member:
        return {"simulator and training": NOT_RECORDED, **facts}
    which = f" (the first of {card.n_members} networks)" if card.n_members > 1 else ""
    training = "; then ".join(_describe_training(facts) for facts in _trainings(member))
    return {"simulator": _simulator(member["plan"]), **facts, f"training{which}": training}


def _simulator(plan: dict[str, Any]) -> str:
    degradation = plan["degradation"]
    prior, mirror = degradation["prior"]["name"], degradation["mirror"]
    if plan["draws"] != "fresh":
        return f"SNR prior {prior}, mirroring {mirror}; {plan['draws']} stored scans of each subject"
    wider = "".join(
        f", {name.replace('_', ' ')} {degradation[name]}"
        for name in (
            *("zoom", "spacing_jitter", "contrast_jitter", "coarse_plane", "stripes"),
            *("plane_blur", "noise"),
        )
        if degradation.get(name)
    )
    return (
        f"SNR prior {prior}, slice thickness {degradation['thickness_fraction']} of the slice spacing, SNR "
        f"times {degradation['snr_scale']}, bias field up to {degradation['bias_amplitude']}, mirroring "
        f"{mirror}{wider}; fresh draws for every batch"
    )


def _trainings(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """List a training after the earlier trainings whose weights it started from."""
    before = facts.get("before", {})
    earlier = before.get("members", [before])[0]
    return [*(_trainings(earlier) if "plan" in earlier else []), facts]


def _describe_training(facts: dict[str, Any]) -> str:
    plan = facts["plan"]
    what = "only the predicted error (likelihood)" if plan.get("only_uncertainty") else plan["loss"].upper()
    averaged = facts.get("averaged")
    share = f"share of the new ones {averaged['share']:g}" if averaged else ""
    statistics = facts.get("statistics", {})
    return (
        f"{facts['steps']} steps of {plan['batch_size']} patches, {plan.get('optimiser', 'adam')}, "
        f"{plan['schedule']} learning rate from {plan['learning_rate']:g}, {what}, {facts['seconds']:.0f} s "
        f"on {facts['device']} ({facts['precision']})"
        + (f", then averaged with the weights before ({share})" if averaged else "")
        + (
            f"; statistics of batch normalisation from {statistics['batches']} batches"
            if statistics.get("kept", "running") != "running"
            else ""
        )
    )


# --- what comes last ---


def _subjects(card: Card) -> dict[str, str]:
    split = dict(card.training.get("split", {}))
    if card.figures:
        split["evaluation"] = card.figures["subjects"]
    lists = {f"{part} subjects": labels for part, labels in split.items()}
    lists["subjects of earlier trainings only"] = sorted(card.subjects().difference(*split.values()))
    return {what: f"{len(labels)}: {' '.join(labels)}" for what, labels in lists.items() if labels}


def _file_facts(model: Path) -> dict[str, str]:
    size = model.stat().st_size / 1e6
    return {"file": f"`{model.name}`, {size:.1f} MB, half precision, SHA-256 `{sha256_of(model)}`"}


def _sections(text: str) -> dict[str, str]:
    """Split Markdown at its headings of the second level: title, and text below it."""
    parts = f"\n{text}".split("\n## ")[1:]
    return {title.strip(): rest.strip() for title, _, rest in (part.partition("\n") for part in parts)}


def _bullets(facts: dict[str, str]) -> str:
    return "\n".join(f"* **{name}**: {value}" for name, value in facts.items())


def _count(n: int, kind: str = "") -> str:
    return f"{n} {kind}subject{'' if n == 1 else 's'}"
