"""The CA's own keys: a plugged-in intermediate made by openssl, and the replacing of roots under running callers."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError
from harness import pki, require
from harness.ca_plane import CaPlane, ca_plane
from harness.pki import WEB, csr

from nodeagent.controlplane.ca import rotation
from nodeagent.controlplane.ca.folder import load_authority
from nodeagent.controlplane.ca.rotation import Step
from nodeagent.errors import ConfigError

FOLLOW_SECONDS = 5


def openssl(folder: Path, *arguments: str) -> None:
    done = subprocess.run(["openssl", *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def make_cacerts(folder: Path, name: str, root_of: Path | None = None) -> Path:
    """A root and an intermediate made as Istio's documentation does, in the files of a `cacerts` secret."""
    folder.mkdir()
    (folder / "ca.cnf").write_text("[ca]\nbasicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\n"
                                   "subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid:always\n")  # fmt: skip
    if root_of is None:
        openssl(folder, "genrsa", "-out", "root-key.pem", "2048")
        openssl(
            folder,
            "req",
            "-new",
            "-key",
            "root-key.pem",
            "-subj",
            f"/O=Istio/CN={name} root",
            "-out",
            "root.csr",
        )
        openssl(folder, "x509", "-req", "-days", "30", "-in", "root.csr", "-signkey", "root-key.pem",
                "-extfile", "ca.cnf", "-extensions", "ca", "-out", "root-cert.pem")  # fmt: skip
    else:
        for file in ("root-key.pem", "root-cert.pem"):
            shutil.copy(root_of / file, folder / file)
    openssl(folder, "genrsa", "-out", "ca-key.pem", "2048")
    openssl(
        folder,
        "req",
        "-new",
        "-key",
        "ca-key.pem",
        "-subj",
        f"/O=Istio/CN={name} intermediate",
        "-out",
        "ca.csr",
    )
    openssl(folder, "x509", "-req", "-days", "20", "-in", "ca.csr", "-CA", "root-cert.pem", "-CAkey", "root-key.pem",
            "-CAcreateserial", "-extfile", "ca.cnf", "-extensions", "ca", "-out", "ca-cert.pem")  # fmt: skip
    text = (folder / "ca-cert.pem").read_text() + (folder / "root-cert.pem").read_text()
    (folder / "cert-chain.pem").write_text(text)
    return folder


def accepts(bundle: str, chain: tuple[str, ...]) -> bool:
    """Whether a peer with this trust bundle accepts a certificate."""
    leaf, *between = x509.load_pem_x509_certificates("".join(chain[:-1]).encode())
    roots = x509.load_pem_x509_certificates(bundle.encode())
    try:
        PolicyBuilder().store(Store(roots)).build_client_verifier().verify(leaf, between)
    except VerificationError:
        return False
    return True


async def issued(plane: CaPlane) -> tuple[str, ...]:
    answer = await plane.ask(csr(), impersonate=WEB)
    assert answer.code == "OK", answer.details
    return answer.chain


async def issued_by(plane: CaPlane, signer: Path) -> tuple[str, ...]:
    """A certificate, as soon as they are issued by this signer and with the bundle that is published."""
    subject = x509.load_pem_x509_certificate(signer.read_bytes()).subject
    async with asyncio.timeout(FOLLOW_SECONDS):
        while True:
            chain = await issued(plane)
            leaf = x509.load_pem_x509_certificate(chain[0].encode())
            if (leaf.issuer, chain[-1]) == (subject, plane.bundle.read_text()):
                return chain
            await asyncio.sleep(0.05)


async def until_bundle(plane: CaPlane, roots: int) -> None:
    async with asyncio.timeout(FOLLOW_SECONDS):
        while plane.bundle.read_text().count("BEGIN") != roots:
            await asyncio.sleep(0.05)


