"""Nipype's settings in this program, in the parent process and in the processes of the nodes."""

from __future__ import annotations

import os
from functools import lru_cache

from nipype import config, logging
from nipype.interfaces.base import specs
from nipype.utils import filemanip

#: Environment variable that gives the logging level to the processes of the nodes.
VERBOSITY = "IQTFLOW_LOG_LEVEL"
#: Environment variable that tells them whether to record memory and processor use.
MONITOR = "IQTFLOW_RESOURCE_MONITOR"


def configure_nipype(*, crash_dir: str, level: str, monitor: bool = False) -> None:
    """Set nipype's global configuration. A nipype.cfg in the current folder has no effect.

    Parameters
    ----------
    crash_dir
        Folder of crash files.
    level
        "WARNING", "INFO" or "DEBUG".
    monitor
        Record memory and processor use of every node.
    """
    os.environ[MONITOR] = str(int(monitor))
    os.environ[VERBOSITY] = level
    config.set_default_config()  # without the user's configuration file
    config.update_config(
        {
            "execution": {
                # An input with a new date but the same content runs nothing again.
                "hash_method": "content",
                # The work directory may be moved.
                "use_relative_paths": "true",
                "crashfile_format": "txt",
                "check_version": "false",
                # nipype's own pages: their time grows with the square of the number of nodes.
                "create_report": "false",
                "stop_on_first_crash": "false",
                "stop_on_first_rerun": "false",
                "remove_unnecessary_outputs": "false",
                "remove_node_directories": "false",
                "write_provenance": "false",
                "parameterize_dirs": "true",
                "poll_sleep_duration": "0.2",
            }
        }
    )
    config._sections["execution"]["crashdump_dir"] = crash_dir  # directly: the parser would expand a '%'
    _set_level(level)
    config.resource_monitor = monitor
    specs.hash_infile = hash_file


def apply_in_worker() -> None:
    """Do in the process of a node what `configure_nipype` does in the parent, except for what nodes carry."""
    specs.hash_infile = hash_file
    if VERBOSITY in os.environ:
        _set_level(os.environ[VERBOSITY])
    config.resource_monitor = os.environ.get(MONITOR) == "1"


def hash_file(path: str, **options: object) -> str | None:
    """Return nipype's hash of a file's content. The file is read again only when its size or times change.

    nipype reads a file twice for each node that has it as an input, and a thousand nodes may share one model.
    """
    try:
        stat = os.stat(path)
    except OSError:
        return None
    if options:
        return filemanip.hash_infile(path, **options)
    return _hash_once(path, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


@lru_cache(maxsize=100_000)
def _hash_once(path: str, *_: int) -> str | None:
    return filemanip.hash_infile(path, chunk_len=1 << 20)


def _set_level(level: str) -> None:
    config.update_config(
        {
            "logging": {
                "workflow_level": level,
                "interface_level": level,
                "utils_level": "WARNING",
                "log_to_file": "false",
            }
        }
    )
    logging.update_logging(config)
