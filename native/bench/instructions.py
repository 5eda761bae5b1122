#!/usr/bin/env python3
"""Instructions that the engine's worker spends in user space on a request, counted by callgrind.

    instructions.py ENGINE_BENCH [--update] [--tolerance PERCENT]

Compares with instructions.json beside this file and fails if a count is above it by more than the tolerance
(5 %). Unlike time, instructions are the same on a busy machine; they differ a little between compilers, so the
reference names the one that it was taken with.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

REFERENCE = Path(__file__).with_name("instructions.json")
CASES = ("http", "http16k", "tcp")
FEW, MANY = 200, 1200  # the difference leaves out start and end
WORKER = "na-worker"


def count(program: str, case: str, requests: int) -> int:
    """Instructions of all threads but the first, which plays client and back end."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["valgrind", "--tool=callgrind", "--separate-threads=yes", "--quiet"]
        command += [f"--callgrind-out-file={folder}/out", program, case, str(requests)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        totals = [
            int(re.search(r"^(?:totals|summary): (\d+)", file.read_text(), re.MULTILINE).group(1))
            for file in Path(folder).glob("out-*")
            if not file.name.endswith("-01")
        ]
    if not totals:
        raise SystemExit(f"{program} {case}: callgrind saw no worker thread")
    return sum(totals)


def measure(program: str) -> dict[str, int]:
    """Instructions per request by case."""
    return {
        case: round((count(program, case, MANY) - count(program, case, FEW)) / (MANY - FEW)) for case in CASES
    }


def compare(found: dict[str, int], reference: dict[str, int], tolerance: float) -> bool:
    """Print a line a case; whether all are within the tolerance."""
    good = True
    for case, value in found.items():
        before = reference[case]
        change = 100 * (value - before) / before
        bad = change > tolerance
        good = good and not bad
        note = f"above the tolerance of {tolerance:g} %" if bad else ""
        if change < -tolerance:
            note = "better; `make bench-reference` keeps it"
        print(f"{case:8} {value:7} instructions per request, {change:+.1f} % {note}".rstrip())
    return good


def main() -> int:
    """Measure and compare, or write the reference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--update", action="store_true", help="write the reference instead")
    parser.add_argument("--tolerance", type=float, default=5.0, help="in percent")
    arguments = parser.parse_args()
    if shutil.which("valgrind") is None:
        print("skipped: the program valgrind (apt-get install valgrind) is missing", file=sys.stderr)
        return 1 if os.environ.get("CI") else 0
    found = measure(arguments.program)
    if arguments.update:
        compiler = subprocess.run(["cc", "--version"], capture_output=True, text=True, check=True).stdout
        document = {"compiler": compiler.splitlines()[0], "instructions_per_request": found}
        REFERENCE.write_text(json.dumps(document, indent=2) + "\n")
        print(REFERENCE.read_text(), end="")
        return 0
    reference = json.loads(REFERENCE.read_text())
    return 0 if compare(found, reference["instructions_per_request"], arguments.tolerance) else 1


if __name__ == "__main__":
    sys.exit(main())
