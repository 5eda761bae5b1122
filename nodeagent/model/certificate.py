"""What the mesh reads from X.509 certificates, whoever reads it."""

from __future__ import annotations

from cryptography import x509


def san_names(
    holder: x509.Certificate | x509.CertificateSigningRequest,
) -> list[x509.GeneralName]:
    """All subject alternative names, in order; none if the extension is absent."""
    try:
        found = holder.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return list(found.value)


def serial_text(certificate: x509.Certificate) -> str:
    """The serial number in lower case hexadecimal, two digits a byte as `openssl x509 -serial` writes them."""
    number = certificate.serial_number
    return number.to_bytes(max(1, (number.bit_length() + 7) // 8), "big").hex()


def is_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether `issuer` signed the certificate: by names and signature, not by validity."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except Exception:  # several kinds: name mismatch, bad signature, unsupported key
        return False
    return True
