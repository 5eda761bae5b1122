"""Build step: compile the .proto files of this folder. Run by CMake, not imported by the product."""

from __future__ import annotations

import sys
from importlib.resources import files as package_files
from pathlib import Path

from grpc_tools import protoc


def main(source_root: str, out_root: str) -> int:
    """Generate message modules, type stubs and, where a file has services, gRPC modules; 0 when all went well."""
    files = sorted(Path(source_root, "nodeagent", "proto").glob("*.proto"))
    well_known = package_files("grpc_tools") / "_proto"  # google/protobuf/*.proto
    Path(out_root, "nodeagent", "proto").mkdir(parents=True, exist_ok=True)
    for file in files:
        arguments = ["protoc", f"-I{source_root}", f"-I{well_known}"]
        arguments += [f"--python_out={out_root}", f"--pyi_out={out_root}"]
        if "\nservice " in file.read_text():
            arguments.append(f"--grpc_python_out={out_root}")
        if protoc.main([*arguments, str(file.relative_to(source_root))]) != 0:
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
