"""Data sets as people have them: whatever lies there, no traceback, no scan lost in silence, no two scans in
one file, nothing outside of the output.

Each example is a folder made of odd names, sidecars, links, pipes and filters. It goes through the command
line (dry run, with the look over the data set) and through the building of the graph, whose sinks say what
would be written. ``IQTFLOW_FUZZ=20000 pytest -n 0 tests/bids/test_fuzz_bids.py`` runs as many examples.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest
from conftest import make_affine, make_head, write_scan
from hypothesis import HealthCheck, event, given, note, settings
from hypothesis import strategies as st

from iqtflow.cli import main as cli
from iqtflow.cli.parser import parse
from iqtflow.workflows.app.collect import list_inputs

EXAMPLES = int(os.environ.get("IQTFLOW_FUZZ", "150"))
#: Labels that are equal if only letters count, and invalid labels.
GOOD = st.sampled_from(["01", "02", "01+a", "01a", "a+", "+", "++"])
LABELS = st.one_of(GOOD, GOOD, GOOD, st.sampled_from(["01-a", "x y", "", "é", "\udcff", "01\n", "A"]))
TOKENS = st.sampled_from(["acq-a", "acq-a+", "run-1", "desc-x", "desc-iqt", "space-a", "rec-a", "part-mag"])
ODD = st.sampled_from(
    ["defaced", "brain", "", "-", "a-b-c", "part-phase", "site-a", "ses-1", "sub-01", "Acq-a"]
)
SUFFIXES = st.sampled_from(["T1w"] * 9 + ["T2w", "t1w"])
EXTENSIONS = st.sampled_from([".nii.gz"] * 6 + [".nii"] * 3 + [".NII", ".nii.gz.tmp", ".json"])
SESSIONS = st.sampled_from([None, None, None, "1", "a+", "1-2"])
KINDS = st.sampled_from(
    ["scan"] * 8 + ["empty", "text", "pipe", "folder", "loop", "nowhere", "link", "outside"]
)
VALUES = st.sampled_from(
    [
        *(True, False, "true", "false", "n/a", "10", "", "\udcff", None, [], [5.0], {}),
        *(0, 1, -1, 5.0, 1e300, 10**400, float("nan"), float("inf")),
    ]
)
SIDECARS = st.one_of(
    st.dictionaries(
        st.sampled_from(
            ["SkullStripped", "SliceThickness", "SpacingBetweenSlices", "MagneticFieldStrength", "X"]
        ),
        VALUES,
        max_size=4,
    ),
    st.sampled_from(
        [b"", b"{", b"[]", b"\xff\xfe{", b"\xef\xbb\xbf{}", b"[" * 9000, b"null", "pipe", "folder"]
    ),
)


@st.composite
def names(draw, subject: str, session: str | None) -> str:
    """A file name, mostly valid, or with a part added, missing or moved."""
    chance = st.integers(0, 9)
    parts = [f"sub-{subject}" if draw(chance) else "sub-02"]
    parts += [f"ses-{session}"] if session is not None and draw(chance) else []
    parts += draw(st.lists(TOKENS, max_size=2))
    parts += [] if draw(chance) else [draw(ODD)]
    parts = parts if draw(chance) else draw(st.permutations(parts))
    return "_".join([*parts, draw(SUFFIXES)]) + draw(EXTENSIONS)


@st.composite
def trees(draw) -> dict[str, object]:
    """Paths below the root and their content: a few subjects with several files each."""
    found: dict[str, object] = {}
    for _ in range(draw(st.integers(1, 3))):
        subject, session = draw(LABELS), draw(SESSIONS)
        home = f"sub-{subject}" + ("" if session is None else f"/ses-{session}")
        for _ in range(draw(st.integers(1, 4))):
            folder = draw(st.sampled_from([f"{home}/anat"] * 12 + [home, f"{home}/anat/old", f"{home}/func"]))
            name = draw(names(subject, session))
            found[f"{folder}/{name}"] = draw(KINDS)
            if draw(st.booleans()):
                where = draw(st.sampled_from(["", f"sub-{subject}/", f"{folder}/"]))
                stem = name.partition(".")[0] if where else draw(SUFFIXES)
                found[f"{where}{stem}.json"] = draw(SIDECARS)
    return found


ASKED = st.sampled_from(
    [
        *("session", "acquisition", "run", "desc", "space", "suffix", "extension", "datatype", "part", "acq"),
        *("return_type", "scope", "regex_search", "SliceThickness", "SkullStripped", "Nowhere"),
    ]
)
ANSWERS = st.sampled_from(
    [None, "*", "1", 1, "a+", True, 1.5, [], ["1", None], {}, "T1w", ".nii.gz", "[", "\0"]
)
FILTERS = st.dictionaries(
    st.sampled_from(["t1w", "t1w", "t1w", "t1w", "T1w", "bold", "t1"]),
    st.one_of(st.dictionaries(ASKED, ANSWERS, max_size=3), st.sampled_from([None, [], "pre", 1])),
    max_size=2,
)


@pytest.fixture(scope="module")
def scan_bytes(tmp_path_factory) -> bytes:
    path = write_scan(
        tmp_path_factory.mktemp("scan") / "x.nii", make_head((16, 16, 6)), make_affine((4.0, 4.0, 9.0))
    )
    return gzip.compress(path.read_bytes(), 1)


def put(path: Path, what: object, scan: bytes) -> None:
    """Make one file, unless it exists or the file system refuses it."""
    with contextlib.suppress(OSError, ValueError):
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(what, dict):
            path.write_text(json.dumps(what), encoding="utf-8", errors="surrogateescape")
        elif isinstance(what, bytes):
            path.write_bytes(what)
        elif what == "scan":
            path.write_bytes(scan if path.name.endswith(".gz") else gzip.decompress(scan))
        elif what == "pipe":
            os.mkfifo(path)
        elif what == "folder":
            path.mkdir()
        elif what in ("loop", "nowhere", "link", "outside"):
            targets = {"loop": path.name, "nowhere": "../.git/annex/objects/x", "outside": "/dev/zero"}
            path.symlink_to(targets.get(what, next(iter(sorted(os.listdir(path.parent))), "x")))
        else:
            path.write_text("" if what == "empty" else "no image")


def run(*arguments: str) -> tuple[int, str]:
    """Run the command; return exit code and output."""
    said = io.StringIO()
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail(f"waits without end: {said.getvalue()}"))
    signal.alarm(120)
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            code = cli.main([*arguments, "--device", "cpu", "--nprocs", "1"])
        except SystemExit as ended:
            code = int(ended.code or 0)
        finally:
            signal.alarm(0)
    return code, said.getvalue()


def planned(arguments: list[str]) -> tuple[list[Path], list[str], list]:
    """Return the files that the graph would write, the names of its parts, and the listing."""
    from iqtflow.workflows.app.graphs import build_participant_graph
    from iqtflow.workflows.app.participant import other_records
    from iqtflow.workflows.app.plan import choose_scans

    with contextlib.redirect_stdout(io.StringIO()):
        chosen, _ = cli.settle(parse([*arguments, "--device", "cpu"]))
    listing = list_inputs(chosen)
    plan = choose_scans(listing, chosen)
    graph = build_participant_graph(plan.chosen, chosen, name="graph", others=other_records(plan))
    written, parts = [], []
    for part in graph._graph:
        parts.append(part.name)
        for node in getattr(part, "_graph", ()):
            if node.name.startswith("sink_"):
                written.append(chosen.paths.output_dir / node.inputs.name)
    return written, parts, listing


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    tree=trees(),
    filters=st.one_of(st.none(), st.none(), FILTERS),
    how=st.sampled_from(["as it is"] * 10 + ["one subject", "one subject", "validator"]),
)
def test_no_data_set_stops_a_run_or_writes_two_scans_to_one_file(scan_bytes, tree, filters, how):
    top = Path(tempfile.mkdtemp(prefix="iqtflow-fuzz-"))
    try:
        root, out = top / "bids", top / "out"
        root.mkdir()
        (root / "dataset_description.json").write_text('{"Name": "fuzz", "BIDSVersion": "1.10.0"}')
        for name, what in tree.items():
            put(root / name, what, scan_bytes)
        arguments = [str(root), str(out), "participant", "-w", str(top / "work")]
        if filters is not None:
            (top / "filter.json").write_text(json.dumps(filters))
            arguments += ["--bids-filter-file", str(top / "filter.json")]
        arguments += {
            "as it is": ["--skip-bids-validation"],
            "one subject": ["--participant-label", "01"],
        }.get(how, [])
        before = sorted(os.walk(top))
        code, said = run(*arguments, "--dry-run")
        note(said)
        event(f"code {code}")
        assert code in (0, 1, 2)
        assert "Traceback" not in said and "defect" not in said
        assert sorted(os.walk(top)) == before, "a dry run writes nothing"
        if code == 2:
            assert "expected" in said
            return
        written, parts, listing = planned(arguments)
        event(f"{len(listing.scans)} scans, {len(listing.left_out)} left out")
        assert len(set(written)) == len(written), "two scans in one file"
        assert len({path.name for path in written}) == len(written), "some outputs of training share a folder"
        assert len(set(parts)) == len(parts), "two parts of the graph in one folder"
        for path in written:
            assert Path(os.path.realpath(path)).is_relative_to(os.path.realpath(out))
            assert path.relative_to(out).parts[0] == f"sub-{path.name.split('_')[0].removeprefix('sub-')}"
        for scan in listing.scans:
            assert scan.path.relative_to(root).parts[0] == f"sub-{scan.subject}"
            assert scan.path.is_file() or not scan.path.exists(), (
                "a file, or a link whose content is not there"
            )
        listed = {scan.path for scan in listing.scans} | {left.path for left in listing.left_out}
        for line in listing.left_out:
            assert line.reason in said and str(line).isprintable()
        assert (code == 1) >= bool(listing.left_out), "what is left out is told by the exit code"
        if filters is None and how != "one subject":
            assert listed >= set(candidates(root)), "nothing is lost in silence"
    finally:
        shutil.rmtree(top, ignore_errors=True)


def candidates(root: Path) -> list[Path]:
    """Return all files in a place and with a name of a scan."""
    found = [*root.glob("sub-*/anat/*"), *root.glob("sub-*/ses-*/anat/*")]
    return [p for p in found if p.name.endswith(("_T1w.nii", "_T1w.nii.gz")) and "part-" not in p.name]


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["01", "01+a", "01a", "a+", "+", "++", "+a"]),
            st.sampled_from(["", "_acq-a", "_ses-+"]),
        ),
        unique=True,
        max_size=8,
    )
)
def test_parts_of_a_graph_are_told_apart_by_name(scans):
    from iqtflow.bids.names import label_of, node_name

    full = [f"sub-{label}{rest}_T1w" for label, rest in scans]
    assert len({node_name(name) for name in full}) == len(full)
    assert {label_of(node_name(label)) for label, _ in scans} == {label for label, _ in scans}
