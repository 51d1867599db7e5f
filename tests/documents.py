"""Reading commands out of the pages, and a place to try them.

A block of commands is run by bash itself, so that quotes, variables and continuation lines mean what they
mean to a reader. Programs on its path note their arguments and do nothing; what was noted is then judged, or
run in earnest.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
from phantoms import Brain, make_brain

ROOT = Path(__file__).parents[1]
#: Folders that readers are told of; each stands for one in the sandbox.
PLACES = re.compile(r"(?<![\w/.~-])/(data|out|site|scratch|opt/spm12|opt/spm)(?=[/\s:\"',]|$)")
#: Harmless programs that run as they are.
PLAIN = (
    "bash",
    "cat",
    "echo",
    "id",
    "ls",
    "mkdir",
    "cut",
    "head",
    "sed",
    "seq",
    "sort",
    "tr",
    "wc",
    "basename",
    "dirname",
)
#: Programs that are noted. A page that names another fails: this file has to learn what to do with it.
NOTED = (
    "apptainer", "docker", "git", "iqtflow", "iqtflow-calibrate", "iqtflow-enhance", "iqtflow-evaluate",
    "iqtflow-segment", "iqtflow-simulate", "iqtflow-train", "make", "module", "pip", "python", "python3",
    "sbatch", "singularity", "srun", "buildah",
)  # fmt: skip
#: Languages of blocks with commands.
SHELLS = ("bash", "console", "sh")
#: Languages that a block may have.
KNOWN = {"bash", "console", "json", "python", "sh", "text", "toml", "csv", "tsv", "yaml"}
_FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>`{3,}|~{3,}|:{3,}) *(?P<language>[^\n`]*)$")


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass
class Command:
    """One command of a console block: what is typed, and what the page shows as its answer."""

    where: str
    text: str
    answer: list[str] = field(default_factory=list)


def list_pages() -> list[str]:
    """All Markdown pages, relative to the repository."""
    pages = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGES.md")]
    pages += sorted(p for p in (ROOT / "docs").rglob("*.md") if "_build" not in p.parts)
    return [page.relative_to(ROOT).as_posix() for page in pages]


def read_blocks(page: str) -> list[Block]:
    """Fenced blocks of a page; directives (``{...}``, ``:::``) are none."""
    blocks, start, lines = [], None, (ROOT / page).read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        match = _FENCE.match(line)
        if start is None and match and not match["ticks"].startswith(":"):
            start = (number, match)
        elif start is not None and line.strip() == start[1]["ticks"]:
            first, opening = start
            body = [text.removeprefix(opening["indent"]) for text in lines[first + 1 : number]]
            language = opening["language"].strip()
            if not language.startswith("{"):
                blocks.append(Block(page, first + 1, language, "\n".join(body)))
            start = None
    assert start is None, f"{page}:{start[0] + 1}: a block without end"
    return blocks


def read_commands(block: Block) -> list[Command]:
    """Commands of a console block (lines after ``$``, with what they continue on), or a script as a whole."""
    if block.language in ("bash", "sh"):
        return [Command(str(block), block.text)]
    commands: list[Command] = []
    continued = False
    for line in block.text.splitlines():
        if continued:
            commands[-1].text += f"\n{line}"
        elif line.startswith("$ "):
            commands.append(Command(str(block), line[2:]))
        else:
            assert commands, f"{block}: a console block begins with a command: '$ ...'"
            commands[-1].answer.append(line)
            continue
        continued = line.endswith("\\")
    return commands


class Sandbox:
    """A folder that stands for a reader's machine: programs, data sets, a home, a checkout's recipes."""

    def __init__(self, root: Path, model: Path) -> None:
        self.root, self.model = root, model
        self.log = root / "noted"
        self.cwd = root / "here"
        self.programs = root / "bin"
        for folder in (self.cwd, self.programs, root / "home", root / "out", root / "scratch"):
            folder.mkdir(parents=True)
        for name in PLAIN:
            (self.programs / name).symlink_to(shutil.which(name))
        for name in NOTED:
            self.note(self.programs / name)
        for name in ("constraints.txt", "Makefile", "Dockerfile", "benchmarks", "docs"):
            (self.cwd / name).symlink_to(ROOT / name)
        for script in (path for path in (ROOT / ".ci").rglob("*") if path.is_file()):
            self.note(self.cwd / script.relative_to(ROOT))

    def note(self, program: Path) -> None:
        """Make a program that notes how it was called."""
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(
            f"#!/bin/bash\nprintf '%s\\0' {program.name} \"$@\" >> {self.log}\nprintf '\\n' >> {self.log}\n"
        )
        program.chmod(program.stat().st_mode | stat.S_IXUSR)

    def place(self, text: str) -> str:
        """Text of a page with its folders put into the sandbox."""
        return PLACES.sub(lambda match: f"{self.root}/{match[1]}", text)

    def record(self, command: Command) -> list[list[str]]:
        """Run a command with bash; return the argument lists of the programs that it starts."""
        self.log.write_bytes(b"")
        done = subprocess.run(
            [shutil.which("bash"), "-euo", "pipefail", "-c", self.place(command.text)],
            cwd=self.cwd,
            env={
                "PATH": str(self.programs),
                "HOME": str(self.root / "home"),
                "SLURM_ARRAY_TASK_ID": "1",
                "USER": "reader",
            },
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, (
            f"{command.where}: {command.text}\n{done.stderr}"
            "(a program that is not known has to be added to documents.py and document_judges.py)"
        )
        calls = [line.split("\0")[:-1] for line in self.log.read_text().split("\n") if line]
        for program, *arguments in calls:
            if program in ("python", "python3") and arguments[:2] == ["-m", "venv"]:
                for name in ("python", "iqtflow"):  # from now on that environment's programs are there
                    self.note(Path(os.path.expandvars(arguments[-1])) / "bin" / name)
        return calls

    def add_data(self) -> None:
        """Small data sets under the names that the pages use: low field, high field with tissue maps, HCP."""
        brain = make_brain()
        for name in ("bids", "lowfield"):
            root = self.root / "data" / name
            for label in ("01", "02", "03"):
                add_subject(root, label, brain, thick=True, seed=int(label))
        for name in ("highfield", "derivatives/smriprep"):
            for label in ("01", "02", "03", "04"):
                add_subject(
                    self.root / "data" / name,
                    label,
                    brain,
                    thick=False,
                    seed=int(label),
                    maps="deriv" in name,
                )
        for label in ("100307", "100408", "101107", "101309"):
            write(self.root / f"data/hcp/{label}/T1w/T1w_acpc_dc_restore_brain.nii.gz", brain.intensity, 2.0)
        write(self.cwd / "scan.nii.gz", thick_slices(brain.intensity, 0), (2.0, 2.0, 8.0))
        write(self.cwd / "T1w.nii.gz", brain.intensity, 2.0)
        (self.cwd / "maps").mkdir()
        people = {"train": ["01", "02"], "validation": ["03"], "evaluation": ["04"]}
        (self.cwd / "split.json").write_text(json.dumps(people))
        for name in ("BIDS", "DATA"):
            (self.cwd / name).symlink_to(self.root / "data/highfield")
        shutil.copyfile(self.model, self.cwd / "MODEL.safetensors")


def add_subject(
    root: Path, label: str, brain: Brain, *, thick: bool, seed: int = 0, maps: bool = False
) -> None:
    """Add one person, skull-stripped, to a BIDS data set."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset_description.json").write_text(json.dumps({"Name": "stand-in", "BIDSVersion": "1.10.0"}))
    stem = root / f"sub-{label}/anat/sub-{label}"
    if maps:
        tissues = {"WM": brain.wm, "GM": brain.gm, "CSF": np.clip(brain.mask - brain.wm - brain.gm, 0, 1)}
        for tissue, values in tissues.items():
            write(Path(f"{stem}_label-{tissue}_probseg.nii.gz"), values.astype(np.float32), 2.0)
        return
    rng = np.random.default_rng(seed)
    noisy = brain.intensity + brain.mask * rng.normal(0, 12, brain.intensity.shape).astype(np.float32)
    voxel = (2.0, 2.0, 8.0) if thick else 2.0
    write(Path(f"{stem}_T1w.nii.gz"), thick_slices(noisy, seed) if thick else noisy, voxel)
    Path(f"{stem}_T1w.json").write_text(json.dumps({"SkullStripped": True}))


def thick_slices(volume: np.ndarray, seed: int) -> np.ndarray:
    """Means of four slices, and the noise of a scanner all over."""
    thick = volume.reshape(*volume.shape[:2], -1, 4).mean(axis=3)
    return np.abs(thick + np.random.default_rng(seed).normal(0, 12, thick.shape)).astype(np.float32)


def write(path: Path, data: np.ndarray, voxel_mm: float | tuple[float, float, float]) -> None:
    """Write a NIfTI image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([*np.broadcast_to(voxel_mm, 3), 1.0])
    affine[:3, 3] = -np.asarray(data.shape) * np.diag(affine)[:3] / 2
    image = nib.Nifti1Image(data, affine)
    image.header.set_xyzt_units("mm")
    image.to_filename(path)
