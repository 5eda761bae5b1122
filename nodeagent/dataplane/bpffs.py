"""The bpf filesystem: where it is mounted, and pins on it.

A pin keeps a map or an attachment alive when the process that made it has ended. Pins are removed by unlinking;
directories are only for order.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import time
from pathlib import Path
from typing import Final

from nodeagent.errors import CapabilityError

USUAL_MOUNT: Final = Path("/sys/fs/bpf")
_LOCK_LOOK_SECONDS: Final = 0.1
_libc = ctypes.CDLL(None, use_errno=True)


def find_bpffs(mounts: str) -> list[Path]:
    """Where bpf filesystems are mounted, given the text of /proc/mounts; the usual place first."""
    found = [
        Path(fields[1].replace("\\040", " "))
        for fields in (line.split() for line in mounts.splitlines())
        if len(fields) > 2 and fields[2] == "bpf"
    ]
    return sorted(found, key=lambda path: path != USUAL_MOUNT)


def ensure_bpffs(pins: Path) -> None:
    """See to it that `pins` (which need not exist) is on a bpf filesystem; mounts one at /sys/fs/bpf when it
    is below there and nothing is.

    CapabilityError if that is not possible.
    """
    mounted = find_bpffs(Path("/proc/mounts").read_text())
    if any(pins.is_relative_to(mount) for mount in mounted):
        return
    if not pins.is_relative_to(USUAL_MOUNT):
        places = ", ".join(str(mount) for mount in mounted) or "nowhere"
        raise CapabilityError(f"{pins} is not on a bpf filesystem (one is mounted at: {places})")
    # As systemd mounts it, only that others may not look in.
    code = _libc.mount(b"bpf", os.fsencode(USUAL_MOUNT), b"bpf", 0, b"mode=0700")
    if code != 0:
        reason = os.strerror(ctypes.get_errno())
        raise CapabilityError(
            f"cannot mount a bpf filesystem at {USUAL_MOUNT}: {reason}; a container needs the host's one "
            f"mounted there (hostPath {USUAL_MOUNT}, Bidirectional)"
        )


def make_folder(path: Path) -> None:
    """Make a folder for pins, with its parents; for root only, since a pin's permissions are those of its
    object."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)


def lock_folder(path: Path, seconds: float) -> int:
    """Have a folder of pins for oneself, as long as the descriptor that is returned is open. Waits for the one who has
    it, for so long as a predecessor may take to end; CapabilityError if that is in vain. Blocks."""
    make_folder(path)
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(folder)
                raise CapabilityError(
                    f"another agent captures by {path}; give each agent of a machine --bpf-pins of its own"
                ) from None
            time.sleep(_LOCK_LOOK_SECONDS)
        else:
            return folder


def remove_pins(path: Path) -> None:
    """Remove a pin, or a folder with all that is in it; nothing happens if it is not there."""
    if path.is_dir() and not path.is_symlink():
        for entry in list(path.iterdir()):
            remove_pins(entry)
        with contextlib.suppress(FileNotFoundError):
            path.rmdir()
    else:
        path.unlink(missing_ok=True)
