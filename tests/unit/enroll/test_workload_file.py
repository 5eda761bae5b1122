"""Workloads from a file: what is read, and that what is enrolled follows the file and the cgroups."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from harness import require, scratch_cgroup

from nodeagent.config.workloads import MachineWorkload, read_workloads
from nodeagent.dataplane.netns import NetworkNamespace
from nodeagent.dataplane.share import NamespaceShare
from nodeagent.enroll.enroller import EnrolledPod
from nodeagent.enroll.workload_file import WorkloadFile
from nodeagent.errors import ConfigError, NetnsError

GONE = "nodeagent-test-none.slice"


def _item(name: str = "web", **fields: object) -> str:
    values = {"name": name, "namespace": "shop", "cgroup": f"{GONE}/{name}.service"} | fields
    return "- " + "\n  ".join(f"{key}: {value}" for key, value in values.items()) + "\n"


def _write(path: Path, *items: str) -> None:
    path.write_text("workloads:\n" + "".join(items))


def test_a_file_says_all_there_is_to_say(tmp_path: Path) -> None:
    path = tmp_path / "workloads.yaml"
    _write(
        path,
        _item(),
        _item("vm-1.a", serviceAccount="vm", cgroup="/a.slice/", ports="[80, 8443]", failMode="open"),
        _item("api", ports="[80]", addresses="[10.0.0.5, 'fd00::5']"),
        _item("other", ports="[80]", addresses="[10.0.0.6]"),
    )
    first, second, third, _ = read_workloads(path)
    assert first == MachineWorkload("web", "shop", "default", f"{GONE}/web.service")
    assert second == MachineWorkload("vm-1.a", "shop", "vm", "a.slice", (80, 8443), fail_open=True)
    assert third.addresses == (bytes([10, 0, 0, 5]), bytes([0xFD, *[0] * 14, 5]))
    path.write_text("workloads: []")
    assert read_workloads(path) == ()


def test_the_example_is_what_can_be_read(tmp_path: Path) -> None:
    example = Path(__file__).parents[3] / "deploy" / "systemd" / "workloads.yaml"
    assert read_workloads(example) == ()
    path = tmp_path / "workloads.yaml"
    path.write_text(
        re.sub(r"^#(?=[- ] )", "", example.read_text(), flags=re.MULTILINE).replace(
            "workloads: []", "workloads:"
        )
    )
    (workload,) = read_workloads(path)
    assert (workload.ports, workload.cgroup) == ((80, 8443), "shop.slice/nginx.service")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "the file is empty"),
        ("workload: []", r"unknown field.*did you mean workloads"),
        ("workloads: {}", "must be a list"),
        ("workloads:\n- name: web\n  namespace: shop", r":2: workloads\[0\]: needs `cgroup`"),
        ("workloads:\n" + _item(port="[80]"), r"unknown field.*did you mean ports"),
        ("workloads:\n" + _item("Web"), "not a valid name"),
        ("workloads:\n" + _item(namespace="a.b"), "not a valid name"),
        ("workloads:\n" + _item(cgroup="/"), "below the root"),
        ("workloads:\n" + _item(cgroup="../init.scope"), "below the root"),
        ("workloads:\n" + _item(ports="[0]"), "not a port number"),
        ("workloads:\n" + _item(ports="[80, 80]"), r"ports\[1\]: is given twice"),
        ("workloads:\n" + _item(ports=str(list(range(1, 66)))), "more than 64"),
        ("workloads:\n" + _item(addresses="[localhost]"), "not an IP address"),
        ("workloads:\n" + _item(addresses="[127.0.0.1]"), "no address that others could reach"),
        ("workloads:\n" + _item(failMode="ajar"), "not one of open, closed"),
        ("workloads:\n" + _item() + _item(), "shop/web is given twice"),
        ("workloads:\n" + _item() + _item("api", cgroup=f"{GONE}/web.service"), "is shop/web's already"),
        ("workloads:\n" + _item(ports="[80]") + _item("api", ports="[80]"), "port 80 is shop/web's already"),
        ("workloads:\n" + "".join(_item(f"w{i}") for i in range(129)), "more than 128 workloads"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "workloads.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=why) as refused:
        read_workloads(path)
    assert str(path) in str(refused.value)


class Recorder:
    """A GroupEnroller that notes what it is told."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.pods: dict[str, tuple[EnrolledPod, NamespaceShare]] = {}
        self.refusing: set[str] = set()
        self.refusal: Exception = NetnsError("no room")

    async def add(self, pod: EnrolledPod, netns: NetworkNamespace) -> None:
        self.calls.append(f"add {pod.name}")
        if pod.name in self.refusing:
            raise self.refusal
        assert isinstance(netns, NamespaceShare)
        self.pods[pod.uid] = (pod, netns)

    async def remove(self, uid: str) -> None:
        self.calls.append(f"remove {uid}")
        if uid in self.pods:
            self.pods.pop(uid)[1].close()

    async def retire(self, uid: str) -> None:
        self.calls.append(f"retire {uid}")
        self.pods.pop(uid)[1].close()

    async def regrouped(self, uid: str) -> None:
        self.calls.append(f"regrouped {uid}")

    def synced(self) -> None:
        self.calls.append("synced")

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                await asyncio.sleep(0.005)

    async def told(self, *calls: str) -> None:
        """Until these are the calls since the last time."""
        await self.until(lambda: len(self.calls) >= len(calls))
        assert self.calls == list(calls)
        self.calls.clear()


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@asynccontextmanager
async def _following(path: Path) -> AsyncIterator[tuple[WorkloadFile, Recorder]]:
    require("root")
    before = _descriptors()
    recorder = Recorder()
    source = WorkloadFile(path, recorder)
    task = asyncio.create_task(source.run())
    try:
        yield source, recorder
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        for _, netns in recorder.pods.values():
            netns.close()
        # The watcher's thread closes its own.
        await recorder.until(lambda: _descriptors() <= before)


