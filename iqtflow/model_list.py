"""The models that ship, in words: what each is for, what it was trained on, what it has been seen to gain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from iqtflow.models import ModelInfo, list_shipped, read_card


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
