"""One image of a data set, and what a look through the data set has found."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from iqtflow.utils.errors import printable


@dataclass(frozen=True)
class Scan:
    """One image of a BIDS data set.

    Attributes
    ----------
    path
        The image, absolute.
    subject, session
        Labels without ``sub-`` and ``ses-``; no session is None.
    entities
        Short BIDS names and labels as in the file name, in its order, ``sub`` and ``ses`` included.
    suffix
        ``"T1w"``, for one.
    sidecar
        Metadata from all JSON files that apply (BIDS inheritance principle), the nearest winning.
    sidecar_path
        The JSON file beside the image, if there is one.
    root
        Root of the data set.
    warnings
        What is wrong with the metadata, as sentences: a JSON file that cannot be read is left out, and so is
        a value that cannot be meant; neither is fatal.
    """

    path: Path
    subject: str
    session: str | None
    entities: Mapping[str, str]
    suffix: str
    sidecar: Mapping[str, Any]
    sidecar_path: Path | None
    root: Path
    warnings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """BIDS name without extension; the file's own, but for an image whose data set is not in BIDS."""
        return "_".join([*(f"{key}-{value}" for key, value in self.entities.items()), self.suffix])

    @property
    def uri(self) -> str:
        """BIDS URI for ``Sources``; ``raw`` is declared by :func:`write_dataset_description`."""
        return f"bids:raw:{self.path.relative_to(self.root).as_posix()}"


@dataclass(frozen=True)
class LeftOut:
    """A file that looks like a scan, and is not processed.

    Attributes
    ----------
    path
        The file (or a folder that cannot be listed), absolute.
    subject
        Label of the subject whose folder it lies in.
    reason
        Why, and what to do, as sentences.
    """

    path: Path
    subject: str
    reason: str

    def __str__(self) -> str:
        return f"{printable(self.path)}: left out: {self.reason}"


class Listing(NamedTuple):
    """What was found in a data set: scans to process, and files that look like scans and cannot be."""

    scans: list[Scan]
    left_out: list[LeftOut]
