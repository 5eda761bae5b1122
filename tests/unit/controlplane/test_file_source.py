"""The file source: what is read, kept, reported and watched."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nodeagent.controlplane.report import Report, Severity
from nodeagent.controlplane.sources.base import Batch, ObjectKey
from nodeagent.controlplane.sources.documents import DocumentError, read_json, read_yaml
from nodeagent.controlplane.sources.files import FileSource
from nodeagent.errors import ConfigError


def service(name: str, port: int = 80, namespace: str = "") -> str:
    where = f", namespace: {namespace}" if namespace else ""
    return f"apiVersion: v1\nkind: Service\nmetadata: {{name: {name}{where}}}\nspec: {{ports: [{{port: {port}}}]}}\n"


def key(name: str, namespace: str = "default") -> ObjectKey:
    return ObjectKey("", "Service", namespace, name)


class Watched:
    """A source over a folder, with its batches."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.report = Report()
        self.source = FileSource([root], self.report)
        self._batches: AsyncIterator[Batch] | None = None

    async def load(self) -> dict[ObjectKey, int]:
        batch = await self.source.load()
        return {raw.key: raw.body["spec"]["ports"][0]["port"] for raw in batch.changed}

    async def next(self, timeout: float = 2) -> Batch:
        """The next batch, within a time well under the source's own rescan."""
        if self._batches is None:
            self._batches = self.source.watch()
        return await asyncio.wait_for(anext(self._batches), timeout)

    async def changed(self) -> dict[str, int]:
        batch = await self.next()
        return {raw.key.name: raw.body["spec"]["ports"][0]["port"] for raw in batch.changed}

    def errors(self) -> list[str]:
        return [str(issue) for issue in self.report if issue.severity is Severity.ERROR]


@pytest.fixture
async def watched(tmp_path: Path) -> AsyncIterator[Watched]:
    root = tmp_path / "config"
    root.mkdir()
    found = Watched(root)
    yield found
    found.source.close()
    if found._batches is not None:
        await found._batches.aclose()  # type: ignore[attr-defined]


def replace(path: Path, text: str) -> None:
    scratch = path.parent.parent / "scratch"
    scratch.write_text(text)
    scratch.replace(path)


async def test_folders_are_read_recursively(watched: Watched) -> None:
    (watched.root / "deep" / "er").mkdir(parents=True)
    (watched.root / "a.yaml").write_text(f"---\n{service('a')}---\n---\n{service('b', namespace='shop')}")
    (watched.root / "deep" / "er" / "c.yml").write_text(service("c"))
    body = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "d"},
        "spec": {"ports": [{"port": 1}]},
    }
    (watched.root / "d.json").write_text(json.dumps({"kind": "List", "apiVersion": "v1", "items": [body]}))
    (watched.root / "notes.txt").write_text("not configuration")
    (watched.root / ".hidden.yaml").write_text(service("hidden"))
    assert set(await watched.load()) == {key("a"), key("b", "shop"), key("c"), key("d")}
    assert not watched.errors()


