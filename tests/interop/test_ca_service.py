"""The CA over real TLS: what it issues, checked by openssl too, and every refusal with its status and reason."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import logging
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.verification import PolicyBuilder, Store
from harness import pki, require
from harness.ca_plane import TOKENS, CaPlane, ca_plane, write_token
from harness.pki import WEB, csr, uri

DB = "spiffe://cluster.local/ns/data/sa/db"
AGENT = "nodeagent-system/nodeagent"


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[CaPlane]:
    async with ca_plane(tmp_path, trust_domain_aliases=("old.example",), max_lifetime=7 * 86400.0) as found:
        yield found


class TestIssuing:
    @pytest.mark.parametrize("kind", ["p256", "rsa"])
    async def test_openssl_and_cryptography_accept_the_chain(self, plane: CaPlane, kind: str) -> None:
        require("openssl")
        key = pki.p256() if kind == "p256" else pki.rsa_key()
        answer = await plane.ask(csr(uri(WEB), key=key), impersonate=WEB)
        assert answer.code == "OK", answer.details
        leaf_pem, bundle = answer.chain
        assert bundle == plane.bundle.read_text()
        assert openssl_verifies(plane.root, leaf_pem, bundle)
        leaf = x509.load_pem_x509_certificate(leaf_pem.encode())
        roots = x509.load_pem_x509_certificates(bundle.encode())
        client = PolicyBuilder().store(Store(roots)).build_client_verifier().verify(leaf, [])
        assert [name.value for name in client.subjects or ()] == [WEB]
        assert leaf.public_key() == key.public_key()

    async def test_the_leaf_is_as_istios(self, plane: CaPlane) -> None:
        answer = await plane.ask(csr(uri(WEB), common_name="somebody else"), impersonate=WEB)
        leaf = x509.load_pem_x509_certificate(answer.chain[0].encode())
        assert not list(leaf.subject)
        extensions = leaf.extensions
        san = extensions.get_extension_for_class(x509.SubjectAlternativeName)
        assert (san.critical, [name.value for name in san.value]) == (True, [WEB])
        usage = extensions.get_extension_for_class(x509.KeyUsage).value
        assert (usage.digital_signature, usage.key_encipherment, usage.key_cert_sign) == (True, True, False)
        assert {
            each.dotted_string for each in extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        } == {
            "1.3.6.1.5.5.7.3.1",
            "1.3.6.1.5.5.7.3.2",
        }
        assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        lifetime = leaf.not_valid_after_utc - leaf.not_valid_before_utc
        assert lifetime == datetime.timedelta(hours=24, minutes=2)

    async def test_the_lifetime_asked_for(self, plane: CaPlane) -> None:
        answer = await plane.ask(csr(), impersonate=WEB, lifetime=600)
        leaf = x509.load_pem_x509_certificate(answer.chain[0].encode())
        left = (leaf.not_valid_after_utc - pki.now()).total_seconds()
        assert 590 < left <= 600

    async def test_a_csr_without_names_gets_what_the_caller_may_have(self, plane: CaPlane) -> None:
        assert san(await plane.ask(csr(), impersonate=WEB)) == WEB

    async def test_a_service_account_has_its_own_identity(self, plane: CaPlane) -> None:
        assert san(await plane.ask(csr(uri(WEB)), plane.issuer.token("default/web"))) == WEB

    @pytest.mark.parametrize("bound", [{"node": "node-a"}, {"pod": "nodeagent-x"}])
    async def test_a_node_agents_account_has_those_of_its_node(self, plane: CaPlane, bound: Any) -> None:
        assert san(await plane.ask(csr(), plane.issuer.token(AGENT, **bound), WEB)) == WEB

    async def test_an_alias_of_the_trust_domain_is_issued_as_asked_for(self, plane: CaPlane) -> None:
        old = WEB.replace("cluster.local", "old.example")
        assert san(await plane.ask(csr(uri(old)), impersonate=old)) == old

    async def test_everything_issued_is_logged(
        self, plane: CaPlane, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        answer = await plane.ask(csr(), impersonate=WEB)
        leaf = x509.load_pem_x509_certificate(answer.chain[0].encode())
        line = next(record.getMessage() for record in caplog.records if "issued" in record.getMessage())
        for part in (
            WEB,
            "node node-a",
            serial(plane.root, answer.chain[0]),
            f"{leaf.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}",
        ):
            assert part in line
        assert plane.metric('nodeagent_controlplane_ca_requests_total{code="OK",reason=""} 1.0')


def bad_signature() -> str:
    """A request whose key was exchanged after signing."""
    from base64 import b64decode, b64encode

    lines = csr(uri(WEB)).strip().splitlines()
    der = bytearray(b64decode("".join(lines[1:-1])))
    der[-1] ^= 1
    return "\n".join([lines[0], b64encode(bytes(der)).decode(), lines[-1]])


HEADER = "-----BEGIN CERTIFICATE REQUEST-----"
CA_CONSTRAINTS = x509.BasicConstraints(ca=True, path_length=None)
BAD_CSRS: dict[str, tuple[Any, str, str]] = {
    "empty": (lambda: "", "INVALID_ARGUMENT", "not one PKCS#10 request"),
    "garbage": (lambda: f"{HEADER}\nAAAA\n{HEADER.replace('BEGIN', 'END')}", "INVALID_ARGUMENT", "cannot be read"),
    "two": (lambda: csr() + csr(), "INVALID_ARGUMENT", "not one PKCS#10 request"),
    "trailing": (lambda: csr() + "more", "INVALID_ARGUMENT", "not one PKCS#10 request"),
    "large": (lambda: csr() + "\n" * 20_000, "INVALID_ARGUMENT", "at most 16384"),
    "signature": (bad_signature, "INVALID_ARGUMENT", "signature"),
    "p384": (lambda: csr(key=ec.generate_private_key(ec.SECP384R1())), "INVALID_ARGUMENT", "secp384r1; use P-256"),
    "short rsa": (lambda: csr(key=pki.rsa_key(1024)), "INVALID_ARGUMENT", "1024 bits"),
    "dns san": (lambda: csr(x509.DNSName("istiod.istio-system.svc")), "INVALID_ARGUMENT", "type DNSName"),
    "ip san": (lambda: csr(x509.IPAddress(ipaddress.ip_address("10.0.0.1"))), "INVALID_ARGUMENT", "type IPAddress"),
    "two uris": (lambda: csr(uri(WEB), uri(DB)), "INVALID_ARGUMENT", "2 subject alternative names"),
    "uri and dns": (lambda: csr(uri(WEB), x509.DNSName("web")), "INVALID_ARGUMENT", "2 subject alternative names"),
    "foreign uri": (lambda: csr(uri(DB)), "PERMISSION_DENIED", f"asks for '{DB}'"),
    "case": (lambda: csr(uri(WEB.upper())), "PERMISSION_DENIED", "asks for"),
    "nul": (lambda: csr(uri(f"{WEB}\0.evil")), "PERMISSION_DENIED", "asks for"),
    "ca": (lambda: csr(uri(WEB), extensions=[CA_CONSTRAINTS]), "INVALID_ARGUMENT", "asks to be a CA"),
}  # fmt: skip


class TestRefusals:
    @pytest.mark.parametrize("name", BAD_CSRS)
    async def test_bad_csrs(self, plane: CaPlane, name: str) -> None:
        make, code, details = BAD_CSRS[name]
        answer = await plane.ask(make(), impersonate=WEB)
        assert (answer.code, details in answer.details) == (code, True), answer.details

    @pytest.mark.parametrize(
        ("wanted", "code", "details"),
        [
            (None, "INVALID_ARGUMENT", "node node-a has no identity of its own"),
            ("", "INVALID_ARGUMENT", "not a string that names"),
            (7, "INVALID_ARGUMENT", "not a string that names"),
            ("https://cluster.local/ns/default/sa/web", "INVALID_ARGUMENT", "does not begin with spiffe://"),
            ("spiffe://cluster.local/ns/default/sa/..", "INVALID_ARGUMENT", "service account '..'"),
            ("spiffe://cluster.local/ns/default/sa/web/x", "INVALID_ARGUMENT", "not of the form"),
            (
                "spiffe://other.example/ns/default/sa/web",
                "PERMISSION_DENIED",
                "trust domain cluster.local, old",
            ),
            (DB, "PERMISSION_DENIED", "no pod of service account data/db is known on node node-a"),
            ("spiffe://cluster.local/ns/nowhere/sa/web", "PERMISSION_DENIED", "no pod of service account"),
        ],
    )
    async def test_identities_that_a_node_may_not_have(
        self, plane: CaPlane, wanted: Any, code: str, details: str
    ) -> None:
        answer = await plane.ask(csr(), impersonate=wanted)
        assert (answer.code, details in answer.details) == (code, True), answer.details

    async def test_a_pod_that_goes_takes_its_identity_along(self, plane: CaPlane) -> None:
        assert (await plane.ask(csr(), impersonate=WEB)).code == "OK"
        (plane.root / "config" / "pods.yaml").write_text("")
        async with asyncio.timeout(5):
            while (await plane.ask(csr(), impersonate=WEB)).code == "OK":
                await asyncio.sleep(0.1)

    @pytest.mark.parametrize(
        ("authorization", "details"),
        [
            (None, "no token"),
            ("Bearer", "not of the form"),
            ("Bearer  ", "not of the form"),
            ("Basic dXNlcjpwYXNz", "not of the form"),
            ("Bearer wrong-token-of-nobody", "of no kind that is accepted"),
            (f"Bearer {TOKENS['node-a']}x", "of no kind that is accepted"),
            ("Bearer " + "x" * 17_000, "more than 16384 bytes"),
        ],
    )
    async def test_bad_tokens(self, plane: CaPlane, authorization: str | None, details: str) -> None:
        answer = await plane.ask(csr(), token=None, impersonate=WEB, authorization=authorization)
        # What is too long for a header list is refused by gRPC itself.
        assert answer.code in ("UNAUTHENTICATED", "RESOURCE_EXHAUSTED"), answer
        assert answer.code == "RESOURCE_EXHAUSTED" or details in answer.details

    @pytest.mark.parametrize(
        ("change", "details"),
        [
            ({"exp": 1}, "has expired"),
            ({"nbf": 4_000_000_000}, "not valid yet"),
            ({"aud": "elsewhere"}, "not for audience 'istio-ca'"),
            ({"iss": "https://evil.example"}, "issuer is not"),
            ({"sub": "system:node:node-a"}, "sub is not system:serviceaccount"),
            ({"sub": "system:serviceaccount:a:b:c"}, "sub is not system:serviceaccount"),
            ({"kid": "unknown"}, "not in the JWKS"),
            ({"drop": ("exp",)}, '"exp"'),
            ({"drop": ("aud",)}, '"aud"'),
        ],
    )
    async def test_bad_service_account_tokens(self, plane: CaPlane, change: Any, details: str) -> None:
        answer = await plane.ask(csr(), plane.issuer.token("default/web", **change))
        assert (answer.code, details in answer.details) == ("UNAUTHENTICATED", True), answer.details

    async def test_a_token_of_another_key_or_none(self, plane: CaPlane) -> None:
        forged = plane.issuer.token("default/web", key=pki.rsa_key())
        unsigned = plane.issuer.token("default/web", algorithm="none")
        symmetric = plane.issuer.token("default/web", key="s" * 64, algorithm="HS256")
        for token in (forged, unsigned, symmetric):
            assert (await plane.ask(csr(), token)).code == "UNAUTHENTICATED"

    async def test_an_account_that_is_no_node_agents_has_its_own_identity_only(self, plane: CaPlane) -> None:
        answer = await plane.ask(csr(), plane.issuer.token("default/other", node="node-a"), WEB)
        assert answer.code == "PERMISSION_DENIED"
        assert "is no node agent's" in answer.details

    async def test_a_node_agent_whose_node_is_not_known(self, plane: CaPlane) -> None:
        for token in (plane.issuer.token(AGENT), plane.issuer.token(AGENT, pod="gone")):
            answer = await plane.ask(csr(), token, WEB)
            assert answer.code == "PERMISSION_DENIED"
            assert "node of its pod is not known" in answer.details

    async def test_too_long_a_lifetime(self, plane: CaPlane) -> None:
        answer = await plane.ask(csr(), impersonate=WEB, lifetime=8 * 86400)
        assert (answer.code, "--max-cert-lifetime" in answer.details) == ("INVALID_ARGUMENT", True)
        assert (await plane.ask(csr(), impersonate=WEB, lifetime=-1)).code == "INVALID_ARGUMENT"

    async def test_refusals_are_logged_and_counted(
        self, plane: CaPlane, caplog: pytest.LogCaptureFixture
    ) -> None:
        await plane.ask(csr(), impersonate=DB)
        assert any("PERMISSION_DENIED" in line and DB in line for line in caplog.messages)
        name = "nodeagent_controlplane_ca_requests_total"
        assert plane.metric(name + '{code="PERMISSION_DENIED",reason="placement"} 1.0')

    async def test_a_burst_is_bounded(self, plane: CaPlane) -> None:
        answers = await asyncio.gather(*(plane.ask("", impersonate=WEB) for _ in range(20)))
        assert {answer.code for answer in answers} == {"INVALID_ARGUMENT"}
        bucket = plane.plane.ca._service._gate._callers["node node-a"]  # type: ignore[union-attr]
        bucket.level = 0
        answer = await plane.ask(csr(), impersonate=WEB)
        assert (answer.code, "node node-a: more than 50" in answer.details) == ("RESOURCE_EXHAUSTED", True)
        assert (await plane.ask(csr(), TOKENS["node-b"], DB)).code == "OK"


class TestKeysThatChange:
    async def test_node_tokens_are_read_again(self, plane: CaPlane) -> None:
        assert (await plane.ask(csr(), impersonate=WEB)).code == "OK"
        write_token(plane.root / "tokens", "node-a", "another-token-of-node-a")
        await asyncio.sleep(0.15)
        assert (await plane.ask(csr(), "another-token-of-node-a", WEB)).code == "OK"
        assert (await plane.ask(csr(), impersonate=WEB)).code == "UNAUTHENTICATED"

    async def test_the_jwks_is_read_again(self, plane: CaPlane) -> None:
        other = pki.rsa_key()
        token = plane.issuer.token("default/web", key=other, kid="kid-2")
        assert (await plane.ask(csr(), token)).code == "UNAUTHENTICATED"
        plane.issuer.publish({"kid-1": plane.issuer.key, "kid-2": other})
        assert (await plane.ask(csr(), token)).code == "OK"
        plane.issuer.path.write_text("{")
        assert (await plane.ask(csr(), token)).code == "OK"


async def test_tokens_are_not_taken_in_plain_text(tmp_path: Path) -> None:
    """The plain text listener has no CA."""
    import grpc

    from nodeagent.app.controlplane import ControlPlane
    from nodeagent.config.controlplane import ControlPlaneConfig
    from nodeagent.proto import ca_pb2, ca_pb2_grpc

    async with ca_plane(tmp_path) as found:
        config = ControlPlaneConfig(
            (found.root / "config",),
            listen=("127.0.0.1:0",),
            listen_tls=("127.0.0.1:0",),
            ca=found.config,
            admin=tmp_path / "b.sock",
            drain_seconds=0.1,
        )
        plane = ControlPlane(config)
        await plane.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{plane.xds.ports[0]}") as channel:
                stub = ca_pb2_grpc.IstioCertificateServiceStub(channel)
                with pytest.raises(grpc.aio.AioRpcError) as failure:
                    await stub.CreateCertificate(ca_pb2.IstioCertificateRequest(csr=csr()), timeout=5)
            assert failure.value.code() is grpc.StatusCode.UNIMPLEMENTED
        finally:
            await plane.stop()


def san(answer: Any) -> str:
    assert answer.code == "OK", answer.details
    leaf = x509.load_pem_x509_certificate(answer.chain[0].encode())
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return str(next(iter(names)).value)


def serial(folder: Path, leaf: str) -> str:
    """The serial number of a certificate, as openssl prints it."""
    require("openssl")
    (folder / "leaf.pem").write_text(leaf)
    command = ["openssl", "x509", "-in", str(folder / "leaf.pem"), "-noout", "-serial"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return printed.strip().removeprefix("serial=").lower()


def openssl_verifies(folder: Path, leaf: str, bundle: str, between: str = "") -> bool:
    (folder / "leaf.pem").write_text(leaf)
    (folder / "bundle.pem").write_text(bundle)
    (folder / "between.pem").write_text(between)
    untrusted = ["-untrusted", str(folder / "between.pem")] if between else []
    command = [
        "openssl",
        "verify",
        "-x509_strict",
        "-purpose",
        "sslserver",
        "-CAfile",
        str(folder / "bundle.pem"),
    ]
    done = subprocess.run([*command, *untrusted, str(folder / "leaf.pem")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    return True
