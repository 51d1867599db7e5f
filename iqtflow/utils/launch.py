"""Start a command of this package in a process of its own: ``launch.py iqtflow.cli.commands.enhance ...``.

``python -m`` and ``python -c`` look for libraries in the current folder first: a file called ``numpy.py``
there would be run. A file that is started looks in its own folder, which is taken out here (Python 3.11 has
``-P`` for it, 3.10 has nothing).
"""

import sys

if __name__ == "__main__":
    if not getattr(sys.flags, "safe_path", False):
        del sys.path[0]
    from importlib import import_module

    raise SystemExit(import_module(sys.argv[1]).main(sys.argv[2:]))
