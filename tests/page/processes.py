"""Processes of Kvasir: started, waited for, and ended by their pids."""

import json
import signal
import socket
import subprocess
import tempfile
import threading

START_MAX_S = 120
STOP_MAX_S = 60


class Process:
    """One `kvasir`, which says in one line of JSON that it listens, if `listens`. Ends with `stop`."""

    def __init__(self, binary, *arguments, listens=True):
        self._log = tempfile.TemporaryFile("w+")
        command = [binary, *arguments, *(["--json"] if listens else [])]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self._log, text=True)
        self.ready = json.loads(self._first_line()) if listens else {}

    def _first_line(self):
        """Ends with the line, or with the process: the timer is for one that does neither."""
        timer = threading.Timer(START_MAX_S, self._process.kill)
        timer.start()
        line = self._process.stdout.readline()
        timer.cancel()
        if not line:
            self._process.wait()
            raise RuntimeError(f"it did not start: {self.log()}")
        return line

    def log(self):
        self._log.seek(0)
        return self._log.read()

    def kill(self):
        """As a machine that loses its power."""
        self._process.kill()
        self._end()

    def stop(self):
        """Returns the exit status."""
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(STOP_MAX_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()
        finally:
            self._end()

    def _end(self):
        self._process.wait()
        self._process.stdout.close()
        self._log.close()


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
