"""The Bookinfo demo: a mesh on this machine, shown and checked step by step.

Runs `nodeagent` as a user would. The last line is `demo: ok`, or `demo: FAILED: why`; the exit status agrees.
The lab is taken down whatever happens.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).resolve().parent
NODEAGENT: Final = (sys.executable, "-m", "nodeagent.cli.main", "lab")
# A lab of its own, so that the demo leaves alone what the user has up.
LAB: Final = os.environ.get("DEMO_LAB", "bookinfo-demo")
REQUESTS: Final = 1000
# 200 of 1,000 are expected at v3; six standard deviations of the binomial distribution are 76.
EXPECTED_V3: Final = 200
TOLERANCE: Final = 60
REVIEWS: Final = "http://reviews:9080/"
BATCH: Final = 20
# The load under which the route changes: bounded, though it is ended much sooner.
LOAD_REQUESTS: Final = 20_000
LOAD_RATE: Final = 200
LOAD_SECONDS: Final = 20.0
EFFECT_SECONDS: Final = 10.0
RECOVERY_SECONDS: Final = 20.0
METRICS_PORT: Final = 15020


class DemoError(Exception):
    """A step did not show what it should; the text is the `why` of the last line."""


def say(text: str) -> None:
    """Print a line of narration at once."""
    print(text, flush=True)


def step(title: str) -> None:
    """Begin a step."""
    say(f"\n\033[1m{title}\033[0m" if sys.stdout.isatty() else f"\n{title}")


def nodeagent(*arguments: str, check: bool = True, shown: bool = False) -> str:
    """Run `nodeagent lab VERB --name LAB ...` and return what it printed."""
    verb, *rest = arguments
    command = [*NODEAGENT, verb, "--name", LAB, *rest]
    stderr = None if shown else subprocess.PIPE
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=stderr, text=True, timeout=150, check=False)
    if check and done.returncode != 0:
        said = (done.stderr or "").strip() or done.stdout.strip() or "see above"
        raise DemoError(f"`nodeagent lab {' '.join(arguments)}` ended with {done.returncode}: {said}")
    return done.stdout


def curl(pod: str, *arguments: str, check: bool = True) -> str:
    """Run the machine's own curl in a pod."""
    return nodeagent("exec", pod, "--", "curl", "-sS", "--max-time", "10", *arguments, check=check)


def answers(pod: str, url: str, *arguments: str, check: bool = True) -> list[dict[str, Any]]:
    """Fetch a URL, or a range of them as `[1-1000]`, with one curl process; returns the echoed requests."""
    text = curl(pod, *arguments, "-w", "\n", url, check=check)
    found = []
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            if isinstance(answer := json.loads(line), dict):
                found.append(answer)
    return found


def pods_of(replies: list[dict[str, Any]]) -> Counter[str]:
    """Count which pods answered."""
    return Counter(reply.get("pod", "nobody") for reply in replies)


def written(counts: Counter[str]) -> str:
    """Write counts as text."""
    return ", ".join(f"{pod} {count}" for pod, count in sorted(counts.items())) or "nobody"


class Load:
    """One curl that asks reviews some hundred times a second, and when each answer came from whom."""

    def __init__(self, pod: str) -> None:
        url = f"{REVIEWS}?n=[1-{LOAD_REQUESTS}]"
        curl = ["curl", "-sS", "-N", "--rate", f"{LOAD_RATE}/s", "-w", "\n%{http_code}\n", url]
        command = [*NODEAGENT, "exec", "--name", LAB, pod, "--", *curl]
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, bufsize=1
        )
        self._seen: list[tuple[float, str]] = []
        self._reader = threading.Thread(target=self._read, daemon=True)

    @property
    def count(self) -> int:
        """Answers so far."""
        return len(self._seen)

    @property
    def failed(self) -> int:
        """Answers that were none of reviews with status 200."""
        return sum(not pod.startswith("reviews-") for _, pod in self._seen)

    def last_of(self, wanted: Callable[[str], bool]) -> float | None:
        """When the last answer by a wanted pod came (monotonic seconds), or None."""
        return max((when for when, pod in self._seen if wanted(pod)), default=None)

    def wait_for(self, count: int) -> None:
        """Wait until so many answers have come."""
        wait_for(
            lambda: self.count >= count, LOAD_SECONDS, f"only {self.count} of {count} requests were answered"
        )

    def _read(self) -> None:
        pod = "nobody"
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                pod = json.loads(line).get("pod", "nobody")
            elif line.strip():
                self._seen.append((time.monotonic(), pod if line.strip() == "200" else "nobody"))
                pod = "nobody"

    def __enter__(self) -> Load:
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(10)
        self._reader.join(10)


