"""What a test needs of the machine, checked by name."""

from __future__ import annotations

import importlib.util
import os
import shutil

import pytest


def _missing(need: str) -> str | None:
    """Why `need` is not met, or None. `root` and `nft` (the library) are special, others are programs."""
    if need == "root":
        return None if os.geteuid() == 0 else "root (run the tests as root)"
    if need == "nft":
        found = importlib.util.find_spec("nftables") is not None
        return None if found else "the Debian package python3-nftables"
    if need == "engine":
        found = importlib.util.find_spec("nodeagent.dataplane._native._engine") is not None
        return None if found else "the engine extension (make build)"
    return None if shutil.which(need) else f"the program {need} (deploy/install-deps.sh test)"


def require(*needs: str) -> None:
    """Skip the running test if something is missing, naming it; fail where the CI environment variable is
    set."""
    missing = [reason for reason in map(_missing, needs) if reason]
    if not missing:
        return
    text = "needs " + ", ".join(missing)
    if os.environ.get("CI"):
        pytest.fail(text)
    pytest.skip(text)
