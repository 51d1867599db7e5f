"""The models that ship: in words (what each is for, was trained on and gains), and by contrast."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from iqtflow.models.model_file import ModelInfo, list_shipped, read_card
from iqtflow.utils.errors import UsageError


def describe_models() -> str:
    """Return a text with a paragraph for each model that ships; read from their files, which are checked."""
    paragraphs = [describe_model(info, read_card(info.name)) for info in list_shipped()]
    return "\n".join(paragraphs) if paragraphs else "no model ships with this version"


def describe_model(info: ModelInfo, card: Mapping[str, Any]) -> str:
    """Return a paragraph: a line with name, k and contrast, then indented ones."""
    network, training = card["network"], card.get("training", {})
    settings = ", ".join(f"{key} {value}" for key, value in network["kwargs"].items())
    lines = [
        f"{info.name}\tk = {info.k}\t{info.contrast}\t{info.path.stat().st_size / 1e6:.1f} MB",
        f"  network   {card['n_members']} x {network['name']} ({settings})",
    ]
    split = training.get("split")
    if split:
        people = ", ".join(f"{len(labels)} for {part}" for part, labels in split.items())
        lines.append(f"  people    {people}; none on two sides")
    if "snr_prior" in card and "slice_profile" in card:
        low, high = card["slice_profile"]["fwhm_over_spacing"]
        lines.append(
            f"  trained   on scans simulated with the SNR prior {card['snr_prior'].get('name')}, slices "
            f"{low:g} to {high:g} of their spacing thick"
        )
    figures = card.get("figures")
    if figures:
        psnr, mssim = figures["psnr"], figures["mssim"]
        lines.append(
            f"  figures   {figures['n']} people never trained on: PSNR {psnr['iqt']['mean']:.2f} dB, "
            f"{psnr['gain']['mean']:+.2f} over the cubic spline (smallest {psnr['gain']['min']:+.2f}); MSSIM "
            f"{mssim['iqt']['mean']:.3f}, {mssim['gain']['mean']:+.3f}"
        )
    lines += [f"  SHA-256   {info.sha256}", f"  file      {info.path}"]
    return "\n".join(lines)


def shipped_for(contrast: str) -> dict[int, ModelInfo]:
    """Return the models that ship for a contrast, by factor.

    Raises
    ------
    UsageError
        There is none.
    """
    shipped = {info.k: info for info in list_shipped() if info.contrast == contrast}
    if not shipped:
        raise UsageError(
            f"models for {contrast}",
            found="none among those that ship",
            expected="a model trained for this contrast",
            next_step="Give a model of your own with --model PATH, or see iqtflow --list-models.",
        )
    return shipped


def check_contrast(card: Mapping[str, Any], contrast: str, model: str) -> None:
    """Make sure that the model of a card was trained for a contrast; `model` is what the user calls it.

    Raises
    ------
    UsageError
        It was trained for another one.
    """
    if card["contrast"] != contrast:
        raise UsageError(
            model,
            found=f"a model trained on {card['contrast']} scans",
            expected=f"one for the scans asked for, {contrast}",
            next_step="Networks do not carry over to other contrasts: give a model trained for this one, "
            f"or ask for {card['contrast']} scans with --contrast.",
        )
