"""The compiled binding (native/cffi/build_engine.py); its interface is native/include/nodeagent/engine.h."""

from typing import Any

ffi: Any
lib: Any
