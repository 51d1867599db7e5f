"""Read the experiments from a TOML file: cells, and the trainings and prepared data sets that they share."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from iqtflow.config import tomllib
from iqtflow.utils.errors import UsageError

PRESETS = Path(__file__).parent


@dataclass(frozen=True)
class Preparation:
    """Output of a participant level: one k, one SNR prior, and the largest number of draws of any cell.

    `patch_library` is "pairs" if any cell uses the paper's library of pairs.
    """

    k: int
    prior: str
    draws: int
    patch_library: str = "volumes"

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"k{self.k}_{self.prior}"


@dataclass(frozen=True)
class Cell:
    """One row of one table at one k.

    Attributes
    ----------
    table, row, k
        Its position.
    method, samples
        Its names in the table.
    train
        Settings of iqtflow's section ``[train]``; empty for the spline, which is not trained.
    prior, evaluation
        Names of the priors of its training scans and of its evaluation scans.
    seed
        Seed of its training.
    paper
        ``psnr`` and ``mssim``: mean, standard deviation and, if the paper has one, an asterisk.
    """

    table: str
    row: str
    k: int
    method: str
    samples: str
    train: Mapping[str, Any]
    prior: str
    evaluation: str
    seed: int = 0
    paper: Mapping[str, Any] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """``table/row``, as claims name it."""
        return f"{self.table}/{self.row}"

    @property
    def name(self) -> str:
        """Name of its folder, and on the command line."""
        return f"{self.table}-{self.row}-k{self.k}"

    @property
    def is_trained(self) -> bool:
        """Whether it has a network; the spline is part of the evaluation of every network."""
        return bool(self.train)

    @property
    def training(self) -> str:
        """Name of its training: cells that differ only in their evaluation share one."""
        content = json.dumps([self.k, self.prior, self.train, self.seed], sort_keys=True)
        network = re.sub(r"\W+", "-", str(self.train.get("network", "aniso-unet")).rpartition(":")[2])
        return f"{network}-k{self.k}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"


@dataclass(frozen=True)
class Design:
    """Content of a TOML file, with the content of the file that it extends."""

    name: str
    fields: Mapping[str, Any]

    @property
    def split(self) -> Mapping[str, int]:
        """Numbers of subjects, and the seed of the split."""
        return self.fields["split"]

    @property
    def priors(self) -> Mapping[str, str]:
        """Value of ``--snr-prior`` for each named prior."""
        return self.fields["priors"]

    @property
    def tables(self) -> Sequence[Mapping[str, Any]]:
        """Tables of the file."""
        return self.fields["tables"]

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """All cells, in the order of the tables."""
        return tuple(
            self._cell(table, row, k)
            for table in self.tables
            for k in self.fields["factors"]
            for row in table["rows"]
        )

    @cached_property
    def homes(self) -> Mapping[str, str]:
        """For each cell, the name of the first cell with the same training and evaluation."""
        first: dict[tuple[str, str], str] = {}
        return {
            c.name: first.setdefault((c.training, c.evaluation), c.name) for c in self.cells if c.is_trained
        }

    @property
    def order(self) -> tuple[Cell, ...]:
        """Trained cells in the order of the runs: those that ``run`` names, or all."""
        return self.choose(self.fields.get("run") or list(self.homes))

    def choose(self, names: Sequence[str] | None) -> tuple[Cell, ...]:
        """Return the cells that must be run for these names (all of `order` if there is no name).

        Raises
        ------
        UsageError
            There is no such cell.
        """
        if not names:
            return self.order
        unknown = [name for name in names if name not in self.homes]
        if unknown:
            raise UsageError(
                "cells",
                found=", ".join(unknown),
                expected=f"some of {', '.join(self.homes)}",
                next_step="Correct the names.",
            )
        known = {cell.name: cell for cell in self.cells}
        return tuple(known[name] for name in dict.fromkeys(self.homes[name] for name in names))

    def preparations(self, cells: Sequence[Cell]) -> tuple[Preparation, ...]:
        """Return the prepared data sets that cells need.

        The number of draws is that of the whole design, so it does not depend on the choice of cells.
        """
        most: dict[tuple[int, str], int] = {}
        explicit = set()
        for cell in (*self.order, *cells):
            draws = cell.train.get("draws", "fresh")
            for prior, n in ((cell.prior, 1 if draws == "fresh" else draws), (cell.evaluation, 1)):
                most[cell.k, prior] = max(most.get((cell.k, prior), 1), n)
            if cell.train.get("patch_library") == "pairs":
                explicit.add((cell.k, cell.prior))
        needed = {(cell.k, prior) for cell in cells for prior in (cell.prior, cell.evaluation)}
        return tuple(
            Preparation(*key, n, "pairs" if key in explicit else "volumes")
            for key, n in sorted(most.items())
            if key in needed
        )

    def _cell(self, table: Mapping[str, Any], row: Mapping[str, Any], k: int) -> Cell:
        trained = row["id"] != "spline"
        always = self.fields.get("always", {})
        own = self.fields.get("cells", {}).get(f"{table['id']}-{row['id']}-k{k}", {})
        train = {**self.fields["train"], **table.get("train", {}), **row.get("train", {}), **always, **own}
        prior = row.get("prior", table["prior"])
        train.update(upsampling_factor=k, snr_prior=self.priors[prior])
        return Cell(
            *(table["id"], row["id"], k, row["method"], row.get("samples", "")),
            train=train if trained else {},
            prior=prior,
            evaluation=table["evaluation"],
            seed=row.get("seed", 0),
            paper=row.get("paper", {}).get(f"k{k}", {}),
        )


def read_design(preset: str) -> Design:
    """Read an included design by name, or a TOML file.

    ``extends`` names another design. Tables of the file are merged into it, key by key; ``[[tables]]``
    replace those with the same id; everything else is replaced. Settings in ``[always]`` replace those of
    all rows; ``[cells]`` has settings of single cells.

    Raises
    ------
    UsageError
        There is no such design, or it is not TOML.
    """
    return Design(Path(preset).stem, _read(preset, PRESETS))


def _read(preset: str, beside: Path) -> dict[str, Any]:
    packaged = PRESETS / f"{preset}.toml"
    path = (
        packaged if packaged.is_file() else beside / preset if (beside / preset).is_file() else Path(preset)
    )
    try:
        fields = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as fault:
        raise UsageError(
            "--preset",
            found=f"{preset}: {fault}",
            expected=f"{', '.join(sorted(p.stem for p in PRESETS.glob('*.toml')))}, or a file in TOML",
            next_step="See benchmarks/paper/lin2019.toml.",
        ) from fault
    if "extends" not in fields:
        return fields
    base = _read(fields.pop("extends"), path.parent)
    for key, value in fields.items():
        if key == "tables":
            known = {table["id"]: table for table in base["tables"]}
            base["tables"] = list({**known, **{table["id"]: table for table in value}}.values())
        elif isinstance(value, dict) and isinstance(base.get(key), dict):
            base[key] = {**base[key], **value}
        else:
            base[key] = value
    return base
