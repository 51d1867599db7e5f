"""The result of a calibration in words: the SNR of each scan, and the values of the scanner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from iqtflow.reports.terminal import plain_table

UNKNOWN = "not measurable"


@dataclass(frozen=True)
class ScannerRow:
    """A value of a scanner: its name, the value, its spread between scans, and the number of scans."""

    name: str
    value: str
    spread: str = ""
    n: str = ""


def scanner_rows(scanner: Mapping[str, Any]) -> list[ScannerRow]:
    """Return the values of a scanner in words.

    Parameters
    ----------
    scanner
        From `iqtflow.simulation.scanner.pool_scanner`.
    """
    total = int(scanner["n_scans"])

    def row(key: str, name: str, form: str, scale: float = 1.0) -> ScannerRow:
        found = scanner[key]
        if found is None:
            return ScannerRow(name, UNKNOWN)
        value, spread = found["median"], found["spread"]
        text = form.format(value * scale)
        if key == "stripes" and not value:
            text = "none"
        if key == "thickness_fraction":
            low, high = found["range"]
            text += f" ({low:.2f} to {high:.2f})"
        told = "" if spread is None else form.format(spread * scale)
        return ScannerRow(name, text, told, f"{found['n']} of {total}")

    kind = scanner["noise_distribution"]
    return [
        ScannerRow("Kind of noise", UNKNOWN if kind is None else str(kind).capitalize()),
        row("thickness_fraction", "Slice thickness / spacing", "{:.2f}"),
        row("inplane_fwhm_mm", "In-plane resolution (FWHM)", "{:.1f} mm"),
        row("bias_amplitude", "Bias field amplitude", "{:.2f}"),
        row("stripes", "Difference of odd and even slices", "{:.1%}"),
    ]


def calibration_tables(fitted: Mapping[str, Any]) -> str:
    """Return the tables of a fitted prior for the terminal, and its notes.

    Parameters
    ----------
    fitted
        Content of ``prior.json``.
    """
    mean, scanner = fitted["mean"], fitted.get("scanner")
    scans = [
        (label, f"{scan['WM']:.1f}", f"{scan['GM']:.1f}", "left out" if label in fitted["outliers"] else "")
        for label, scan in fitted["scans"].items()
    ]
    scans.append(("mean of the prior", f"{mean[0]:.1f}", f"{mean[1]:.1f}", ""))
    parts = [plain_table(("scan", "SNR WM", "SNR GM", ""), scans, numbers=("SNR WM", "SNR GM"))]
    notes = list(fitted["notes"])
    if scanner:
        rows = [(row.name, row.value, row.spread, row.n) for row in scanner_rows(scanner)]
        parts.append(plain_table(("scanner", "value", "spread", "scans"), rows))
        notes += scanner["notes"]
    tables = "\n\n".join("\n".join(f"  {line}" for line in lines) for lines in parts)
    return tables + "".join(f"\n  note: {note}" for note in notes)
