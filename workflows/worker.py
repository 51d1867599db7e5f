"""What a worker process of the scheduler is told before its first node: how much to say.

Imported by multiprocessing's fork server, from which workers are forked; nipype itself sets log levels in the
parent only.
"""

from __future__ import annotations

import os

VERBOSITY = "IQTFLOW_LOG_LEVEL"

if VERBOSITY in os.environ:
    from nipype import config, logging

    level = os.environ[VERBOSITY]
    config.update_config(
        {"logging": {"workflow_level": level, "interface_level": level, "utils_level": "WARNING"}}
    )
    logging.update_logging(config)
