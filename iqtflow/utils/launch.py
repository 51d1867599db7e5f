"""Start a command of this package in a process of its own: ``launch.py iqtflow.cli.commands.enhance ...``.

``python -m`` and ``python -c`` import from the current folder first: a file ``numpy.py`` there would run. A
script imports from its own folder first, and this one removes that folder from the path. (Python 3.11 has the
option ``-P`` for this, 3.10 has not.)
"""

import sys

if __name__ == "__main__":
    if not getattr(sys.flags, "safe_path", False):
        del sys.path[0]
    from importlib import import_module

    raise SystemExit(import_module(sys.argv[1]).main(sys.argv[2:]))