def status() -> dict[str, Any]:
    """Return the lab's state."""
    state: dict[str, Any] = json.loads(nodeagent("status", "-o", "json", check=False))
    return state


def node_of(state: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a node of the lab."""
    node: dict[str, Any] = next(node for node in state["nodes"] if node["name"] == name)
    return node


def show_capture() -> None:
    """One unmodified curl from a pod of the mesh to a service of the mesh."""
    step("1. Unmodified curl in productpage asks http://reviews:9080/")
    (reply,) = answers("productpage", REVIEWS)
    say(f"   answered by {reply['pod']}, which saw: {reply['method']} {reply['path']} for {reply['host']}")
    if reply["pod"] not in ("reviews-v1", "reviews-v3"):
        raise DemoError(f"reviews was answered by {reply['pod']}, the route allows reviews-v1 and reviews-v3")


def show_split() -> Counter[str]:
    """The weights of the route over many requests."""
    step(f"2. {REQUESTS} requests, of which the route sends 80 % to v1 and 20 % to v3")
    began = time.monotonic()
    counts = pods_of(answers("productpage", f"{REVIEWS}?n=[1-{REQUESTS}]"))
    say(f"   {written(counts)} ({time.monotonic() - began:.1f} s, one curl)")
    if counts["reviews-v1"] + counts["reviews-v3"] != REQUESTS:
        raise DemoError(f"of {REQUESTS} requests to reviews came back: {written(counts)}")
    if abs(counts["reviews-v3"] - EXPECTED_V3) > TOLERANCE:
        raise DemoError(f"v3 got {counts['reviews-v3']} of {REQUESTS}, not {EXPECTED_V3} +- {TOLERANCE}")
    return counts


def show_header_match() -> None:
    """A route by header."""
    step("3. User jason is routed to v2 by the header end-user")
    counts = pods_of(answers("productpage", f"{REVIEWS}?n=[1-{BATCH}]", "-H", "end-user: jason"))
    say(f"   {written(counts)}")
    if counts != {"reviews-v2": BATCH}:
        raise DemoError(f"jason should see only reviews-v2, saw {written(counts)}")


def show_metrics(counted: Counter[str]) -> None:
    """The agent's counters agree with what curl counted."""
    step("4. The agent of node-a has counted them (istio_requests_total, reporter=source)")
    node = node_of(status(), "node-a")["ips"][0]
    deadline = time.monotonic() + EFFECT_SECONDS
    while True:
        text = curl("outsider", f"http://{node}:{METRICS_PORT}/stats/prometheus")
        seen = requests_by_workload(text)
        if all(seen[pod] >= count for pod, count in counted.items()):
            break
        if time.monotonic() > deadline:
            raise DemoError(f"metrics say {written(seen)}, curl counted {written(counted)}")
        time.sleep(0.2)
    for workload, count in sorted(seen.items()):
        if workload.startswith("reviews"):
            say(f'   istio_requests_total{{reporter="source",destination_workload="{workload}",...}} {count}')


def requests_by_workload(text: str) -> Counter[str]:
    """Add up istio_requests_total of the sending side (answers with status 200) by destination workload."""
    counts: Counter[str] = Counter()
    for labels, value in re.findall(r"^istio_requests_total\{(.*)\} ([0-9.e+]+)$", text, re.MULTILINE):
        label = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        if label.get("reporter") == "source" and label.get("response_code") == "200":
            counts[label.get("destination_workload", "unknown")] += int(float(value))
    return counts


def show_access_log() -> None:
    """The last lines of the access log."""
    step("5. Its access log has a line for each")
    log = Path(node_of(status(), "node-a")["agent"]["accessLog"])
    deadline = time.monotonic() + EFFECT_SECONDS
    while len(lines := reviews_lines(log)) < REQUESTS:
        if time.monotonic() > deadline:
            raise DemoError(f"the access log {log} has {len(lines)} lines of reviews, not {REQUESTS}")
        time.sleep(0.2)
    for line in lines[-2:]:
        say(f"   {line}")


def reviews_lines(log: Path) -> list[str]:
    """Return the log's lines of requests to reviews."""
    return [line for line in log.read_text().splitlines() if "reviews:9080" in line] if log.exists() else []


def show_change() -> None:
    """A change of the route takes effect while requests run, and none of them fails."""
    step("6. A live change, under load: `nodeagent lab apply reviews-all-v3.yaml` gives everybody v3")
    with Load("productpage") as load:
        load.wait_for(100)
        began = time.monotonic()
        said = nodeagent("apply", str(HERE / "reviews-all-v3.yaml")).strip()
        applied = time.monotonic() - began
        load.wait_for(load.count + 300)
        last = load.last_of(lambda pod: pod != "reviews-v3")
        effect = max(0.0, last - began) if last else 0.0
    say(f"   {said} (the command took {applied:.1f} s)")
    say(f"   the last answer by v1 came {effect:.2f} s after it began")
    say(f"   {load.count} requests ran meanwhile, {load.failed} failed")
    if load.failed:
        raise DemoError(f"{load.failed} of {load.count} requests failed during the change of the route")
    if effect > EFFECT_SECONDS:
        raise DemoError(f"the changed route came into force only after {effect:.1f} s")
    counts = pods_of(answers("productpage", f"{REVIEWS}?n=[1-{BATCH}]"))
    if counts != {"reviews-v3": BATCH}:
        raise DemoError(f"after the change everybody should see reviews-v3, saw {written(counts)}")


def show_outsider() -> None:
    """A pod that is not of the mesh still reaches services."""
    step("7. A pod outside of the mesh reaches the same service by its name and address")
    counts = pods_of(answers("outsider", f"{REVIEWS}?n=[1-{BATCH}]"))
    say(f"   {written(counts)} (no route applies to it)")
    if counts.total() != BATCH or any(not pod.startswith("reviews-") for pod in counts):
        raise DemoError(f"the outsider's {BATCH} requests were answered by {written(counts)}")


def show_recovery() -> None:
    """An agent is killed; the node's pods are refused, never let past the mesh, and served again soon."""
    step("8. kill -9 of node-a's agent: it comes back, and the pods with it")
    pid = node_of(status(), "node-a")["agent"]["pid"]
    os.kill(pid, signal.SIGKILL)
    began = time.monotonic()
    wrong: Counter[str] = Counter()

    def back() -> bool:
        counts = pods_of(answers("productpage", f"{REVIEWS}?n=[1-{BATCH}]", "--fail-early", check=False))
        wrong.update(pod for pod in counts if pod != "reviews-v3")
        return counts == {"reviews-v3": BATCH}

    wait_for(back, RECOVERY_SECONDS, "productpage cannot reach reviews since the agent was killed")
    if wrong:
        raise DemoError(f"while the agent was away, requests got past the route: {written(wrong)}")
    now = wait_for_pid(pid)
    say(f"   pid {pid} is now {now}; routed again {time.monotonic() - began:.1f} s after the kill")


def wait_for_pid(old: int) -> int:
    """Return the pid of node-a's new agent."""

    def changed() -> bool:
        return node_of(status(), "node-a")["agent"]["pid"] not in (None, old)

    wait_for(changed, RECOVERY_SECONDS, "node-a's agent was not started again")
    pid: int = node_of(status(), "node-a")["agent"]["pid"]
    return pid


def wait_for(condition: Callable[[], bool], seconds: float, problem: str) -> None:
    """Try until a condition holds; DemoError when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise DemoError(f"{problem} within {seconds:g} s")
        time.sleep(0.1)


@contextlib.contextmanager
def lab() -> Iterator[None]:
    """Have the lab up for a while; nothing is left of it afterwards."""
    nodeagent("down", check=False)  # what a killed demo may have left
    say("Bringing up Bookinfo on two nodes (deploy/samples/bookinfo/lab.yaml)")
    try:
        say(nodeagent("up", str(HERE / "lab.yaml"), shown=True).rstrip())
        yield
    finally:
        step("Taking it down")
        say("   " + nodeagent("down").strip())


def run() -> None:
    """All steps in order."""
    with lab():
        show_capture()
        counted = show_split()
        show_header_match()
        show_metrics(counted)
        show_access_log()
        show_change()
        show_outsider()
        show_recovery()


def main() -> int:
    """Run the demo; returns the exit status."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        run()
    except DemoError as error:
        say(f"\ndemo: FAILED: {' '.join(str(error).split())}")
        return 1
    except KeyboardInterrupt:
        say("\ndemo: FAILED: interrupted")
        return 130
    except Exception as error:
        say(f"\ndemo: FAILED: {type(error).__name__}: {' '.join(str(error).split())}")
        return 1
    say("\ndemo: ok")
    return 0


if __name__ == "__main__":
    sys.exit(main())
