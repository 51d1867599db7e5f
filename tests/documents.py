"""Commands of the documents: reading them, a place to try them, and a check of each without running it.

bash itself runs each block of commands, so that quotes, variables and continuation lines mean what they mean
to a reader. The programs on its path only note their arguments. What they noted is then checked.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
import re
import shutil
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from clinics import execute
from conftest import write_scan
from markdown_it import MarkdownIt
from phantoms import Brain, make_brain

from iqtflow.cli import main as cli
from iqtflow.cli.parser import parse
from iqtflow.config import SECTIONS, read_sections
from iqtflow.utils.errors import UsageError

ROOT = Path(__file__).parents[1]
#: Folders of the documents; each is a folder of the sandbox instead.
PLACES = re.compile(r"(?<![\w/.~-])/(data|out|site|scratch|opt/spm12|opt/spm)(?=[/\s:\"',]|$)")
#: Harmless programs that run as they are.
PLAIN = ("basename", "cat", "cp", "dirname", "echo", "head", "id", "ls", "mkdir")
#: Languages of blocks with commands, and of all blocks.
SHELLS = ("bash", "console", "sh")
KNOWN = {*SHELLS, "json", "python", "text", "toml", "csv", "tsv", "yaml"}
#: What container programs take: ``-x:`` is an option with a value, ``x*`` all that follows.
CONTAINERS = {
    "docker run": "--rm --read-only -v: -u: --gpus: --network: --tmpfs: --shm-size: --memory: image inside*",
    "docker build": "-t: --build-arg: folder",
    "docker save": "-o: image",
    "apptainer build": "image source",
    "apptainer run": "--nv --cleanenv --bind: image inside*",
    "buildah build": "--isolation: --network: -t: folder",
}
SPLIT = {"train": ["01", "02"], "validation": ["03"], "evaluation": ["04"]}
#: Content of the files that options name, where a reader would bring a file of his own.
FILES = {
    "--bids-filter-file": "{}",
    "--config-file": "[run]\nseed = 0\n",
    "--snr-prior": json.dumps({"mean": [64.5, 54.1], "covariance": [[78, 71], [71, 73]]}),
    "--split": json.dumps(SPLIT),
    "--use-plugin": "plugin: SLURM\n",
}


@dataclass(frozen=True)
class Block:
    """One block of code on a page."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass
class Command:
    """One command of a console block: what is typed, and the answer that the page shows."""

    where: str
    text: str
    answer: list[str] = field(default_factory=list)


def list_pages() -> list[str]:
    """All Markdown pages, relative to the repository."""
    pages = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGES.md")]
    pages += sorted(p for p in (ROOT / "docs").rglob("*.md") if "_build" not in p.parts)
    return [page.relative_to(ROOT).as_posix() for page in pages]


def read_blocks(page: str) -> list[Block]:
    """Blocks of code on a page, without directives (``{...}``)."""
    text = (ROOT / page).read_text(encoding="utf-8")
    tokens = [t for t in MarkdownIt().parse(text) if t.type in ("fence", "code_block")]
    for token in tokens:
        last = text.splitlines()[token.map[1] - 1].strip()
        assert last.startswith(token.markup), f"{page}:{token.map[0] + 1}: a block without end"
    found = [Block(page, t.map[0] + 1, t.info.strip(), t.content) for t in tokens]
    return [block for block in found if not block.language.startswith("{")]


