"""The paper's explicit patch library: all pairs of patches of the grid, or a random part, stored as pairs.

Each subject has one ``.npy`` file with the pairs of all draws in order. NumPy alone can read it:
``numpy.load(file, mmap_mode="r")["low"]``. A JSON file of the same name describes it. The file repeats every
voxel many times, but it is read faster. The default library (`iqtflow.training.library`) stores volumes and
takes a fraction of the disk space.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from iqtflow.config import TrainSettings
from iqtflow.simulation.snr_prior import SNRPrior
from iqtflow.training.library import PATCH, PatchLibrary
from iqtflow.training.samplers import (
    align,
    as_batch,
    check_draws,
    cut_pair,
    draw_turn,
    made_otherwise,
    require_patch,
    require_prior,
    require_sources,
    turned,
)
from iqtflow.utils.errors import InputError
from iqtflow.utils.files import read_text, require_regular, write_atomically, write_text
from iqtflow.utils.outputs import signed

FORMAT = 1


@dataclass(frozen=True)
class PairFile:
    """A subject's pairs, memory-mapped.

    Attributes
    ----------
    rows : ndarray, shape (n, bytes of a pair), uint8
        Low-field patch, then high-field patch, float16.
    counts
        Number of pairs of each draw, in the order of the file.
    subject, k, patch, prior, path, size, fingerprint
        As in `iqtflow.training.library.PatchLibrary`. `patch` is the edge of the high-field patches in
        voxels, `prior` the SNR prior of the draws.
    """

    rows: np.ndarray
    counts: tuple[int, ...]
    subject: str
    k: int
    patch: int
    prior: dict[str, Any]
    path: Path
    size: int
    fingerprint: str

    @property
    def n_patches(self) -> int:
        """Pairs in the file."""
        return len(self.rows)


def write_pairs(
    path: str | os.PathLike,
    library: PatchLibrary,
    *,
    n_draws: int,
    fraction: float = TrainSettings.patch_fraction,
    seed: int = 0,
    patch: int = PATCH,
) -> int:
    """Write the pairs of a subject's first draws; the memory that this takes does not depend on their number.

    Parameters
    ----------
    path
        A ``.npy`` file. The JSON file is written beside it, first.
    library
        Patch library with at least `n_draws` stored draws.
    n_draws
        Number of draws to take pairs from.
    fraction
        Share of the grid's patches that is kept, drawn at random for each draw.
    seed
        Seed of this choice.
    patch
        Edge of the high-field patch in voxels.

    Returns
    -------
    int
        Number of pairs.

    Raises
    ------
    InputError
        Too few draws are stored.
    OutputError
        The file cannot be written.
    """
    check_draws(library, k=library.k, n_draws=n_draws)
    require_patch(patch, library.k)
    chosen = []
    for i, draw in enumerate(library.draws[:n_draws]):
        corners = library.corners + (PATCH - patch) // 2
        places = np.array([align(library, draw, corner, patch) for corner in corners])
        places = np.unique(places, axis=0)  # two corners may share a slab
        rng = np.random.default_rng([seed, i, 0x9A185])
        keep = max(round(fraction * len(places)), 1)
        chosen.append(places[np.sort(rng.permutation(len(places))[:keep])])
    dtype = pair_dtype(library.k, patch)
    total = sum(map(len, chosen))
    header = {
        "format": FORMAT,
        "subject": library.subject,
        "k": library.k,
        "patch": patch,
        "fraction": fraction,
        "seed": seed,
        "counts": [len(rows) for rows in chosen],
        "prior": dict(library.draws[0].record.get("SNRPrior") or {}),
        "library": library.fingerprint,
    }

    def fill(stream: Any) -> None:
        descr = np.lib.format.dtype_to_descr(dtype)
        np.lib.format.write_array_header_2_0(
            stream, {"descr": descr, "fortran_order": False, "shape": (total,)}
        )
        pair = np.empty(1, dtype)
        for draw, places in zip(library.draws, chosen, strict=False):
            for place in places:
                corner = place - np.array(library.origin)
                for name, side in zip(("low", "high"), cut_pair(library, draw, corner, patch), strict=True):
                    pair[name][0] = side.astype(np.float32) / np.float32(draw.scale)
                stream.write(pair.tobytes())

    text = json.dumps(signed("iqtflow-pairs", header), indent=1, sort_keys=True)
    write_text(Path(path).with_suffix(".json"), text + "\n")
    write_atomically(path, fill)
    return total


def read_pairs(path: str | os.PathLike) -> PairFile:
    """Open a subject's pairs; a pair is read from the disk when it is needed.

    Raises
    ------
    InputError
        The file or its JSON is missing, cut short, or not what `write_pairs` wrote.
    """
    again = "Run the participant level again to write it anew."
    try:
        header = json.loads(read_text(Path(path).with_suffix(".json")))
        require_regular(path)
        pairs = np.load(path, mmap_mode="r", allow_pickle=False)
        expected = pair_dtype(header["k"], header["patch"])
        counts, subject, prior = tuple(header["counts"]), str(header["subject"]), dict(header["prior"])
        if header["format"] != FORMAT or pairs.dtype != expected or len(pairs) != sum(header["counts"]):
            raise InputError(
                path,
                found=f"{len(pairs)} rows of {pairs.dtype}, format {header['format']}",
                expected=f"{sum(header['counts'])} rows of {expected}, format {FORMAT}, as its JSON says",
                next_step=again,
            )
    except (OSError, EOFError, ValueError, LookupError, TypeError, ArithmeticError, RecursionError) as fault:
        raise InputError(
            path,
            found=f"{type(fault).__name__}: {fault}",
            expected="a readable library of pairs, with its JSON beside it",
            next_step=again,
        ) from fault
    return PairFile(
        rows=pairs.view(np.uint8).reshape(len(pairs), pairs.dtype.itemsize),
        counts=counts,
        subject=subject,
        k=header["k"],
        patch=header["patch"],
        prior=prior,
        path=Path(path).absolute(),
        size=Path(path).stat().st_size,
        fingerprint=hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()[:16],
    )


def pair_dtype(k: int, patch: int = PATCH) -> np.dtype:
    """Data type of one pair: ``low`` (P, P, P / k), ``high`` (P, P, P), float16, over the intensity scale."""
    return np.dtype([("low", "<f2", (patch, patch, patch // k)), ("high", "<f2", (patch, patch, patch))])


class PairSampler:
    """Reads shuffled pairs from explicit libraries: each pair once, then each pair again in another order.

    Parameters
    ----------
    files
        From `read_pairs`.
    k, n_draws, batch_size, seed, patch, mirror, prior
        As for `iqtflow.training.samplers.StoredSampler`.

    Raises
    ------
    InputError
        A file holds too few draws, or is of another factor, patch size or prior.
    """

    def __init__(
        self,
        files: Sequence[PairFile],
        *,
        k: int,
        n_draws: int,
        batch_size: int,
        seed: int,
        patch: int = PATCH,
        mirror: bool = False,
        prior: SNRPrior | None = None,
    ) -> None:
        self.sources = require_sources(files)
        for file in self.sources:
            if len(file.counts) < n_draws:
                raise made_otherwise(file, f"pairs of {len(file.counts)} draw(s)", f"at least {n_draws}")
            if (file.k, file.patch) != (k, patch):
                found = f"k = {file.k}, patches of {file.patch} voxels"
                raise made_otherwise(file, found, f"k = {k}, patches of {patch} voxels")
            require_prior(file, file.prior, prior)
        self.k, self.batch_size, self.seed, self.patch, self.mirror = k, batch_size, seed, patch, mirror
        self.ends = np.cumsum([sum(file.counts[:n_draws]) for file in self.sources])
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, int))

    def batch(self, number: int, *, rank: int = 0, world: int = 1) -> dict[str, torch.Tensor]:
        """Return batch `number`, or the part of it for process `rank` of `world`.

        Returns
        -------
        dict
            ``low`` (b, 1, P, P, P / k) and ``high`` (b, 1, P, P, P), float16, divided by the intensity scale;
            ``scale`` (b) holds ones.
        """
        total, dtype = int(self.ends[-1]), pair_dtype(self.k, self.patch)
        pairs = []
        for i in range(rank, self.batch_size, world):
            place = number * self.batch_size + i
            index = self._shuffled(place // total)[place % total]
            file = int(np.searchsorted(self.ends, index, side="right"))
            row = self.sources[file].rows[index - (self.ends[file - 1] if file else 0)]
            pair = [row.view(dtype)[0][side] for side in ("low", "high")]
            rng = np.random.default_rng([self.seed, place, 1])
            pairs.append(turned(pair, draw_turn(rng) if self.mirror else None))
        return as_batch(pairs, [1.0] * len(pairs))

    def _shuffled(self, epoch: int) -> np.ndarray:
        """Order of all pairs in their `epoch`-th reading."""
        if self._order[0] != epoch:
            rng = np.random.default_rng([self.seed, epoch])
            self._order = (epoch, rng.permutation(int(self.ends[-1])))
        return self._order[1]
