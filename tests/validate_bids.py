"""Errors and warnings of the BIDS validator."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def find_faults(folder: Path) -> list[str]:
    """Return all errors and warnings about a folder. Without the validator the test is skipped."""
    beside = Path(sys.executable).with_name("bids-validator-deno")
    program = beside if beside.exists() else shutil.which("bids-validator-deno")
    if not program:
        pytest.skip("bids-validator-deno is not installed (it comes with the test extra)")
    done = subprocess.run(
        [program, folder, "--json"], capture_output=True, text=True, timeout=300, check=False
    )
    issues = json.loads(done.stdout)["issues"]["issues"]
    return [
        " ".join(filter(None, [f"{i['severity']}:", i["code"], i.get("subCode"), i.get("location")]))
        for i in issues
    ]