class TestPluggedIn:
    async def test_leaf_first_intermediate_then_root(self, tmp_path: Path) -> None:
        require("openssl")
        cacerts = make_cacerts(tmp_path / "cacerts", "a")
        async with ca_plane(tmp_path, plugged_in=cacerts) as plane:
            chain = await issued(plane)
            assert chain[1] == (cacerts / "ca-cert.pem").read_text()
            assert chain[2] == plane.bundle.read_text() == (cacerts / "root-cert.pem").read_text()
            for name, text in (("leaf", chain[0]), ("between", chain[1])):
                (tmp_path / f"{name}.pem").write_text(text)
            openssl(tmp_path, "verify", "-x509_strict", "-CAfile", "cacerts/root-cert.pem",
                    "-untrusted", "between.pem", "leaf.pem")  # fmt: skip
            assert not (tmp_path / "ca").exists()

    async def test_an_end_that_is_near_is_told(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        require("openssl")
        async with ca_plane(tmp_path, plugged_in=make_cacerts(tmp_path / "cacerts", "a")):
            async with asyncio.timeout(FOLLOW_SECONDS):
                while "CN=a intermediate,O=Istio ends soon: replace it before" not in caplog.text:
                    await asyncio.sleep(0.05)

    async def test_tls_presents_the_intermediate(self, tmp_path: Path) -> None:
        require("openssl")
        async with ca_plane(tmp_path, plugged_in=make_cacerts(tmp_path / "cacerts", "a")) as plane:
            context = ssl.create_default_context(cafile=str(plane.bundle))
            for name in ("localhost", "istiod.istio-system.svc"):
                await handshake(plane, context, name)
            with pytest.raises(ssl.SSLCertVerificationError, match=r"not valid for 'elsewhere\.example'"):
                await handshake(plane, context, "elsewhere.example")

    async def test_a_renewed_intermediate_is_taken_up(self, tmp_path: Path) -> None:
        require("openssl")
        cacerts = make_cacerts(tmp_path / "cacerts", "a")
        async with ca_plane(tmp_path, plugged_in=cacerts) as plane:
            before = await issued(plane)
            newer = make_cacerts(tmp_path / "newer", "b", root_of=cacerts)
            for file in ("ca-key.pem", "ca-cert.pem", "cert-chain.pem"):
                (newer / file).replace(cacerts / file)
            async with asyncio.timeout(FOLLOW_SECONDS):
                while (await issued(plane))[1] == before[1]:
                    await asyncio.sleep(0.05)
            assert accepts(before[-1], await issued(plane))

    async def test_what_does_not_fit_leaves_the_last_good_ca(self, tmp_path: Path) -> None:
        require("openssl")
        cacerts = make_cacerts(tmp_path / "cacerts", "a")
        async with ca_plane(tmp_path, plugged_in=cacerts) as plane:
            before = await issued(plane)
            other = make_cacerts(tmp_path / "other", "b")
            (other / "ca-key.pem").replace(cacerts / "ca-key.pem")
            assert plane.plane is not None
            assert plane.plane.ca is not None
            async with asyncio.timeout(FOLLOW_SECONDS):
                while not plane.plane.ca.describe()["last_error"]:
                    await asyncio.sleep(0.05)
            assert "ca-cert.pem: is not the certificate of the key" in plane.plane.ca.describe()["last_error"]
            assert plane.metric("nodeagent_controlplane_ca_reload_failures_total 1.0")
            assert (await issued(plane))[1:] == before[1:]


async def handshake(plane: CaPlane, context: ssl.SSLContext, name: str) -> bytes:
    """TLS as a client that looks for a name; the server's certificate."""
    host, _, port = plane.address.rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port), ssl=context, server_hostname=name)
    found: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return found


