"""Damaged requests: whatever is in one, the answer is a refusal or a sound request, never anything else."""

from __future__ import annotations

import random
from base64 import b64decode, encodebytes

import pytest
from harness import pki
from harness.pki import WEB, csr, uri

from nodeagent.controlplane.ca.csr import read_csr
from nodeagent.controlplane.ca.refusal import Refusal

ROUNDS = 3000


def damaged(der: bytes, source: random.Random) -> bytes:
    data = bytearray(der)
    for _ in range(source.choice((1, 1, 1, 2, 3))):
        place = source.randrange(len(data))
        match source.randrange(4):
            case 0:
                data[place] = source.randrange(256)
            case 1:
                data[place] ^= 1 << source.randrange(8)
            case 2:
                del data[place]
            case _:
                data.insert(place, source.randrange(256))
    return bytes(data)


@pytest.mark.parametrize("kind", ["p256", "rsa", "no names"])
@pytest.mark.filterwarnings("ignore")
def test_damaged_requests(kind: str) -> None:
    made = {"p256": lambda: csr(uri(WEB)), "rsa": lambda: csr(uri(WEB), key=pki.rsa_key()), "no names": csr}[
        kind
    ]()
    der = b64decode("".join(made.strip().splitlines()[1:-1]))
    source = random.Random(f"{kind} 1")
    reasons: list[str] = []
    for _ in range(ROUNDS):
        body = encodebytes(damaged(der, source)).decode()
        try:
            request = read_csr(
                f"-----BEGIN CERTIFICATE REQUEST-----\n{body}-----END CERTIFICATE REQUEST-----\n"
            )
        except Refusal as refusal:
            reasons.append(refusal.reason)
        else:
            # Damage that undid itself, or a signature with an equally valid encoding.
            assert request.requested in (WEB, "")
    assert len(reasons) > 0.9 * ROUNDS
    assert set(reasons) <= {"csr", "san"}


def test_a_version_that_there_is_not_is_refused() -> None:
    der = bytearray(b64decode("".join(csr().strip().splitlines()[1:-1])))
    place = der.index(b"\x02\x01\x00")
    der[place + 2] = 7
    body = encodebytes(bytes(der)).decode()
    with pytest.raises(Refusal, match="cannot be read: 7 is not a valid CSR version"):
        read_csr(f"-----BEGIN CERTIFICATE REQUEST-----\n{body}-----END CERTIFICATE REQUEST-----\n")
