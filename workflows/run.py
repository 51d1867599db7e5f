"""Running a graph: engine settings, and who failed and why in one place."""

from __future__ import annotations

import logging
import os
import re
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from iqtflow.workflows.progress import followed
from nipype.pipeline.engine import Workflow

from iqtflow.config import Settings

LOGGER = logging.getLogger("nipype.workflow")


@dataclass(frozen=True)
class Failure:
    """A node that failed: full name in the graph, one sentence of why, and the crash file."""

    node: str
    message: str
    log: Path


def configure_engine(settings: Settings) -> Path:
    """Set nipype's global configuration for this run; return the folder that receives crash files.

    Hashing is by content, so that a touched or copied input re-runs nothing; nothing is asked of the network.
    """
    import multiprocessing

    from nipype import config
    from nipype import logging as nipype_logging

    os.environ["IQTFLOW_LOG_LEVEL"] = _level(settings)
    multiprocessing.set_forkserver_preload(["iqtflow.workflows.worker"])
    logs = settings.paths.output_dir / "logs" / f"{time.strftime('%Y%m%d-%H%M%S')}_{uuid.uuid4().hex[:8]}"
    config.update_config(
        {
            "execution": {
                "hash_method": "content",
                "crashfile_format": "txt",
                "crashdump_dir": os.fspath(logs),
                "check_version": "false",
                "stop_on_first_crash": str(settings.run.stop_on_first_crash).lower(),
                "remove_unnecessary_outputs": "false",
                "poll_sleep_duration": "0.2",
            },
            "logging": {
                "workflow_level": _level(settings),
                "interface_level": _level(settings),
                "utils_level": "WARNING",
                "log_to_file": "false",
            },
        }
    )
    nipype_logging.update_logging(config)
    return logs


def run_graph(workflow: Workflow, settings: Settings, logs: Path) -> list[Failure]:
    """Run a graph to its end; nodes that fail take only what depends on them along.

    Parameters
    ----------
    workflow
        The graph; its ``base_dir`` is set here.
    settings
        Resources.
    logs
        From `configure_engine`.

    Returns
    -------
    list of Failure
        In the order of the crash files' names; empty when all went well.
    """
    workflow.base_dir = os.fspath(settings.paths.work_dir)
    logs.mkdir(parents=True, exist_ok=True)
    before = set(logs.glob("crash-*.txt"))
    plugin = "Linear" if settings.run.nprocs == 1 else "MultiProc"
    arguments = {
        "n_procs": settings.run.nprocs,
        "memory_gb": settings.run.mem_gb,
        "raise_insufficient": False,
        "mp_context": "forkserver",
    }
    try:
        with followed(workflow, settings) as callback:
            arguments["status_callback"] = callback
            workflow.run(plugin=plugin, plugin_args=arguments)
    except RuntimeError:
        # nipype raises after everything that could run has run; what failed is in the crash files.
        if set(logs.glob("crash-*.txt")) == before:
            raise
    failures = [_read_crash(path) for path in sorted(set(logs.glob("crash-*.txt")) - before)]
    if not failures and not any(logs.iterdir()):
        logs.rmdir()
    return failures


def _read_crash(path: Path) -> Failure:
    text = path.read_text(errors="replace")
    node = re.search(r"^Node: (\S+)", text, re.MULTILINE)
    return Failure(node.group(1) if node else path.stem, _reason(text), path)


def _reason(text: str) -> str:
    """The sentence that a user can act on: our own error where there is one, else the last line."""
    ours = re.findall(r"^\s*iqtflow-\w+: error: (.+)$", text, re.MULTILINE) or re.findall(
        r"^\s*iqtflow\.[\w.]+: (.+)$", text, re.MULTILINE
    )
    if ours:
        return ours[-1].strip()
    killed = re.search(r"Return code: (-9|137)\b", text)
    if killed:
        return (
            "the child process was killed (signal 9), most often for lack of memory: lower --nprocs, "
            "or give the machine more memory"
        )
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    wrong = [line for line in lines if re.match(r"^[\w.]*(Error|Exception|Interrupt)\b", line)]
    return (wrong or lines or ["unknown"])[-1]


def _level(settings: Settings) -> str:
    # nipype prints the whole trace of a step that failed as an error. It is in the crash file, and the last
    # lines on the terminal say why and where; on the way, a line is enough.
    return ("CRITICAL", "INFO", "DEBUG")[min(settings.run.verbose, 2)]
