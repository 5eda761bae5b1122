"""Keys, requests, certificates and tokens that tests make by hand, right and wrong ones."""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from nodeagent.controlplane.ca.authority import Authority
from nodeagent.controlplane.ca.folder import load_authority
from nodeagent.controlplane.ca.selfmade import ensure_root

WEB = "spiffe://cluster.local/ns/default/sa/web"


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def p256() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def uri(text: str) -> x509.GeneralName:
    return x509.UniformResourceIdentifier(text)


def csr(
    *names: x509.GeneralName,
    key: Any = None,
    digest: Any = None,
    extensions: Iterable[x509.ExtensionType] = (),
    common_name: str = "",
) -> str:
    """A request in PEM."""
    subject = [x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)] if common_name else []
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(subject))
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    signed = builder.sign(key or p256(), digest or hashes.SHA256())
    return signed.public_bytes(Encoding.PEM).decode()


def rsa_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


def key_pem(key: Any) -> bytes:
    return bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def authority(folder: Path, trust_domain: str = "cluster.local") -> Authority:
    """A self-made CA in a folder."""
    ensure_root(folder, trust_domain, now())
    return load_authority(folder, now())


def leaf(
    signer: Authority,
    key: Any,
    *names: x509.GeneralName,
    lifetime: float = 3600.0,
    at: datetime.datetime | None = None,
) -> tuple[str, ...]:
    """A chain as a CA answers it."""
    issued = signer.issue(key.public_key(), names, datetime.timedelta(seconds=lifetime), at or now())
    return issued.chain


class Issuer:
    """Signs service account tokens and publishes its JWKS in a file."""

    name = "https://kubernetes.default.svc"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.key = rsa_key()
        self.publish({"kid-1": self.key})

    def publish(self, keys: Mapping[str, Any]) -> None:
        entries = []
        for kid, key in keys.items():
            jwk = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key()))
            entries.append({**jwk, "kid": kid, "alg": "RS256", "use": "sig"})
        scratch = self.path.with_suffix(".new")
        scratch.write_text(json.dumps({"keys": entries}))
        scratch.replace(self.path)

    def token(
        self,
        account: str = "default/web",
        *,
        pod: str = "",
        node: str = "",
        key: Any = None,
        kid: str = "kid-1",
        algorithm: str = "RS256",
        drop: Sequence[str] = (),
        **claims: Any,
    ) -> str:
        """A token as Kubernetes projects it; `claims` replace what it would say."""
        namespace, _, name = account.partition("/")
        bound: dict[str, Any] = {"namespace": namespace, "serviceaccount": {"name": name}}
        bound |= {"pod": {"name": pod}} if pod else {}
        bound |= {"node": {"name": node}} if node else {}
        body = {
            "iss": self.name,
            "aud": ["istio-ca"],
            "sub": f"system:serviceaccount:{namespace}:{name}",
            "iat": int(time.time()),
            "exp": int(time.time()) + 600,
            "kubernetes.io": bound,
            **claims,
        }
        for claim in drop:
            del body[claim]
        used = None if algorithm == "none" else key or self.key
        return jwt.encode(body, used, algorithm=algorithm, headers={"kid": kid})
