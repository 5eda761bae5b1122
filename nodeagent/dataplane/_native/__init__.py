"""The compiled engine binding; imported within dataplane only.

Importing it fails with a CapabilityError if the extension is not built, and with an EngineError if it was
built from another version of the package than the one that runs.
"""

from __future__ import annotations

from nodeagent import __version__
from nodeagent.errors import CapabilityError, EngineError

try:
    from nodeagent.dataplane._native._engine import ffi, lib
except ImportError as error:
    raise CapabilityError(f"the engine extension cannot be loaded ({error}); build it: make build") from error

_compiled = ffi.string(lib.na_version()).decode()
if _compiled != __version__:
    raise EngineError(
        f"the engine extension is of version {_compiled}, the package of {__version__}; "
        "build it again: make build"
    )

__all__ = ["ffi", "lib"]