class TestRotation:
    async def test_nobody_is_cut_off_at_any_step(self, tmp_path: Path) -> None:
        """Certificates of before and after each step are accepted by the bundles of before and after it."""
        async with ca_plane(tmp_path) as plane:
            folder = tmp_path / "ca"
            held = [await issued(plane)]
            for step, roots in ((Step.TRUST, 2), (Step.SIGN, 2), (Step.FINISH, 1)):
                assert rotation.take_step(folder, "cluster.local", 0, pki.now()) is step
                await until_bundle(plane, roots)
                held.append(await issued_by(plane, folder / "ca-cert.pem"))
                old, new = held[-2:]
                assert accepts(old[-1], new), f"{step}: who has not renewed refuses who has"
                assert accepts(new[-1], old), f"{step}: who has renewed refuses who has not"
            assert not accepts(held[-1][-1], held[0]), "the old root is still trusted"
            signers = [x509.load_pem_x509_certificate(chain[0].encode()).issuer for chain in held]
            assert signers[0] == signers[1] != signers[2] == signers[3]

    async def test_the_servers_own_certificate_follows(self, tmp_path: Path) -> None:
        async with ca_plane(tmp_path) as plane:
            context = ssl.create_default_context(cafile=str(plane.bundle))
            before = await handshake(plane, context, "localhost")
            assert await handshake(plane, context, "localhost") == before
            for roots in (2, 2):
                rotation.take_step(tmp_path / "ca", "cluster.local", 0, pki.now())
                await until_bundle(plane, roots)
            new = ssl.create_default_context(cafile=str(tmp_path / "ca" / "ca-cert.pem"))
            async with asyncio.timeout(FOLLOW_SECONDS):
                while True:
                    try:
                        assert await handshake(plane, new, "localhost") != before
                        break
                    except ssl.SSLCertVerificationError:
                        await asyncio.sleep(0.05)

    async def test_the_root_stays_over_a_restart(self, tmp_path: Path) -> None:
        async with ca_plane(tmp_path) as plane:
            first = await issued(plane)
        async with ca_plane(tmp_path) as plane:
            assert (await issued(plane))[-1] == first[-1]

    def test_a_root_can_be_made_beforehand(self, tmp_path: Path) -> None:
        folder = tmp_path / "cacerts"
        command = [sys.executable, "-m", "nodeagent.cli.main", "ca", "create", "--ca-dir", str(folder)]
        for said in ("made a new root", "there is a root already"):
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            assert said in done.stdout
        authority = load_authority(folder, pki.now())
        assert "cluster.local" in authority.certificate.subject.rfc4514_string()
        assert {path.name for path in folder.iterdir()} == {
            ".lock",
            "ca-cert.pem",
            "ca-key.pem",
            "root-cert.pem",
        }

    def test_the_command_keeps_the_time_between_steps(self, tmp_path: Path) -> None:
        pki.authority(tmp_path)

        def rotate(*options: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "nodeagent.cli.main", "ca", "rotate", "--ca-dir", str(tmp_path)]
            return subprocess.run([*command, *options], capture_output=True, text=True)

        first = rotate()
        assert (first.returncode, "trust: done" in first.stdout) == (0, True), first.stderr
        early = rotate()
        assert early.returncode == 1
        assert "step 'sign' is due in 24.0 h" in early.stderr
        assert re.search(r"step 'sign' is due in \d\d s:", rotate("--overlap", "30").stderr)
        for path in tmp_path.glob("*.pem"):
            os.utime(path, (0, path.stat().st_mtime - 90_000))
        assert "sign: done" in rotate().stdout
        assert "step 'finish' is due" in rotate().stderr
        assert "finish: done" in rotate("--overlap", "0").stdout

    def test_an_interrupted_step_is_completed(self, tmp_path: Path) -> None:
        pki.authority(tmp_path)
        rotation.take_step(tmp_path, "cluster.local", 0, pki.now())
        # Killed after the first file of the second step:
        (tmp_path / "ca-key.pem").write_bytes((tmp_path / "next-ca-key.pem").read_bytes())
        with pytest.raises(ConfigError, match="is not the certificate of the key"):
            rotation.load_authority(tmp_path, pki.now())
        rotation.resume(tmp_path)
        assert len(rotation.load_authority(tmp_path, pki.now()).roots) == 2
        assert not list(tmp_path.glob("next-*"))
        assert rotation.next_step(tmp_path) is Step.FINISH
