"""The CA's folder: made safely, read as a whole, refused with the file and the mend."""

from __future__ import annotations

import datetime
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import dsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from harness import pki

from nodeagent.controlplane.ca.files import write_atomically
from nodeagent.controlplane.ca.folder import load_authority
from nodeagent.controlplane.ca.selfmade import ensure_root
from nodeagent.errors import ConfigError, IdentityError


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


class TestSelfMade:
    def test_the_key_is_for_the_owner_only(self, tmp_path: Path) -> None:
        assert ensure_root(tmp_path / "ca", "cluster.local", pki.now())
        assert mode(tmp_path / "ca" / "ca-key.pem") == 0o600
        assert mode(tmp_path / "ca") == 0o700

    def test_it_is_made_once(self, tmp_path: Path) -> None:
        first = pki.authority(tmp_path)
        assert not ensure_root(tmp_path, "cluster.local", pki.now())
        assert load_authority(tmp_path, pki.now()).bundle == first.bundle

    @pytest.mark.parametrize("lost", [("root-cert.pem",), ("ca-cert.pem", "root-cert.pem")])
    def test_a_crash_while_it_is_made_is_made_good(self, tmp_path: Path, lost: tuple[str, ...]) -> None:
        before = pki.authority(tmp_path)
        for name in lost:
            (tmp_path / name).unlink()
        after = pki.authority(tmp_path)
        assert after.certificate.public_key() == before.certificate.public_key()

    def test_a_lost_key_is_never_replaced_silently(self, tmp_path: Path) -> None:
        pki.authority(tmp_path)
        (tmp_path / "ca-key.pem").unlink()
        with pytest.raises(ConfigError, match=r"ca-key\.pem: is missing, but ca-cert\.pem is there"):
            ensure_root(tmp_path, "cluster.local", pki.now())

    def test_files_are_replaced_as_a_whole(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        write_atomically(path, b"one", 0o600)
        write_atomically(path, b"two", 0o600)
        assert path.read_bytes() == b"two"
        assert [each.name for each in tmp_path.iterdir()] == ["file"]


def swap_key(folder: Path) -> None:
    (folder / "ca-key.pem").write_bytes(pki.key_pem(pki.p256()))


def foreign_root(folder: Path) -> None:
    pki.authority(folder / "other")
    (folder / "root-cert.pem").write_bytes((folder / "other" / "root-cert.pem").read_bytes())


def leaf_as_ca(folder: Path) -> None:
    key = pki.p256()
    chain = pki.leaf(load_authority(folder, pki.now()), key, pki.uri(pki.WEB))
    (folder / "ca-key.pem").write_bytes(pki.key_pem(key))
    (folder / "ca-cert.pem").write_text(chain[0])


def passphrase(folder: Path) -> None:
    encrypted = pki.p256().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
    )
    (folder / "ca-key.pem").write_bytes(encrypted)


def dsa_key(folder: Path) -> None:
    (folder / "ca-key.pem").write_bytes(pki.key_pem(dsa.generate_private_key(2048)))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (swap_key, r"ca-cert\.pem: is not the certificate of the key"),
        (foreign_root, r"root-cert\.pem: does not lead to ca-cert\.pem"),
        (leaf_as_ca, r"ca-cert\.pem: is not a CA certificate"),
        (passphrase, r"ca-key\.pem: the key has a passphrase"),
        (dsa_key, r"ca-key\.pem: keys of this kind"),
        (lambda folder: (folder / "ca-key.pem").write_bytes(pki.key_pem(pki.rsa_key(1024))), "1024 bits"),
        (lambda folder: (folder / "ca-key.pem").unlink(), r"ca-key\.pem: cannot be read: No such file"),
        (lambda folder: (folder / "ca-cert.pem").write_text("x"), r"ca-cert\.pem: no PEM certificates"),
        (lambda folder: (folder / "root-cert.pem").write_text(""), r"root-cert\.pem: no PEM certificates"),
        (lambda folder: (folder / "root-cert.pem").write_bytes(b"x" * (2 << 20)), "is it the right file"),
    ],
)
def test_what_does_not_fit(tmp_path: Path, spoil: Callable[[Path], object], message: str) -> None:
    pki.authority(tmp_path)
    spoil(tmp_path)
    with pytest.raises(ConfigError, match=message):
        load_authority(tmp_path, pki.now())


@pytest.mark.parametrize(("days", "message"), [(4000, "expired at"), (-1, "is valid from")])
def test_out_of_its_time(tmp_path: Path, days: int, message: str) -> None:
    pki.authority(tmp_path)
    with pytest.raises(ConfigError, match=message):
        load_authority(tmp_path, pki.now() + datetime.timedelta(days=days))


def test_a_leaf_never_outlives_its_signer(tmp_path: Path) -> None:
    authority = pki.authority(tmp_path)
    ends = authority.certificate.not_valid_after_utc
    chain = pki.leaf(authority, pki.p256(), pki.uri(pki.WEB), at=ends - datetime.timedelta(minutes=1))
    assert x509.load_pem_x509_certificate(chain[0].encode()).not_valid_after_utc == ends
    with pytest.raises(IdentityError, match="the CA's own certificate expired"):
        pki.leaf(authority, pki.p256(), pki.uri(pki.WEB), at=ends)
