"""Emit the C source of the cffi extension from the engine's public headers.

They are the one place where the interface is declared: they are written in the subset of C that cffi parses
once preprocessor lines, `extern "C"` braces and attributes are gone, so there is no second copy to drift.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from cffi import FFI


def cdef_of(header: str) -> str:
    """Return the header's declarations in the form that cffi takes.

    Integer `#define`s of the form `#define NA_X 42` stay (cffi reads them); all other preprocessor lines go.
    """
    kept: list[str] = []
    for line in header.splitlines():
        if line.lstrip().startswith("#"):
            if re.fullmatch(r"#define\s+NA_[A-Z0-9_]+\s+\d+", line.strip()):
                kept.append(line)
        elif line not in ('extern "C" {', "}"):
            kept.append(line)
    return "\n".join(kept).replace("NA_API ", "")


def main(out: str, *headers: str) -> None:
    """Write the extension's C source to `out` from the given public headers."""
    ffi = FFI()
    includes: list[str] = []
    for header in headers:
        ffi.cdef(cdef_of(Path(header).read_text()))
        includes.append(f"#include <nodeagent/{Path(header).name}>")
    ffi.set_source("nodeagent.dataplane._native._engine", "\n".join(includes), py_limited_api=True)
    ffi.emit_c_code(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
