"""BPF programs of a test, compiled as the build compiles those of the package."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Final

from harness.requirements import require

INCLUDE: Final = Path(__file__).parents[2] / "bpf" / "include"


def compile_bpf(folder: Path, name: str, source: str, *options: str) -> None:
    """Make `name`.bpf.o in `folder` of C text; more options may define macros."""
    require("clang")
    file = folder / f"{name}.c"
    file.write_text(source)
    headers = f"/usr/include/{os.uname().machine}-linux-gnu"
    output = folder / f"{name}.bpf.o"
    flags = ["-O2", "-g", "-target", "bpf", "-mcpu=v3", f"-I{INCLUDE}", f"-I{headers}", *options]
    subprocess.run(["clang", *flags, "-c", str(file), "-o", str(output)], check=True)