async def test_what_is_enrolled_follows_the_file(tmp_path: Path) -> None:
    path = tmp_path / "workloads.yaml"
    _write(path, _item(), _item("api", ports="[80]", failMode="open"))
    async with _following(path) as (source, recorder):
        await recorder.told("add web", "add api", "synced")
        pod, netns = recorder.pods["workloads/shop/api"]
        assert pod == EnrolledPod("workloads/shop/api", "api", "shop", "default", True)
        assert netns.share.ports == (80,)
        assert netns.share.cgroup == f"{GONE}/api.service"
        _write(path, _item(), _item("api", ports="[81]"))
        await recorder.told("retire workloads/shop/api", "add api")
        assert list(source.warnings()) == [
            f"workload shop/{name}: there is no cgroup {GONE}/{name}.service now" for name in ("web", "api")
        ]
        path.write_text("workloads: nonsense")
        await recorder.until(lambda: bool(source.last_error))
        assert f"{path}:1: workloads: must be a list" in source.last_error
        path.unlink()
        await recorder.until(lambda: "no such file" in source.last_error)
        assert len(recorder.pods) == 2, "the last good file is in force"
        _write(path, _item("api", ports="[81]"))
        await recorder.told("remove workloads/shop/web")
        assert not source.last_error


async def test_without_a_file_nothing_is_said_to_be_complete(tmp_path: Path) -> None:
    path = tmp_path / "workloads.yaml"
    async with _following(path) as (source, recorder):
        await recorder.until(lambda: bool(source.last_error))
        assert not source.synced
        _write(path, _item())
        await recorder.told("add web", "synced")


@pytest.mark.parametrize("refusal", [NetnsError("no room"), RuntimeError("a defect")])
async def test_one_that_is_refused_holds_up_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: Exception
) -> None:
    monkeypatch.setattr("nodeagent.enroll.workload_file.LOOK_SECONDS", 0.05)
    path = tmp_path / "workloads.yaml"
    _write(path, _item(), _item("api"))
    async with _following(path) as (source, recorder):
        recorder.refusing.add("web")
        recorder.refusal = refusal
        await recorder.until(lambda: recorder.calls.count("add web") > 1)
        assert set(recorder.pods) == {"workloads/shop/api"}
        assert source.counters.add_failures >= 1
        recorder.refusing.clear()
        await recorder.until(lambda: len(recorder.pods) == 2)
        recorder.refusing.add("web")
        _write(path, _item(ports="[80]"), _item("api"))
        await recorder.until(lambda: len(recorder.pods) == 1)
        _write(path, _item("api"))
        await recorder.until(lambda: recorder.calls[-1] == "remove workloads/shop/web")


async def test_a_cgroup_that_comes_and_goes_is_followed(tmp_path: Path) -> None:
    path = tmp_path / "workloads.yaml"
    with scratch_cgroup("slice") as group:
        unit = group.group.directory / "web.service"
        _write(path, _item(cgroup=f"{group.path}/web.service"))
        async with _following(path) as (_, recorder):
            await recorder.told("add web", "synced")
            try:
                for change in (unit.mkdir, unit.rmdir, unit.mkdir):
                    change()
                    await recorder.told("regrouped workloads/shop/web")
            finally:
                unit.rmdir()
