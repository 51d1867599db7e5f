"""How well does the audit find structures that only the scan, or only the enhanced volume, has?

    for scan in sub-*/anat/*_desc-sim01_T1w.nii.gz; do
        name=$(basename $scan .nii.gz)
        iqtflow-enhance $scan OUT/${name}_iqt.nii.gz --contrast T1w --sidecar ${scan%.nii.gz}.json \
            --std OUT/${name}_std.nii.gz --mask-out OUT/${name}_mask.nii.gz --json OUT/$name.json
    done
    python benchmarks/audit_detector.py sub-*/anat/*_desc-sim01_T1w.nii.gz --enhanced OUT --json audit.json

In each round, 20 structures are changed in each scan, at random places at least 4 mm inside the brain and 18
mm from each other. Their volumes are .03 to 1 ml, drawn evenly on a logarithmic scale.

* *put into the estimate*: a soft sphere in the enhanced volume, darker or brighter by .1, .2 or .4 of white
  matter;
* *put into the scan*: the same in the scan, through the slice profile and the contrast of the scan;
* *erased*: a real structure of the enhanced volume that differs from its surroundings by at least .1 of white
  matter is replaced by the mean of its surroundings.

A structure is found if the audit lists a place within its radius plus 3 mm. A false alarm is a place in a
scan without changes. The threshold is the score at which there is one false alarm for each scan, on average.
The network makes errors of its own, and a part of the "false" alarms are these errors.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

import numpy as np
from scipy import ndimage

from iqtflow.image.geometry import bounding_box, slice_axis, slices_last, thin_box
from iqtflow.image.nifti_file import open_nifti
from iqtflow.inference.audit import MISSING, UNSUPPORTED, Audit, audit_estimate
from iqtflow.inference.forward import average_slices, change_contrast

VOLUMES_ML, CONTRASTS = (0.03, 0.1, 0.3, 1.0), (0.1, 0.2, 0.4)
KINDS = {"put into the estimate": UNSUPPORTED, "put into the scan": MISSING, "erased": MISSING}
DEPTH_MM, APART_MM, REACH_MM = 4.0, 18.0, 3.0
LOWEST = 3.0  #: scores below are not looked at


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scans", type=Path, nargs="*")
    parser.add_argument("--enhanced", type=Path, help="folder of the enhanced volumes")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--structures", type=int, default=20)
    parser.add_argument("--add", type=Path, nargs="*", default=[], help="JSON files of other scans to add")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    alarms: dict[str, list[float]] = {}
    found: list[dict] = []
    for path in options.add:
        other = json.loads(path.read_text())
        alarms |= other["alarms"]
        found += other["structures"]
    for scan in options.scans:
        subject = Subject(scan, options.enhanced)
        alarms[scan.name] = [place.score for place in subject.audit(subject.scan, subject.estimate).places]
        for number in range(options.rounds):
            for kind in KINDS:
                found += subject.round(kind, options.structures, np.random.default_rng([number, len(kind)]))
        print(f"{scan.name}: highest scores without changes {np.round(alarms[scan.name][:4], 1)}", flush=True)
    print(render(alarms, found))
    if options.json:
        options.json.write_text(json.dumps({"alarms": alarms, "structures": found}) + "\n")


def render(alarms: dict[str, list[float]], found: list[dict]) -> str:
    """Return the tables as Markdown."""
    threshold = threshold_for(alarms, 1)
    lines = [f"{len(alarms)} scans; one false alarm for each scan at a score of {threshold:.2f}.", ""]
    sizes = list(itertools.pairwise(VOLUMES_ML))
    lines.append("| | contrast |" + "".join(f" {a:g} to {b:g} ml |" for a, b in sizes) + " all |")
    lines.append("|---|---|" + "---|" * (len(sizes) + 1))
    for kind in KINDS:
        for low, high in itertools.pairwise([*CONTRASTS, np.inf]):
            row = [one for one in found if one["kind"] == kind and low <= one["contrast"] < high]
            cells = [[one for one in row if a <= one["volume"] < b] for a, b in sizes]
            told = low if kind != "erased" else f"from {low}"
            lines.append(f"| {kind} | {told} |" + "".join(f" {tell(c, threshold)} |" for c in [*cells, row]))
    lines += ["", "| | 0.25 a scan | 1 a scan | 3 a scan | right kind |", "|---|---|---|---|---|"]
    for kind in KINDS:
        of_kind = [one for one in found if one["kind"] == kind]
        shares = [tell(of_kind, threshold_for(alarms, each)) for each in (0.25, 1, 3)]
        hits = [one["right_kind"] for one in of_kind if one["score"] > threshold]
        right = f"{np.mean(hits):.0%}" if hits else ""
        lines.append(f"| {kind} | " + " | ".join(shares) + f" | {right} |")
    return "\n".join(lines)


class Subject:
    """A scan and its enhanced volume, cut to the brain."""

    def __init__(self, path: Path, enhanced: Path) -> None:
        name = path.name.removesuffix(".nii.gz")
        axis = slice_axis(open_nifti(path).affine)

        def read(file: Path) -> tuple[np.ndarray, np.ndarray]:
            image = open_nifti(file)
            return slices_last(np.asarray(image.dataobj, dtype=np.float32), image.affine, axis)

        scan, affine = read(path)
        estimate, self.mask = (
            read(enhanced / f"{name}_iqt.nii.gz")[0],
            read(enhanced / f"{name}_mask.nii.gz")[0] > 0,
        )
        self.thickness = json.loads((enhanced / f"{name}.json").read_text())["Geometry"]["ThicknessMm"]
        self.k = estimate.shape[2] // scan.shape[2]
        self.voxel = np.linalg.norm(affine[:3, :3], axis=0)
        self.fine = self.voxel / (1, 1, self.k)
        box = bounding_box(self.mask, 2)
        thin = thin_box(box, self.k)
        std = enhanced / f"{name}_std.nii.gz"
        self.error = read(std)[0][thin] if std.exists() else None
        self.scan, self.estimate, self.mask = scan[box], estimate[thin], self.mask[box]
        self.depth = ndimage.distance_transform_edt(np.pad(self.mask, 1), sampling=self.voxel)[
            1:-1, 1:-1, 1:-1
        ]
        self.white = float(np.percentile(self.estimate[np.repeat(self.mask, self.k, axis=2)], 80))
        self.model = self.audit(self.scan, self.estimate).model

    def audit(self, scan: np.ndarray, estimate: np.ndarray) -> Audit:
        """Audit with a low threshold."""
        return audit_estimate(
            scan,
            estimate,
            self.mask,
            voxel_mm=self.voxel,
            thickness_mm=self.thickness,
            predicted_error=self.error,
            threshold=LOWEST,
            most=400,
        )

    def round(self, kind: str, n: int, rng: np.random.Generator) -> list[dict]:
        """Change structures of one kind, and return the score of each."""
        scan, estimate, made = self.scan, self.estimate.copy(), []
        for place in self._draw_places(rng):
            volume = float(np.exp(rng.uniform(*np.log((VOLUMES_ML[0], VOLUMES_ML[-1])))))
            change = (self._erase if kind == "erased" else self._put)(
                estimate, place, volume, CONTRASTS[len(made) % len(CONTRASTS)], rng
            )
            if change is not None:
                made.append({"kind": kind, "volume": volume, "contrast": change, "place": place})
            if len(made) == n:
                break
        if kind == "put into the scan":
            knots, levels = self.model.knots, self.model.levels
            thin = change_contrast(estimate, knots, levels) - change_contrast(self.estimate, knots, levels)
            profile = _profile(self.model.matrix, estimate.shape[2], self)
            scan, estimate = scan + average_slices(thin, profile), self.estimate
        places = self.audit(scan, estimate).places
        for one in made:
            near = [
                p for p in places if self._apart(p.position, one["place"]) < radius(one["volume"]) + REACH_MM
            ]
            best = max(near, key=lambda p: p.score, default=None)
            one["score"] = 0.0 if best is None else round(best.score, 2)
            one["right_kind"] = best is not None and best.kind == KINDS[kind]
            one["volume_told"] = None if best is None else best.volume_ml
            del one["place"]
        return made

    def _draw_places(self, rng: np.random.Generator):
        """Yield positions (voxels of the scan, fractions along the slices) far from each other."""
        yielded: list[np.ndarray] = []
        for voxel in rng.permutation(np.argwhere(self.depth > DEPTH_MM))[:4000]:
            place = voxel + np.array([0, 0, rng.uniform(-0.5, 0.5)])
            if all(self._apart(place, other) > APART_MM for other in yielded):
                yielded.append(place)
                yield place

    def _apart(self, one, other) -> float:
        return float(np.linalg.norm((np.asarray(one) - other) * self.voxel))

    def _sphere(self, place: np.ndarray, volume_ml: float, wider_mm: float = 0.0):
        """Return the box around a sphere in the enhanced volume, and the share of each voxel in it."""
        centre = np.array([*place[:2], self.k * (place[2] + 0.5) - 0.5])
        size = radius(volume_ml) + wider_mm
        box = tuple(
            slice(max(int(c - (size + 5) / edge), 0), min(int(c + (size + 5) / edge) + 2, n))
            for c, edge, n in zip(centre, self.fine, self.estimate.shape, strict=True)
        )
        offsets = np.ogrid[box]
        away = np.sqrt(sum(((o - c) * e) ** 2 for o, c, e in zip(offsets, centre, self.fine, strict=True)))
        return box, np.clip(size - away + 0.5, 0, 1).astype(np.float32)

    def _put(self, estimate, place, volume, contrast, rng) -> float:
        box, inside = self._sphere(place, volume)
        sign = rng.choice([-1, 1])
        if sign < 0 and (estimate[box] * inside).sum() / inside.sum() < 1.2 * contrast * self.white:
            sign = 1  # too dark to become darker
        estimate[box] = np.maximum(estimate[box] + np.float32(sign * contrast * self.white) * inside, 0)
        return contrast

    def _erase(self, estimate, place, volume, _, rng) -> float | None:
        box, inside = self._sphere(place, volume)
        wide, outer = self._sphere(place, volume, 3.0)
        start = tuple(slice(b.start - w.start, b.stop - w.start) for b, w in zip(box, wide, strict=True))
        shell = (outer[start] > 0.5) & (inside < 0.1)
        if not shell.any() or not inside.any():
            return None
        around = float(estimate[box][shell].mean())
        contrast = abs(float((estimate[box] * inside).sum() / inside.sum()) - around) / self.white
        if contrast < CONTRASTS[0]:
            return None
        estimate[box] += inside * (np.float32(around) - estimate[box])
        return contrast


def _profile(matrix: np.ndarray, n_thin: int, subject: Subject) -> np.ndarray:
    """Slice profile for the whole cut volume; the model's own box may be smaller."""
    if matrix.shape[1] == n_thin:
        return matrix
    from iqtflow.simulation.slice_profile import profile_matrix

    return profile_matrix(n_thin, subject.k, subject.k * subject.thickness / subject.voxel[2])


def radius(volume_ml: float) -> float:
    """Radius of a sphere, in mm."""
    return (3000 * volume_ml / (4 * np.pi)) ** (1 / 3)


def threshold_for(alarms: dict[str, list[float]], each: float) -> float:
    scores = sorted((score for one in alarms.values() for score in one), reverse=True)
    allowed = round(each * len(alarms))
    return scores[allowed] + 1e-6 if allowed < len(scores) else LOWEST


def tell(found: list[dict], threshold: float) -> str:
    """Return the share that was found, and of how many."""
    if not found:
        return ""
    return f"{np.mean([one['score'] > threshold for one in found]):.0%} of {len(found)}"


if __name__ == "__main__":
    main()
