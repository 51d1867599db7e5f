"""Errors and warnings of the BIDS validator."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from clinics import execute


def find_faults(folder: Path) -> list[str]:
    """Return all errors and warnings about a folder. Without the validator the test is skipped."""
    beside = Path(sys.executable).with_name("bids-validator-deno")
    program = beside if beside.exists() else shutil.which("bids-validator-deno")
    if not program:
        pytest.skip("bids-validator-deno is not installed (it comes with the test extra)")
    done = execute(program, folder, "--json", timeout=300)
    issues = json.loads(done.stdout)["issues"]["issues"]
    return [
        " ".join(filter(None, [f"{i['severity']}:", i["code"], i.get("subCode"), i.get("location")]))
        for i in issues
    ]