async def test_a_single_file_is_a_root(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(service("a"))
    (tmp_path / "b.yaml").write_text(service("b"))
    batch = await FileSource([tmp_path / "a.yaml"], Report()).load()
    assert [raw.key for raw in batch.changed] == [key("a")]


def test_missing_root_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere: there is no such file or folder"):
        FileSource([tmp_path / "nowhere"], Report())


async def test_sources_name_file_and_line(watched: Watched) -> None:
    file = watched.root / "a.yaml"
    file.write_text(f"# comment\n---\n{service('a')}---\n{service('b')}")
    batch = await watched.source.load()
    assert [raw.source for raw in batch.changed] == [f"{file}:3", f"{file}:8"]


async def test_changes_are_seen(watched: Watched) -> None:
    file = watched.root / "a.yaml"
    file.write_text(service("a") + "---\n" + service("b"))
    await watched.load()
    replace(file, service("a", 81) + "---\n" + service("b"))
    assert await watched.changed() == {"a": 81}
    file.write_text(service("b") + "---\n" + service("c"))
    batch = await watched.next()
    assert batch.removed == (key("a"),)
    assert "c" in {raw.key.name for raw in batch.changed}
    file.unlink()
    assert (await watched.next()).removed == (key("b"), key("c"))


async def test_new_folders_are_watched(watched: Watched) -> None:
    await watched.load()
    (watched.root / "new").mkdir()
    (watched.root / "new" / "a.yaml").write_text(service("a"))
    assert await watched.changed() == {"a": 80}
    (watched.root / "new" / "a.yaml").write_text(service("a", 82))
    assert await watched.changed() == {"a": 82}


async def test_a_file_written_in_parts_is_taken_once_whole(watched: Watched) -> None:
    await watched.load()
    text = service("a") + "---\n" + service("b")
    with (watched.root / "a.yaml").open("w") as file:
        for part in (text[:30], text[30:90], text[90:]):
            file.write(part)
            file.flush()
            await asyncio.sleep(0.01)
    assert await watched.changed() == {"a": 80, "b": 80}
    assert not watched.errors()


async def test_touching_a_file_changes_nothing(watched: Watched) -> None:
    file = watched.root / "a.yaml"
    file.write_text(service("a"))
    await watched.load()
    os.utime(file)
    with pytest.raises(TimeoutError):
        await watched.next(0.4)


async def test_broken_file_keeps_its_last_good_objects(watched: Watched) -> None:
    file = watched.root / "a.yaml"
    file.write_text(service("a"))
    await watched.load()
    replace(file, service("a", 81) + "---\nkind: [broken\n")
    replace(watched.root / "other.yaml", service("other"))
    assert await watched.changed() == {"other": 80}
    (error,) = watched.errors()
    assert error.startswith(f"{file}:7: not valid YAML: while parsing a flow sequence")
    assert "its 1 last good objects stay in force" in error
    replace(file, service("a", 82))
    assert await watched.changed() == {"a": 82}
    assert not watched.errors()


async def test_broken_object_leaves_the_others(watched: Watched) -> None:
    file = watched.root / "a.yaml"
    file.write_text("kind: Service\nmetadata: {name: x}\n---\n" + service("a"))
    assert set(await watched.load()) == {key("a")}
    assert watched.errors() == [f"{file}:1: Service: apiVersion: required, but missing"]


async def test_first_of_two_definitions_stays(watched: Watched) -> None:
    first, second = watched.root / "a.yaml", watched.root / "b.yaml"
    first.write_text(service("a", 1))
    second.write_text("\n" + service("a", 2))
    assert await watched.load() == {key("a"): 1}
    assert watched.errors() == [
        f"{second}:2: Service default/a: is defined twice; the one in {first}:1 stays in force, remove one of them"
    ]
    first.unlink()
    assert await watched.changed() == {"a": 2}
    assert not watched.errors()


async def test_later_definition_does_not_take_over(watched: Watched) -> None:
    (watched.root / "z.yaml").write_text(service("a", 1))
    await watched.load()
    (watched.root / "a.yaml").write_text(service("a", 2))
    (watched.root / "b.yaml").write_text(service("b"))
    assert await watched.changed() == {"b": 80}
    assert len(watched.errors()) == 1


async def test_creation_times_are_stable_and_in_order(watched: Watched) -> None:
    file = watched.root / "a.yaml"
    dated = service("c").replace("{name: c}", "{name: c, creationTimestamp: 2024-01-01T00:00:00Z}")
    file.write_text("---\n".join([service("a"), service("b"), dated]))
    first = {raw.key.name: raw.created for raw in (await watched.source.load()).changed}
    assert first["c"] == 1704067200 < first["a"] < first["b"]
    replace(file, "---\n".join([service("b", 81), service("a", 81)]))
    batch = await watched.next()
    assert {raw.key.name: raw.created for raw in batch.changed} == {"a": first["a"], "b": first["b"]}


async def test_symbolic_links_as_configmap_volumes_have_them(watched: Watched) -> None:
    """A ConfigMap volume swaps the link ..data; the files are links through it."""
    volume = watched.root
    for version, port in (("..1", 1), ("..2", 2)):
        (volume / version).mkdir()
        (volume / version / "a.yaml").write_text(service("a", port))
    (volume / "..data").symlink_to("..1")
    (volume / "a.yaml").symlink_to("..data/a.yaml")
    assert await watched.load() == {key("a"): 1}
    (volume / "..new").symlink_to("..2")
    (volume / "..new").replace(volume / "..data")
    assert await watched.changed() == {"a": 2}


async def test_links_out_of_the_folder_are_followed_and_watched(watched: Watched) -> None:
    outside = watched.root.parent / "outside"
    outside.mkdir()
    (outside / "a.yaml").write_text(service("a"))
    (watched.root / "linked").symlink_to(outside)
    (outside / "loop").symlink_to(watched.root)
    assert await watched.load() == {key("a"): 80}
    (outside / "a.yaml").write_text(service("a", 81))
    assert await watched.changed() == {"a": 81}


async def test_a_folder_that_is_replaced_is_watched_again(watched: Watched) -> None:
    (watched.root / "a.yaml").write_text(service("a"))
    await watched.load()
    shutil.rmtree(watched.root)
    batch = await watched.next(8)  # what follows waits for a watcher to end, and that looks every 5 s
    assert batch.removed == (key("a"),)
    watched.root.mkdir()
    (watched.root / "b.yaml").write_text(service("b"))
    batch = await watched.next(8)
    assert [raw.key for raw in batch.changed] == [key("b")]
    (watched.root / "c.yaml").write_text(service("c"))
    batch = await watched.next(8)
    assert [raw.key for raw in batch.changed] == [key("c")]


async def test_unreadable_text_is_named_with_its_line(watched: Watched) -> None:
    file = watched.root / "a.yaml"
    file.write_bytes(b"a: 1\nb: \xff\n")
    await watched.source.load()
    assert watched.errors() == [f"{file}:2: not UTF-8 text"]


async def test_too_large_file_is_refused(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nodeagent.controlplane.sources.files.MAX_FILE_BYTES", 1 << 20)
    (watched.root / "a.yaml").write_text("#" * (1 << 20) + "\n" + service("a"))
    await watched.source.load()
    assert watched.errors() == [f"{watched.root / 'a.yaml'}: larger than 1 MiB; split it"]


async def test_a_pipe_is_not_waited_for(watched: Watched) -> None:
    os.mkfifo(watched.root / "a.yaml")
    (watched.root / "b.yaml").write_text(service("b"))
    assert await asyncio.wait_for(watched.load(), 5) == {key("b"): 80}
    assert watched.errors() == [f"{watched.root}/a.yaml: is no regular file"]


async def test_description_tells_what_was_read(watched: Watched) -> None:
    (watched.root / "a.yaml").write_text(service("a"))
    (watched.root / "b.yaml").write_text("kind: [")
    await watched.load()
    found = watched.source.describe()
    good, bad = (found[str(watched.root / name)] for name in ("a.yaml", "b.yaml"))
    assert (good["objects"], good["error"], len(good["sha256"])) == (1, None, 64)
    assert "not valid YAML" in bad["error"]


# -- documents -------------------------------------------------------------------------------------------------

BROKEN = {
    "a: 1\nb: 2\na: 3\n": (3, "key 'a' is there twice; the first is on line 1"),
    "a: 1\n b: 2\n": (2, "not valid YAML: "),
    "- 1\n": (1, "expected a Kubernetes object with apiVersion, kind and metadata"),
    "a: 1\n---\nhello\n": (3, "expected a Kubernetes object with apiVersion, kind and metadata"),
    "a: &x {b: *x}\n": (1, "an alias leads back to what it is in"),
    "? [1]\n: 2\n": (1, "a key must be a string"),
    "a: !!python/object:os.system x\n": (1, "not valid YAML: could not determine a constructor"),
    "kind: List\nitems:\n- {}\n- 5\n": (4, "an item of a List must be an object"),
    "\ta: 1\n": (1, "not valid YAML: "),
}


@pytest.mark.parametrize("text", BROKEN, ids=[message for _, message in BROKEN.values()])
def test_broken_yaml(text: str) -> None:
    line, message = BROKEN[text]
    with pytest.raises(DocumentError) as raised:
        read_yaml(text)
    assert (raised.value.line, str(raised.value)[: len(message)]) == (line, message)


def test_alias_bomb_is_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    began = time.process_time()
    with pytest.raises(DocumentError, match="aliases stand for more than 100000 values"):
        read_yaml("\n".join(lines))
    assert time.process_time() - began < 0.1


def test_aliases_may_not_nest_what_would_be_refused_written_out() -> None:
    lines = ["a0: &a0 [x]", *(f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, 98))]
    assert len(read_yaml("\n".join(lines))) == 1
    lines += [f"a{n}: &a{n} [*a{n - 1}]" for n in range(98, 101)]
    with pytest.raises(DocumentError, match="nested more than 100 deep"):
        read_yaml("\n".join(lines))


def test_aliases_are_fine_where_they_save_writing() -> None:
    lines = ["kind: List", "x: &x {a: 1, b: [1, 2, 3]}", "items:", *["- {kind: A, spec: *x}"] * 1000]
    found = read_yaml("\n".join(lines))
    assert len(found) == 1000
    assert found[999].body["spec"] == {"a": 1, "b": [1, 2, 3]}


def test_yaml_scalars_are_as_kubernetes_reads_them() -> None:
    (found,) = read_yaml("a: 10:30\nb: 2024-01-01\nc: 1e3\nd: 0x10\ne: true\nf: ~\ng: '1'\n")
    assert found.body == {
        "a": "10:30",
        "b": "2024-01-01",
        "c": "1e3",
        "d": 16,
        "e": True,
        "f": None,
        "g": "1",
    }


def test_broken_json() -> None:
    with pytest.raises(DocumentError) as raised:
        read_json('{"a": 1,\n "b" 2}')
    assert (raised.value.line, str(raised.value)) == (2, "not valid JSON: Expecting ':' delimiter")
    with pytest.raises(DocumentError, match="key 'a' is there twice"):
        read_json('{"a": 1, "a": 2}')
    with pytest.raises(DocumentError, match="half of a surrogate pair"):
        read_json('{"a": ["\\uD800"]}')
    assert read_json('{"a": "\\uD83D\\ude00"}')[0].body == {"a": "\N{GRINNING FACE}"}
