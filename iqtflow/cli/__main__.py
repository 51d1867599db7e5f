"""``python -m iqtflow.cli`` is the command ``iqtflow``."""

from iqtflow.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
