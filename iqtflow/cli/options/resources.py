"""Options that say where, and with how much of the machine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from iqtflow.cli.parser_parts import flag, option
from iqtflow.cli.types import megabytes, positive, workers
from iqtflow.config import RunSettings
from iqtflow.utils.gpus import DEVICES


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the group "resources"."""
    group = parser.add_argument_group("resources")
    group.add_argument(
        "-w",
        "--work-dir",
        dest="paths__work_dir",
        metavar="DIR",
        type=Path,
        help="intermediate results, from which an interrupted run goes on; never inside the data set"
        " (default: OUTPUT_DIR-work, beside the output or the data set that holds it)",
    )
    group.add_argument(
        "--clean-workdir",
        action="store_true",
        default=False,
        help="empty the work directory first, checkpoints of trainings included: everything is computed anew;"
        " not while another run uses it (default: %(default)s)",
    )
    count: dict[str, Any] = {"type": workers, "metavar": "N"}
    option(
        group,
        RunSettings,
        "nprocs",
        *("--nprocs", "--nthreads", "--n-cpus", "--n_cpus"),
        **count,
        help="processors to use",
    )
    option(
        group, RunSettings, "omp_nthreads", "--omp-nthreads", **count, help="processors that one task may use"
    )
    option(group, RunSettings, "mem_gb", "--mem-gb", type=positive, metavar="GB", help="memory to use")
    group.add_argument(
        *("--mem", "--mem-mb", "--mem_mb"),
        dest="run__mem_gb",
        metavar="MB",
        type=megabytes,
        help="the same in MB, or with a unit, such as 16G, as fMRIPrep takes it (default: --mem-gb)",
    )
    flag(group, RunSettings, "low_mem", "--low-mem", help="take less memory, and more time")
    option(
        group,
        *(RunSettings, "device", "--device"),
        choices=DEVICES,
        help="where networks run: auto takes a GPU that works; cuda fails without one",
    )
    option(
        group,
        *(RunSettings, "n_gpu_procs", "--n-gpu-procs"),
        **count,
        help="GPU jobs at a time, never two on one card",
        shown="one for each GPU",
    )
    flag(
        group,
        *(RunSettings, "resource_monitor", "--resource-monitor"),
        help="record memory and processors of every step, in resource_monitor.json in the work directory",
    )
    flag(
        group,
        *(RunSettings, "write_graph", "--write-graph"),
        help="draw what is run, in graph.dot in the work directory, and graph.svg where graphviz is "
        "installed",
    )
    option(
        group,
        *(RunSettings, "use_plugin", "--use-plugin", "--nipype-plugin-file"),
        type=Path,
        metavar="FILE",
        help="run as jobs of a cluster: nipype's plugin and its arguments in YAML, see docs/clusters.md",
        shown="none",
    )
