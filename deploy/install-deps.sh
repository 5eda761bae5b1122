#!/usr/bin/env bash
# Install the Debian packages that a purpose needs, and only those that are missing.
#   deploy/install-deps.sh build|test|lint|bench...
set -euo pipefail

declare -A packages=(
  [build]="build-essential cmake ninja-build pkg-config git python3 python3-dev python3-venv libre2-dev libssl-dev
           libnghttp2-dev libjansson-dev iproute2 python3-nftables clang libbpf-dev"
  [test]="bpftool libclang-rt-14-dev llvm libcmocka-dev nftables curl wget netcat-openbsd nginx-light nghttp2-client openssl
          util-linux procps bind9-dnsutils python3-bpfcc linux-headers-$(dpkg --print-architecture)"
  [lint]="clang-format"
  [bench]="valgrind"
)
# AES-GCM by AVX-512, which OpenSSL 3.0 lacks, is there for one architecture.
if [ "$(dpkg --print-architecture)" = amd64 ]; then
  packages[build]+=" libipsec-mb-dev"
fi

missing=()
for purpose in "$@"; do
  for package in ${packages[$purpose]:?unknown purpose $purpose}; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
  done
done
[ ${#missing[@]} -eq 0 ] && exit 0

echo "installing Debian packages: ${missing[*]}"
if [ "$(id -u)" -ne 0 ]; then
  echo "error: not root; run: sudo apt-get install ${missing[*]}" >&2
  exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# nginx would start its service on installation; the tests run their own instances.
if [ ! -e /usr/sbin/policy-rc.d ]; then
  printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
  chmod +x /usr/sbin/policy-rc.d
  trap 'rm -f /usr/sbin/policy-rc.d' EXIT
fi
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
