"""A cluster of real processes, as an operator would start them: each role by itself, on ports that the system picks."""

import json
import os
import socket
import subprocess
from http.client import HTTPConnection
from urllib.parse import urlsplit

import httpx

from exposition import samples
from processes import STOP_MAX_S, Process, clean_environment
from waiting import WAIT_MAX_S, until

ANY = "127.0.0.1:0"


def binary():
    return os.environ["KVASIR_BIN"]


def model():
    return os.environ["KVASIR_MODEL"]


def free_address():
    """Nobody listens there."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return "127.0.0.1:%d" % found.getsockname()[1]


def kvasir(*arguments):
    """Runs to its end. Its process may fail."""
    command = [binary(), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=WAIT_MAX_S, env=clean_environment())


class Cluster:
    """A coordinator and its workers, so many ranks in each group. Ends with `stop`."""

    def __init__(
        self,
        folder,
        ranks,
        flags=(),
        worker_flags=(),
        log="warn",
        block_size=16,
        kv="64MiB",
        worker_environment=(),
        **environment,
    ):
        self.folder = folder
        self._size = ["--model", model(), "--block-size", block_size, "--log-format", "json"]
        self._worker_flags = ["--threads", "1", "--kv-memory", kv, *worker_flags]
        self._environment = {"KVASIR_LOG": log, **environment}
        self._worker_environment = {**self._environment, **dict(worker_environment)}
        self.workers, self.gateways = {}, []
        sizes = ["--groups", ",".join(map(str, ranks))] if len(ranks) > 1 else ["--workers", ranks[0]]
        self._command = [binary(), "coordinator", *self._size, "--json", *sizes, *flags]
        self._start_coordinator(ANY, ANY, ANY)
        self.client = httpx.Client(timeout=WAIT_MAX_S)
        for index in range(sum(ranks)):
            self.add_worker(f"w{index}")
        self.await_serving()
        self.model = self.client.get(f"{self.http}/v1/models").json()["data"][0]["id"]

    def _start_coordinator(self, grpc, http, metrics):
        command = [*self._command, "--grpc", grpc, "--http", http, "--metrics", metrics]
        self.coordinator = Process(command, self.folder, "coordinator", **self._environment)
        addresses = self.coordinator.first_line()
        self.grpc, self.http, self.metrics = (addresses[name] for name in ("grpc", "http", "metrics"))

    def restart_coordinator(self):
        """Another one where the last one was, which has ended."""
        self._start_coordinator(*(url.removeprefix("http://") for url in (self.grpc, self.http, self.metrics)))

    def add_worker(self, name, *flags, metrics=None, **environment):
        address = metrics or free_address()
        command = [binary(), "worker", *self._size, *self._worker_flags]
        command += ["--coordinator", self.grpc, "--id", name, "--metrics", address, *flags]
        worker = Process(command, self.folder, name, **{**self._worker_environment, **environment})
        worker.metrics = f"http://{address}"
        self.workers[name] = worker
        return worker

    def add_gateway(self, *flags, metrics=ANY):
        command = [
            binary(),
            "gateway",
            "--coordinator",
            self.grpc,
            "--http",
            ANY,
            "--metrics",
            metrics,
            "--json",
            *flags,
        ]
        command += ["--log-format", "json"]
        gateway = Process(command, self.folder, f"gateway-{len(self.gateways)}", **self._environment)
        addresses = gateway.first_line()
        gateway.http, gateway.metrics = addresses["http"], addresses["metrics"]
        self.gateways.append(gateway)
        return gateway

    def processes(self):
        return [*self.gateways, *self.workers.values(), self.coordinator]

    def status(self):
        return json.loads(kvasir("status", "--endpoint", self.grpc, "--json").stdout)

    def await_status(self, holds, what):
        def found():
            status = self.status()
            return status if holds(status) else None

        return until(found, what)

    def await_serving(self, ranks=None):
        """Every group serves, with all the ranks that it is to have or with as many as are said."""

        def holds(status):
            sizes = [len(group["ranks"]) for group in status["groups"]]
            wanted = ranks or [group["workers_wanted"] for group in status["groups"]]
            return sizes == wanted and all(group["state"] == "serving" for group in status["groups"])

        return self.await_status(holds, "all groups serve")

    def await_idle(self):
        """No sequence is left, and no step is on its way."""

        def done(status):
            return not status["sequences"] and not any(group["blocks"]["in_flight"] for group in status["groups"])

        return self.await_status(done, "no sequences")

    def text(self, url=None):
        response = self.client.get(f"{url or self.metrics}/metrics")
        assert response.status_code == 200
        return response.text

    def samples(self, url=None):
        return samples(self.text(url))

    def complete(self, prompt, url=None, headers=None, **fields):
        """The response of a completion. Greedy, and of exactly `max_tokens` tokens unless told otherwise."""
        return self.client.post(f"{url or self.http}/v1/completions", json=self.body(prompt, **fields), headers=headers)

    def body(self, prompt, **fields):
        return {"model": self.model, "prompt": prompt, "temperature": 0, "ignore_eos": True, "max_tokens": 4, **fields}

    def start(self, prompt, url=None, headers=None, **fields):
        """A stream whose first token has come."""
        stream = self.send(prompt, url, headers, **fields)
        stream.next_event()
        return stream

    def send(self, prompt, url=None, headers=None, **fields):
        """A stream that may wait for its turn."""
        return Stream(f"{url or self.http}/v1/completions", self.body(prompt, stream=True, **fields), headers)

    def migrate(self, request, group):
        return kvasir("migrate", request, "--to", group, "--endpoint", self.grpc, "--json")

    def stop(self, wait_max_s=STOP_MAX_S):
        """The exit statuses of all that ran, by name."""
        statuses = {process.name: process.stop(wait_max_s) for process in self.processes() if process.is_running()}
        self.client.close()
        return statuses


class Stream:
    """An answer on its way. Whoever drops it goes away; the head of the response comes with the first token."""

    def __init__(self, url, body, headers=None):
        place = urlsplit(url)
        self._connection = HTTPConnection(place.netloc, timeout=WAIT_MAX_S)
        self._connection.request(
            "POST", place.path, json.dumps(body), {"Content-Type": "application/json", **(headers or {})}
        )
        self._response = None

    def next_event(self):
        self._response = self._response or self._connection.getresponse()
        assert self._response.status == 200, self._response.read()
        while line := self._response.readline():
            if line.startswith(b"data: "):
                return line.strip()
        return None

    def read(self):
        """To the end. Returns how many events came."""
        events = list(iter(self.next_event, None))
        self.drop()
        assert events[-1] == b"data: [DONE]", events[-3:]
        return len(events)

    def drop(self):
        # With unread bytes in it a socket that is closed tells its peer at once.
        if self._response:
            self._response.close()
        self._connection.close()