def read_commands(block: Block) -> list[Command]:
    """Commands of a console block (lines after ``$``, with their continuations), or a script as a whole."""
    if block.language != "console":
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
    """A folder in place of a reader's machine: programs, data sets, a home, the files of the repository."""

    def __init__(self, root: Path, model: Path, data: Path) -> None:
        self.root, self.model = root, model
        self.log = root / "noted"
        self.cwd = root / "here"
        self.programs = root / "bin"
        for folder in (self.cwd, self.programs, root / "home", root / "out", root / "scratch"):
            folder.mkdir(parents=True)
        for name in PLAIN:
            (self.programs / name).symlink_to(shutil.which(name))
        commands = re.findall(r"^    (iqtflow[\w-]*) = ", (ROOT / "setup.cfg").read_text(), re.MULTILINE)
        for name in (*commands, *CHECKS):
            self.note(self.programs / name)
        for name in ("constraints.txt", "Makefile", "Dockerfile", "docs"):
            (self.cwd / name).symlink_to(ROOT / name)
        (self.cwd / "iqtflow-main").mkdir()  # the copy of the repository that a page enters
        for folder in (".ci", "benchmarks"):
            for script in (path for path in (ROOT / folder).rglob("*") if path.is_file()):
                self.note(self.cwd / script.relative_to(ROOT))
        shutil.copytree(data, root / "data")
        for name in ("scan.nii.gz", "T1w.nii.gz"):
            shutil.copyfile(data / name, self.cwd / name)
        shutil.copyfile(model, self.cwd / "MODEL.safetensors")
        (self.cwd / "maps").mkdir()
        for name in ("nifti", "dicom"):
            (self.cwd / name).mkdir()
        shutil.copyfile(data / "scan.nii.gz", self.cwd / "nifti/2_t1_se_tra.nii.gz")
        (self.cwd / "nifti/2_t1_se_tra.json").write_text("{}")
        (self.cwd / "scans.csv").write_text("scan\nscan.nii.gz\n")
        (self.cwd / "split.json").write_text(FILES["--split"])
        for name in ("BIDS", "ds002748"):
            (self.cwd / name).symlink_to(root / "data/highfield")

    def note(self, program: Path) -> None:
        """Make a program that only notes its arguments."""
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(
            f"#!/bin/bash\nprintf '%s\\0' {program.name} \"$@\" >> {self.log}\nprintf '\\n' >> {self.log}\n"
        )
        program.chmod(0o755)

    def place(self, text: str) -> str:
        """Text of a page with its folders replaced by those of the sandbox."""
        return PLACES.sub(lambda match: f"{self.root}/{match[1]}", text)

    def record(self, command: Command) -> list[list[str]]:
        """Run a command with bash; return the argument lists of the programs that it starts."""
        self.log.write_bytes(b"")
        done = execute(
            *(shutil.which("bash"), "-euo", "pipefail", "-c", self.place(command.text)),
            cwd=self.cwd,
            env={"PATH": str(self.programs), "HOME": str(self.root / "home"), "SLURM_ARRAY_TASK_ID": "1"},
        )
        assert done.returncode == 0, (
            f"{command.where}: {command.text}\n{done.stderr}(add a new program to PLAIN or CHECKS)"
        )
        calls = [line.split("\0")[:-1] for line in self.log.read_text().split("\n") if line]
        for call in calls:
            if call[:3] in (["python", "-m", "venv"], ["python3", "-m", "venv"]):
                for name in ("python", "iqtflow"):  # the programs of the new environment
                    self.note(Path(call[-1]) / "bin" / name)
                Path(call[-1], "bin/activate").touch()
        return calls


def make_data(root: Path) -> Path:
    """Make small data sets with the names of the pages: low field, high field, tissue maps, HCP."""
    brain = make_brain()
    for label in ("01", "02", "03", "04"):
        for name in ("bids", "lowfield") if label < "03" else ():
            add_subject(root / name, label, brain, thick=True)
        add_subject(root / "highfield", label, brain)
        add_subject(root / "derivatives/smriprep", label, brain, maps=True)
    for label in ("100307", "100408", "101107", "101309"):
        write(root / f"hcp/{label}/T1w/T1w_acpc_dc_restore_brain.nii.gz", brain.intensity)
    write(root / "scan.nii.gz", thick_slices(brain.intensity, 0), slice_mm=8.0)
    write(root / "T1w.nii.gz", brain.intensity)
    return root


