"""What a message costs a deployed device: Flower starts a new process for each, which imports and maps the base anew.

    python -m benchmarks.cold_start                         # whisper-base, two SuperNodes, a SuperLink, all on this machine
    python -m benchmarks.cold_start --base random:whisper-nano

Prints for each training message the seconds from its arrival to the reply, those in which it trained, and the processor seconds
of its process, which do not depend on what else the machine does; then the memory of the two processes that trained at once.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import psutil

from fl.core.machine import available_cores, processor

ROOT = Path(__file__).parent.parent
PORT = 39694
ARRIVED, ANSWERED = "Received successfully", "Sending: train message"
KINDS = ("Rss", "Pss", "Shared_Clean", "Private_Dirty")  # of /proc/<pid>/smaps


def smaps(pid: int, mapped: str = "") -> dict[str, float]:
    """MiB of a process by kind, of all its memory or of what it maps from files whose name ends with ``mapped``."""
    totals, counts = dict.fromkeys(KINDS, 0.0), not mapped
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        head, *rest = line.split()
        if not head.endswith(":"):
            counts = not mapped or line.endswith(mapped)
        elif counts and head[:-1] in totals:
            totals[head[:-1]] += int(rest[0]) / 1024
    return totals


@dataclass
class Watch:
    """Follows the log of a SuperNode, and the ClientApp processes below it."""

    log: Path
    node: psutil.Process
    seconds: list[float] = field(default_factory=list)  # of training messages, from arrival to reply
    processor: dict[int, float] = field(default_factory=dict)  # seconds by pid
    memory: dict[int, tuple[dict[str, float], dict[str, float]]] = field(default_factory=dict)  # when it was largest
    _read: int = 0
    _arrived: float = 0.0

    def look(self) -> None:
        """Called as often as times are to be exact."""
        now = time.monotonic()
        with self.log.open(errors="replace") as file:
            file.seek(self._read)
            for line in file:
                if ARRIVED in line:
                    self._arrived = now
                elif ANSWERED in line:
                    self.seconds.append(now - self._arrived)
            self._read = file.tell()
        for child in self.node.children(recursive=True):
            try:
                if "flwr-clientapp" not in " ".join(child.cmdline()):
                    continue
                times = child.cpu_times()
                self.processor[child.pid] = times.user + times.system
                now_used = smaps(child.pid)
                if now_used["Rss"] >= self.memory.get(child.pid, ({"Rss": 0.0}, {}))[0]["Rss"]:
                    self.memory[child.pid] = now_used, smaps(child.pid, ".safetensors")
            except (psutil.Error, OSError):
                continue


def measure(base: str, manifest: Path, people: tuple[str, ...], rounds: int) -> None:
    """Run a federation of these people and print what their messages cost."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "FLWR_HOME": str(folder),
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
        }
        environment.pop("PYTHONPATH", None)  # devices run the app that comes with the run
        address = f'address = "127.0.0.1:{PORT}"\ninsecure = true\n'
        (folder / "config.toml").write_text(f"[superlink.federation]\n{address}")
        started: list[subprocess.Popen[bytes]] = []

        def start(log: str, *command: str) -> psutil.Process:
            with (folder / f"{log}.log").open("wb") as file:
                started.append(subprocess.Popen(command, stdout=file, stderr=file, env=environment))
            return psutil.Process(started[-1].pid)

        try:
            start("superlink", "flower-superlink", "--insecure", "--port", str(PORT))
            time.sleep(8)
            watches = []
            for number, person in enumerate(people, 1):
                own = f"device-id='{person}' store='{folder / person}' manifest='{manifest}'"
                ports = "--superlink", f"127.0.0.1:{PORT}", "--port", str(PORT + number)
                node = start(person, "flower-supernode", "--insecure", *ports, "--node-config", own)
                watches.append(Watch(folder / f"{person}.log", node))
            time.sleep(8)
            settings = (
                f"base.name='{base}' base.language='ko' data.manifest='own' data.new-people=0 federation.rounds={rounds} "
                f"federation.arms='global' federation.evaluate-every=0 train.local-steps=2 output='{folder / 'run'}'"
            )
            run = start("run", "flwr", "run", str(ROOT), "federation", "--stream", "--run-config", settings)
            while run.is_running() and run.status() != psutil.STATUS_ZOMBIE:
                for watch in watches:
                    watch.look()
                time.sleep(0.1)
            print((folder / "run.log").read_text()[-300:])
            report(watches, folder / "run" / "results.jsonl")
        finally:
            for process in reversed(started):
                process.terminate()
                process.wait()


def report(watches: list[Watch], results: Path) -> None:
    """Medians over the messages, the first left out: it installs the app and fills the caches of features."""
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    training = [row["seconds_train"] for row in rows if row["steps"] and row["round"] > 1]
    seconds = [one for watch in watches for one in watch.seconds[1:]]
    spent = [one for watch in watches for one in list(watch.processor.values())[2:-1]]
    print(f"{processor()}, {available_cores()} cores, load {os.getloadavg()[0]:.1f}, flwr {version('flwr')}")
    print(f"{len(seconds)} messages: from arrival to reply {statistics.median(seconds):.1f} s (median)")
    print(
        f"of it training {statistics.median(training):.1f} s; processor of the process {statistics.median(spent):.1f} s"
    )
    for watch in watches:
        whole, base = max(watch.memory.values(), key=lambda pair: pair[0]["Rss"])
        parts = [", ".join(f"{kind} {mib:,.0f}" for kind, mib in found.items()) for found in (whole, base)]
        print(f"MiB of a process: {parts[0]}; of mapped weights: {parts[1]}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="whisper-base")
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--people", default="ko-en-00,ko-en-01")
    parser.add_argument("--rounds", type=int, default=4)
    given = parser.parse_args()
    measure(given.base, given.manifest.resolve(), tuple(given.people.split(",")), given.rounds)
