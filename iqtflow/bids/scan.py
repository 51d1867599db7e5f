"""One image of a data set, and the list of images in it."""

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
        Labels without ``sub-`` and ``ses-``; None without a session.
    entities
        Short BIDS names and labels, in the order of the file name, with ``sub`` and ``ses``.
    suffix
        For example ``"T1w"``.
    sidecar
        Metadata from all JSON files of the image (BIDS inheritance principle). The nearest file wins.
    sidecar_path
        The JSON file beside the image, if there is one.
    root
        Root of the data set.
    warnings
        Errors in the metadata, as sentences. Unreadable JSON files and invalid values are ignored.
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
        """BIDS name without extension, also for images of a data set that is not BIDS."""
        return "_".join([*(f"{key}-{value}" for key, value in self.entities.items()), self.suffix])

    @property
    def uri(self) -> str:
        """BIDS URI for ``Sources``; ``raw`` is declared by :func:`write_dataset_description`."""
        return f"bids:raw:{self.path.relative_to(self.root).as_posix()}"


@dataclass(frozen=True)
class LeftOut:
    """A file that looks like a scan, but is not processed.

    Attributes
    ----------
    path
        The file (or a folder that cannot be listed), absolute.
    subject
        Label of the subject of its folder.
    reason
        Why, and what to do, as sentences.
    """

    path: Path
    subject: str
    reason: str

    def __str__(self) -> str:
        return f"{printable(self.path)}: left out: {self.reason}"


class Listing(NamedTuple):
    """Images of a data set: scans to process, and files that are left out."""

    scans: list[Scan]
    left_out: list[LeftOut]
