"""Downloads of the Human Connectome Project (HCP): their images, and BIDS labels for them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from iqtflow.bids.scan import Scan

#: In Lifespan studies the folder name has visit and modality: ``HCA6002236_V1_MR``.
_VISIT = re.compile(r"(?P<subject>[A-Za-z0-9]+)_(?P<session>V\d+)(_(MR|[A-Z]))?")


def is_hcp(root: Path) -> bool:
    """Return whether a folder holds HCP downloads: subjects with a structural image, but no BIDS data set."""
    if (root / "dataset_description.json").exists():
        return False
    return any(True for _ in _images(root, "T1w"))


def list_hcp_scans(root: Path, suffix: str = "T1w") -> list[Scan]:
    """List the structural image of each subject, sorted by path.

    If there is an image with and one without the skull, the one without is taken, because its mask is that
    of the HCP pipelines. SPM still segments the whole head, which is beside it. Folders without a letter or
    digit in their name are ignored.

    Parameters
    ----------
    root
        Folder that holds a folder for each subject.
    suffix
        ``"T1w"`` or ``"T2w"``.
    """
    scans = []
    for folder, image in _images(root, suffix):
        visit = _VISIT.fullmatch(folder.name)
        subject = visit["subject"] if visit else re.sub(r"[^A-Za-z0-9]", "", folder.name)
        session = visit["session"] if visit else None
        stripped = image.name.split(".")[0].endswith("_brain")
        scans.append(
            Scan(
                path=image,
                subject=subject,
                session=session,
                entities={"sub": subject, **({"ses": session} if session else {})},
                suffix=suffix,
                sidecar={"SkullStripped": stripped},
                sidecar_path=None,
                root=root,
            )
        )
    return scans


def _images(root: Path, suffix: str) -> Iterator[tuple[Path, Path]]:
    """Yield each subject's folder and the image to take, in the order of the folders' names."""
    for folder in sorted(root.iterdir()):
        nameless = not re.search(r"[A-Za-z0-9]", folder.name)
        if nameless or folder.name.startswith((".", "sub-")) or not folder.is_dir():
            continue
        bases = [f"{suffix}_acpc_dc_restore", f"{folder.name}_acpc_dc_restore"]
        if suffix == "T2w":
            bases = bases[:1]
        names = [f"{base}_brain" for base in bases] + ([f"{folder.name}_brain"] if suffix == "T1w" else [])
        paths = [
            place / f"{name}{extension}"
            for name in names + bases
            for place in (folder / "T1w", folder)
            for extension in (".nii.gz", ".nii")
        ]
        # Also a link whose content has not been fetched is the image of the subject.
        image = next((path for path in paths if os.path.lexists(path)), None)
        if image is not None:
            yield folder, image
