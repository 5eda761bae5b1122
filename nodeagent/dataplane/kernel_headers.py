"""Where bcc finds kernel headers to compile against, and how to get some.

Programs that read tracepoints by their own description (events/*/format) use nothing of the headers that differs
between kernels, so that those of another version do as well as the running one's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nodeagent.errors import CapabilityError

VARIABLE: Final = "BCC_KERNEL_SOURCE"
"""What bcc itself reads; a user's own value comes first."""


@dataclass(frozen=True, slots=True)
class KernelHeaders:
    """`source` is for bcc's BCC_KERNEL_SOURCE, empty where bcc finds them by itself; `flags` are for its compiler."""

    source: str = ""
    flags: tuple[str, ...] = ()


def find_headers(
    environment: Mapping[str, str] = os.environ, root: Path = Path("/"), release: str = os.uname().release
) -> KernelHeaders:
    """The running kernel's headers, or else some from /usr/src (Debian's linux-headers packages, in two folders).

    CapabilityError says what to install. `root` is where to look, for tests.
    """
    if environment.get(VARIABLE):
        return KernelHeaders(environment[VARIABLE])
    if (root / "lib/modules" / release / "build/include/linux/kconfig.h").exists():
        return KernelHeaders()
    if (root / "sys/kernel/kheaders.tar.xz").exists():
        return KernelHeaders()
    for common in sorted((root / "usr/src").glob("linux-headers-*-common"), reverse=True):
        generated = sorted(common.parent.glob(common.name.removesuffix("common") + "*"), reverse=True)
        for each in generated:
            if (each / "include/generated/autoconf.h").exists():
                return KernelHeaders(str(common), _generated(each))
    raise CapabilityError(
        f"no kernel headers for bcc: neither those of this kernel (/lib/modules/{release}/build, "
        "/sys/kernel/kheaders.tar.xz) nor others below /usr/src. Install some: apt-get install linux-headers-amd64 "
        f"(any version will do), or set {VARIABLE} to a kernel's source tree"
    )


def _generated(folder: Path) -> tuple[str, ...]:
    arch = next((folder / "arch").iterdir(), folder / "arch/x86")
    return tuple(
        f"-I{each}"
        for each in (
            folder / "include",
            folder / "include/generated/uapi",
            arch / "include/generated",
            arch / "include/generated/uapi",
        )
    )
