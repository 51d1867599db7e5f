"""Write tables of lesions as Markdown: ``python docs/results/render_lesions.py lesions.json``.

The file is a list with one entry for each scan: what ``benchmarks/lesions.py --json`` writes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(path: Path) -> None:
    """Print both tables."""
    scans = json.loads(path.read_text())
    print(
        "| scan | candidates | visible | erased | in more pieces | contrast before | after | "
        "smallest after / before | new dark spots in white matter | anywhere |\n" + "|---" * 10 + "|"
    )
    for scan in scans:
        found = [scan[key] for key in ("median_contrast_before", "median_contrast_after", "smallest_kept")]
        before, after, kept = ("" if value is None else f"{value:.3f}" for value in found)
        print(
            f"| {scan['scan'].split('_')[0]} | {scan['candidates']} | {scan['visible']} | {scan['erased']} | "
            f"{scan['multiplied']} | {before} | {after} | {kept} | {scan['new_spots_in_white_matter']} | "
            f"{scan['new_spots_anywhere']} |"
        )
    print(
        "\n| scan | volume (ml) | contrast before | after | pieces before | after |\n"
        "|---|---|---|---|---|---|"
    )
    for scan in scans:
        for lesion in scan["lesions"]:
            print(
                f"| {scan['scan'].split('_')[0]} | {lesion['volume_ml']:.3f} | {lesion['before']:.3f} | "
                f"{lesion['after']:.3f} | {lesion['pieces_before']} | {lesion['pieces_after']} |"
            )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
