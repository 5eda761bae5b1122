"""How certificates are shown by /config_dump (in ztunnel's shape) and by `nodeagent get certs`."""

from __future__ import annotations

from typing import Any

from nodeagent.admin import config_dump
from nodeagent.admin.state import CertificateRow
from nodeagent.cli.get import LISTINGS

WEB = "spiffe://cluster.local/ns/default/sa/web"
MISSING = CertificateRow(WEB, "Unavailable", 0.0, 0.0, workloads=1, next_request=1.8e9, error="CA is down")


def cells(row: CertificateRow, *columns: str) -> list[str]:
    from nodeagent.admin.rows import as_json

    listing = LISTINGS["certificates"]
    known: dict[str, Any] = listing.columns | listing.wide
    return [known[column](as_json(row), False) for column in columns]


def test_one_that_is_there() -> None:
    row = CertificateRow(WEB, "Available", 1.8e9, 1.8e9 + 86400, "ab", 2)
    dumped = config_dump.certificate(row)
    assert dumped["state"] == "Available"
    assert dumped["certChain"] == [
        {
            "serialNumber": "ab",
            "validFrom": "2027-01-15T08:00:00Z",
            "expirationTime": "2027-01-16T08:00:00Z",
        }
    ]
    assert cells(row, "WORKLOADS", "VALID UNTIL", "ERROR") == ["2", "2027-01-16T08:00:00Z", ""]


def test_one_that_is_not_there_says_why() -> None:
    assert config_dump.certificate(MISSING) == {
        "identity": WEB,
        "state": "Unavailable: CA is down",
        "certChain": [],
    }
    assert cells(MISSING, "STATE", "EXPIRES IN", "VALID FROM", "ERROR") == [
        "Unavailable",
        "-",
        "-",
        "CA is down",
    ]