def add_subject(root: Path, label: str, brain: Brain, *, thick: bool = False, maps: bool = False) -> None:
    """Add one skull-stripped subject to a BIDS data set: a scan, or its tissue maps."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset_description.json").write_text(json.dumps({"Name": "phantoms", "BIDSVersion": "1.10.0"}))
    stem = root / f"sub-{label}/anat/sub-{label}"
    if maps:
        tissues = {"WM": brain.wm, "GM": brain.gm, "CSF": np.clip(brain.mask - brain.wm - brain.gm, 0, 1)}
        for tissue, values in tissues.items():
            write(Path(f"{stem}_label-{tissue}_probseg.nii.gz"), values.astype(np.float32))
        return
    seed = int(label) if label.isdigit() else 0
    noise = np.random.default_rng(seed).normal(0, 12, brain.intensity.shape)
    noisy = brain.intensity + brain.mask * noise.astype(np.float32)
    if thick:
        write(Path(f"{stem}_T1w.nii.gz"), thick_slices(noisy, seed), slice_mm=8.0)
    else:
        write(Path(f"{stem}_T1w.nii.gz"), noisy)
    Path(f"{stem}_T1w.json").write_text(json.dumps({"SkullStripped": True}))


def thick_slices(volume: np.ndarray, seed: int) -> np.ndarray:
    """Means of four slices, with noise also in the air."""
    thick = volume.reshape(*volume.shape[:2], -1, 4).mean(axis=3)
    return np.abs(thick + np.random.default_rng(seed).normal(0, 12, thick.shape)).astype(np.float32)


def write(path: Path, data: np.ndarray, *, slice_mm: float = 2.0) -> None:
    """Write an image with the origin in its middle."""
    affine = np.diag([2.0, 2.0, slice_mm, 1.0])
    affine[:3, 3] = -np.asarray(data.shape) * np.diag(affine)[:3] / 2
    write_scan(path, data, affine)


# --- checks ---


def check(call: list[str], command: Command, sandbox: Sandbox) -> None:
    """Check one call of a program; a program without a check is an error."""
    program, *arguments = call
    if program == "iqtflow":
        check_iqtflow(arguments, command, sandbox)
    elif program.startswith("iqtflow-"):
        module = f"iqtflow.cli.commands.{program.removeprefix('iqtflow-')}"
        importlib.import_module(module).build_parser().parse_args(arguments)
    elif not any((ROOT / ".ci").rglob(program)):  # scripts of the repository take any arguments
        CHECKS[program](program, arguments, command, sandbox)


def check_iqtflow(arguments: list[str], command: Command, sandbox: Sandbox) -> None:
    """Check all that a run checks before it opens an image."""
    arguments = [argument for argument in arguments if argument != "..."]
    if {"--help", "--version", "--list-models"} & set(arguments):
        with pytest.raises(SystemExit) as ended:
            parse(arguments)
        assert ended.value.code == 0
        return
    options = parse(arguments)
    if options.doctor:
        return
    provide(arguments, options, sandbox)
    if "cuda" in arguments:  # this machine may have no GPU
        arguments[arguments.index("cuda")] = "cpu"
    try:
        cli.settle(parse(arguments))
    except UsageError as fault:  # allowed where the page shows this message
        if plain(str(fault)) not in plain(sandbox.place("".join(command.answer))):
            raise


def provide(arguments: list[str], options: argparse.Namespace, sandbox: Sandbox) -> None:
    """Make the subjects and files that a command names, if the sandbox does not have them."""
    root = Path(options.paths__bids_dir)
    if (root / "dataset_description.json").exists():
        for label in options.run__participant_labels:
            if not (root / f"sub-{label}").exists():
                add_subject(root, label, make_brain((16, 16, 16)))
    for flag, value in pairwise(arguments):
        path, content = Path(value), FILES.get(flag, "").encode()
        if path.suffix == ".safetensors":
            content = sandbox.model.read_bytes()
        if content and path.suffix in (".json", ".safetensors", ".toml", ".yml") and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def check_container(program: str, arguments: list[str], command: Command, sandbox: Sandbox) -> None:
    parser = argparse.ArgumentParser(prog=f"{program} {arguments[0]}", allow_abbrev=False)
    for word in CONTAINERS[parser.prog].split():
        if word.endswith(":"):
            parser.add_argument(word[:-1], action="append", default=[])
        elif word.startswith("-"):
            parser.add_argument(word, action="store_true")
        else:
            parser.add_argument(word.rstrip("*"), nargs=argparse.REMAINDER if word.endswith("*") else None)
    options = parser.parse_args(arguments[1:])
    if "folder" in options:
        assert (options.t, options.folder) == (["iqtflow"], "."), command.where
        for value in getattr(options, "build_arg", ()):
            assert f"ARG {value.partition('=')[0]}" in (ROOT / "Dockerfile").read_text(), command.where
        return
    image = r"iqtflow(:\w+)?" if program == "docker" else r".+\.sif"
    assert re.fullmatch(image, options.image), command.where
    if "source" in options:
        assert re.match(r"docker-(daemon|archive)://iqtflow", options.source), command.where
    if "inside" not in options:
        return
    mounts = [volume.split(":")[:2] for volume in getattr(options, "v", ())]

    def outside(argument: str) -> str:
        if program != "docker" or not argument.startswith("/"):
            return argument
        at = [(host, place) for host, place in mounts if f"{argument}/".startswith(f"{place}/")]
        assert at, f"{command.where}: {argument} is not mounted"
        return at[0][0] + argument.removeprefix(at[0][1])

    check_iqtflow([outside(argument) for argument in options.inside], command, sandbox)


def check_curl(program: str, arguments: list[str], command: Command, sandbox: Sandbox) -> None:
    parser = argparse.ArgumentParser(prog=program, allow_abbrev=False)
    for option in ("--fail", "--create-dirs"):
        parser.add_argument(option, action="store_true", required=option == "--fail")
    parser.add_argument("-o", required=True)
    parser.add_argument("url")
    options = parser.parse_args(arguments)
    # A letter may be put before the label of a subject.
    name = re.sub(r"sub-[A-Z](?=\d)", "sub-", Path(options.o).name)
    assert options.url.startswith("https://") and options.url.endswith(f"/{name}"), command.where


def check_dcm2niix(program: str, arguments: list[str], command: Command, sandbox: Sandbox) -> None:
    parser = argparse.ArgumentParser(prog=program, allow_abbrev=False)
    for option, choices in (("-b", ["y"]), ("-z", ["y"]), ("-f", None), ("-o", None)):
        parser.add_argument(option, choices=choices)
    parser.add_argument("folder")
    options = parser.parse_args(arguments)
    assert Path(options.folder).is_dir() and Path(options.o).is_dir(), command.where


def check_make(program: str, arguments: list[str], command: Command, sandbox: Sandbox) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for argument in arguments:
        name, given, _ = argument.partition("=")
        pattern = rf"^{name} *\?=" if given else rf"^{re.escape(name)}:"
        assert re.search(pattern, makefile, re.MULTILINE), f"{command.where}: make {argument}"


def check_pip(program: str, arguments: list[str], command: Command, sandbox: Sandbox) -> None:
    pins = (ROOT / "constraints.txt").read_text()
    needs = re.findall(r"^    ([\w-]+)", (ROOT / "setup.cfg").read_text(), re.MULTILINE)
    assert arguments[0] == "install", f"{command.where}: pip {arguments}"
    for argument in (a for a in arguments[1:] if not a.startswith("-")):
        if "==" in argument:
            assert re.search(rf"^{re.escape(argument)}( *;|$)", pins, re.MULTILINE), argument
        else:
            known = {".", "constraints.txt", "iqtflow", *needs}
            assert re.sub(r"\[\w+\]$", "", argument) in known, f"{command.where}: {argument}"


def check_python(program: str, arguments: list[str], command: Command, sandbox: Sandbox) -> None:
    first, *rest = arguments
    if first != "-m":
        script = ROOT / first
        assert script.is_file(), f"{command.where}: no {first}"
        text = script.read_text()
        for name in re.findall(r"^from (\w+) import", text, re.MULTILINE):  # some share options
            beside = script.with_name(f"{name}.py")
            text += beside.read_text() if beside.is_file() else ""
        unknown = [a for a in rest if a.startswith("--") and f'"{a}"' not in text]
        assert not unknown, f"{command.where}: {first} has no {unknown}"
    elif rest[0] == "pip":
        check_pip("pip", rest[1:], command, sandbox)
    elif rest[0] == "benchmarks.paper":
        own = rest[1 : rest.index("--")] if "--" in rest else rest[1:]
        importlib.import_module("benchmarks.paper.__main__").build_parser().parse_args(own)
    else:
        assert importlib.util.find_spec(rest[0]), f"{command.where}: no module {rest[0]}"


def check_script(program: str, arguments: list[str], command: Command, sandbox: Sandbox) -> None:
    """Check that a shell script of ``benchmarks`` knows its first word, if words decide what it does."""
    text = (ROOT / "benchmarks" / program).read_text()
    if "case $command in" in text:
        assert f"    {arguments[0]})" in text, f"{command.where}: {program} knows no {arguments[0]!r}"


SCRIPTS = [path.name for path in (ROOT / "benchmarks").glob("*.sh")]
#: The check of each program that a page may show. A page with another program fails.
CHECKS = {
    **dict.fromkeys(SCRIPTS, check_script),
    **dict.fromkeys(("apptainer", "buildah", "docker"), check_container),
    **dict.fromkeys(("python", "python3"), check_python),
    "curl": check_curl,
    "dcm2niix": check_dcm2niix,
    "make": check_make,
    "pip": check_pip,
}


def check_example(block: Block) -> None:
    """Check an example in Python: its imports work, and the rest is valid Python."""
    tree = ast.parse(block.text)
    imports = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    exec(compile(ast.Module(imports, []), str(block), "exec"), {})


def check_toml(block: Block) -> None:
    """Check a settings file of iqtflow, in the current folder."""
    tables = {line.strip("[] ") for line in block.text.splitlines() if line.startswith("[")}
    if tables <= set(SECTIONS):
        path = Path("settings.toml")
        path.write_text(block.text)
        read_sections(path)


def plain(text: str) -> str:
    """Text without white space: a terminal and a page break lines differently."""
    return re.sub(r"\s+", "", text)
