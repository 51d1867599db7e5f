"""Run a command, and write what it used to a JSON file: ``measured.py FILE COMMAND [ARGUMENT ...]``.

The kernel's largest memory of a process begins with that of the process that started it. This one is small.
"""

import json
import resource
import subprocess
import sys

status = subprocess.call(sys.argv[2:])
used = resource.getrusage(resource.RUSAGE_CHILDREN)
with open(sys.argv[1], "w") as file:
    seconds = round(used.ru_utime + used.ru_stime, 1)
    json.dump({"processor_seconds": seconds, "peak_gb": round(used.ru_maxrss * 1024 / 1e9, 2)}, file)
sys.exit(status)
