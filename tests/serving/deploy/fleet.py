"""Servers in network namespaces of their own, and callers who never stop.

    unshare --net --mount python fleet.py SCRATCH COMMAND_AS_JSON nginx|client

Each server runs the command that `bilateral deploy` writes. Callers ask nginx, or have all
addresses themselves, as the name of a headless Service gives them; one is nobody's yet. Prints what
came of the requests while one server is killed, one is added, and all are replaced one after the
other, as JSON. Nothing leaves the namespace that it is started in.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np

from bilateral_serving.client import Client
from bilateral_serving.deploy.nginx import nginx_configuration

CALLERS = 4
BALANCER = "10.77.0.254"


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


class Server:
    """One server in a namespace, at an address of its own."""

    def __init__(self, number: int, command: list[str], scratch: Path) -> None:
        self.address = f"10.77.0.{number}"
        self._name, self._command = f"server{number}", command
        self._scratch = scratch / self._name
        self._scratch.mkdir()
        ip("netns", "add", self._name)
        ip("link", "add", f"to{number}", "type", "veth", "peer", "eth0", "netns", self._name)
        ip("link", "set", f"to{number}", "master", "bridge", "up")
        for what in (
            ("addr", "add", f"{self.address}/24", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
            ("link", "set", "lo", "up"),
        ):
            ip("-n", self._name, *what)
        self.start()

    def start(self) -> None:
        with (self._scratch / "log").open("a") as log:
            self._process = subprocess.Popen(
                ["ip", "netns", "exec", self._name, *self._command],
                env=os.environ | {"TMPDIR": str(self._scratch), "XDG_RUNTIME_DIR": ""},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        address = f"http://{self.address}:8080/v2/models/quadrants/ready"
        end = time.monotonic() + 120
        while time.monotonic() < end:
            try:
                with urllib.request.urlopen(address, timeout=2):
                    return
            except OSError:
                time.sleep(0.1)
        raise SystemExit(f"{self._name} is not ready: {(self._scratch / 'log').read_text()}")

    def kill(self) -> None:
        """End it as a machine does whose power fails: all at once, without a word."""
        ip("-n", self._name, "link", "set", "lo", "down")
        listed = ["ip", "netns", "pids", self._name]
        for pid in subprocess.run(listed, capture_output=True, text=True).stdout.split():
            os.kill(int(pid), signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        """End it as Kubernetes does after the drain."""
        self._process.terminate()
        self._process.wait()


class Balancer:
    """nginx on a changing list of servers."""

    def __init__(self, scratch: Path, servers: list[Server]) -> None:
        self._scratch = scratch
        self._write(servers)
        # Its workers are of the user that started it, who can write to the directory.
        self._process = subprocess.Popen(
            ["nginx", "-c", str(scratch / "nginx.conf"), "-g", "daemon off; user root;"]
        )
        time.sleep(0.5)

    def _write(self, servers: list[Server]) -> None:
        addresses = [f"{server.address}:9000" for server in servers]
        text = nginx_configuration(f"{BALANCER}:9000", addresses, scratch=str(self._scratch))
        (self._scratch / "nginx.conf").write_text(text)

    def balance(self, servers: list[Server]) -> None:
        self._write(servers)
        self._process.send_signal(signal.SIGHUP)
        time.sleep(0.5)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()


class Callers:
    """Callers who ask `url` as fast as they are answered.

    nginx passes a gRPC request on while it reads it, and can send none again that a server has
    begun to take. What a killed server had is therefore the client's to repeat.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self.answered, self.errors = 0, list[str]()
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._threads = [threading.Thread(target=self._ask) for _ in range(CALLERS)]
        for thread in self._threads:
            thread.start()

    def _ask(self) -> None:
        image = np.zeros((1, 1, 2, 2), np.float32)
        with Client(self._url, timeout_s=60, repeat_broken=True) as client:
            while not self._stop.is_set():
                try:
                    client.infer("quadrants", {"pixel_values": image})
                except Exception as error:
                    with self._lock:
                        self.errors.append(str(error))
                else:
                    with self._lock:
                        self.answered += 1

    def outcome(self) -> dict[str, object]:
        """What came of the requests since this was last asked."""
        with self._lock:
            found = {
                "answered": self.answered,
                "failed": len(self.errors),
                "reasons": sorted(set(self.errors)),
            }
            self.answered, self.errors = 0, []
        return found

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def main(scratch: Path, command: list[str], way: str) -> dict[str, object]:
    ip("link", "set", "lo", "up")
    ip("link", "add", "bridge", "type", "bridge")
    ip("addr", "add", f"{BALANCER}/24", "dev", "bridge")
    ip("link", "set", "bridge", "up")
    servers = [Server(number, command, scratch) for number in (1, 2, 3)]
    balancer, outcomes = Balancer(scratch, servers), {}
    addresses = ",".join(f"10.77.0.{number}:9000" for number in (1, 2, 3, 4))
    callers = Callers(f"{BALANCER}:9000" if way == "nginx" else addresses)
    try:
        time.sleep(5)
        outcomes["three servers"] = callers.outcome()
        servers[1].kill()
        time.sleep(5)
        outcomes["one killed"] = callers.outcome()
        servers[1] = Server(4, command, scratch)
        balancer.balance(servers)
        time.sleep(5)
        outcomes["one added"] = callers.outcome()
        for server in servers:
            balancer.balance([other for other in servers if other is not server])
            time.sleep(2)  # the drain
            server.stop()
            server.start()
            balancer.balance(servers)
        callers.stop()
        outcomes["all replaced"] = callers.outcome()
    finally:
        callers.stop()
        balancer.stop()
        for server in servers:
            server.stop()
    return outcomes


if __name__ == "__main__":
    # The names of namespaces are files: these go with this process, too.
    Path("/run/netns").mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", "/run/netns"], check=True)
    print(json.dumps(main(Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3])))
