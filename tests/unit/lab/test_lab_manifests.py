"""Reading of manifests: places, text, and errors."""

from pathlib import Path

import pytest

from nodeagent.errors import ConfigError
from nodeagent.lab.manifests import ObjectKey, parse_manifests, read_manifests

TWO = """# first
apiVersion: v1
kind: Service
metadata: {name: a}
---
# second
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: b, namespace: shop}
spec: {hosts: [a]}  # kept as written
"""


def test_objects_have_key_place_and_text() -> None:
    first, second = parse_manifests(TWO, Path("f.yaml"))
    assert first.key == ObjectKey("", "Service", "default", "a")
    assert second.key == ObjectKey("networking.istio.io", "VirtualService", "shop", "b")
    assert (first.place, second.place) == ("f.yaml:2", "f.yaml:7")
    assert second.text.startswith("apiVersion: networking")
    (again,) = parse_manifests(second.text, Path("copy.yaml"))
    assert again.body == second.body
    assert second.key.file_name == "virtualservice.networking.istio.io_shop_b.yaml"


def test_lists_are_opened_and_cluster_objects_have_no_namespace() -> None:
    text = "kind: List\napiVersion: v1\nitems:\n- {apiVersion: v1, kind: Namespace, metadata: {name: shop}}\n"
    (found,) = parse_manifests(text, Path("f.yaml"))
    assert found.key == ObjectKey("", "Namespace", "", "shop")
    assert str(found.key) == "Namespace shop"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "f.yaml:1: not valid YAML"),
        ("a: 1\nb: {c: 1, c: 2}", "f.yaml:2: not valid YAML: key 'c' is given twice"),
        ("- 1", "f.yaml:1: must be a Kubernetes object"),
        ("apiVersion: v1", "f.yaml:1: kind: missing"),
        ("kind: Service", "f.yaml:1: apiVersion: missing"),
        ("apiVersion: v1\nkind: Service", "f.yaml:1: Service: metadata: must be a mapping with a name"),
        ("apiVersion: v1\nkind: Service\nmetadata: {}", "Service: metadata.name: missing"),
        ("apiVersion: v1\nkind: Service\nmetadata: {name: 5}", "metadata.name: must be a string, is 5"),
        ("apiVersion: v1\nkind: Service\nmetadata: {name: ../x}", "'../x' is not a valid object name"),
        ("apiVersion: v1\nkind: S\nmetadata: {name: a, namespace: /}", "'/' is not a valid namespace"),
        ("--- \na: !!python/object:os.system {}", "not valid YAML"),
    ],
)
def test_errors_name_file_and_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        list(parse_manifests(text, Path("f.yaml")))
    assert message in str(caught.value)


def test_folders_are_read_and_doubles_refused(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.yaml").write_text(TWO)
    (tmp_path / "sub" / "c.yml").write_text("apiVersion: v1\nkind: Service\nmetadata: {name: c}\n")
    (tmp_path / "notes.txt").write_text("not read")
    assert [m.key.name for m in read_manifests([tmp_path])] == ["a", "b", "c"]
    with pytest.raises(
        ConfigError, match=r"Service default/c: is defined a second time; the first is at .*c.yml:1"
    ):
        read_manifests([tmp_path, tmp_path / "sub"])


def test_missing_and_empty_places_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.yaml: no such file"):
        read_manifests([tmp_path / "nothing.yaml"])
    with pytest.raises(ConfigError, match=r"no \.yaml, \.yml, \.json file in this folder"):
        read_manifests([tmp_path])
