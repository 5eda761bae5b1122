#!/bin/bash
# Runs one fuzzer for some seconds on its corpus, which grows in build/fuzz/corpus; what it said is shown if it fails.
#
# Usage, from the top of the tree: native/fuzz/run.sh SECONDS build/fuzz/native/NAME_fuzz
set -euo pipefail

seconds=$1
name=$(basename "$2")
log=$PWD/build/fuzz/$name.log
given=$PWD/native/fuzz/corpus/${name%_fuzz}

printf '\033[1m==> %s for %s s\033[0m\n' "$name" "$seconds"
mkdir -p "build/fuzz/corpus/$name"
folders=("corpus/$name")
[ ! -d "$given" ] || folders+=("$given")
cd build/fuzz
if ! "native/$name" -max_total_time="$seconds" "${folders[@]}" >"$log" 2>&1; then
  tail -n 60 "$log"
  exit 1
fi
