"""What the measurements were taken on."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Final

from nodeagent.config.bench import Cores

_CPU_FIELDS: Final = ("model name", "cpu family", "model", "cache size")


def describe_machine(cores: Cores) -> dict[str, str]:
    """Processor, memory, kernel, distribution, and who runs where."""
    cpu = _fields(Path("/proc/cpuinfo"), ":")
    memory = _fields(Path("/proc/meminfo"), ":").get("MemTotal", "0 kB")
    hypervisor = " (a virtual machine)" if " hypervisor" in cpu.get("flags", "") else ""
    return {
        "processor": ", ".join(f"{name} {cpu[name]}" for name in _CPU_FIELDS if name in cpu) + hypervisor,
        "cores": str(os.cpu_count()),
        "memory": f"{int(memory.split()[0]) // 1024} MiB",
        "kernel": platform.release(),
        "system": _fields(Path("/etc/os-release"), "=").get("PRETTY_NAME", "").strip('"'),
        "congestion control": _text(Path("/proc/sys/net/ipv4/tcp_congestion_control")),
        "proxy on cores": ",".join(map(str, cores.proxy)),
        "load on cores": ",".join(map(str, cores.load)),
    }


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _fields(path: Path, separator: str) -> dict[str, str]:
    """`name separator value` lines of a file; of equal names the first one counts."""
    found: dict[str, str] = {}
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return found
    for line in lines:
        name, _, value = line.partition(separator)
        found.setdefault(name.strip(), value.strip())
    return found
