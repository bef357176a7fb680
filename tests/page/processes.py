"""Processes of Kvasir, by what they are, and ports for them."""

import json
import socket
import subprocess

from kvasir_process import Process


class Kvasir:
    """The binary and the model that all tests use."""

    def __init__(self, binary, model):
        self.binary = binary
        self.model = model

    def up(self, *flags):
        """A cluster, whose workers end before it."""
        return Process(self.binary, "up", *self._serves(), "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", *flags)

    def coordinator(self, grpc, http, *flags):
        addresses = ["--grpc", f"127.0.0.1:{grpc}", "--http", f"127.0.0.1:{http}"]
        return Process(self.binary, "coordinator", "--model", self.model, *addresses, *flags)

    def worker(self, grpc, name):
        flags = ["--coordinator", f"http://127.0.0.1:{grpc}", "--id", name, "--grace", "0"]
        return Process(self.binary, "worker", *self._serves(), *flags, listens=False)

    def gateway(self, grpc_url):
        return Process(self.binary, "gateway", "--coordinator", grpc_url, "--http", "127.0.0.1:0")

    def _serves(self):
        return ["--model", self.model, "--threads", "1", "--kv-memory", "256MiB"]

    def run(self, *arguments):
        """A tool, ended: the object that it prints."""
        done = subprocess.run([self.binary, *arguments, "--json"], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


def free_ports(count):
    """Nobody listens there now. All are held until the last is found: they differ."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
