"""A cluster of real processes: started, waited for, and ended by its pid."""

import json
import os
import signal
import subprocess
import tempfile
import threading

START_MAX_S = 120
STOP_MAX_S = 30


class Cluster:
    """`kvasir up` with two workers, on ports that the system picks. Ends with `stop`."""

    def __init__(self, binary, model, *flags):
        self._log = tempfile.TemporaryFile("w+")
        command = [binary, "up", "--model", model, "--workers", "2", "--threads", "1", "--kv-memory", "256MiB"]
        command += ["--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--json", *flags]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self._log, text=True)
        ready = json.loads(self._first_line())
        self.http = ready["http"]
        self.grpc_url = ready["grpc"]
        self.grpc = self.grpc_url.split("://")[1]
        self.worker_pids = [worker["pid"] for worker in ready["workers"]]

    def _first_line(self):
        """Ends with the line, or with the process: the timer is for one that does neither."""
        timer = threading.Timer(START_MAX_S, self._process.kill)
        timer.start()
        line = self._process.stdout.readline()
        timer.cancel()
        if not line:
            self._process.wait()
            raise RuntimeError(f"the cluster did not start: {self.log()}")
        return line

    def log(self):
        self._log.seek(0)
        return self._log.read()

    def stop(self):
        """Returns the exit status of the cluster, whose workers end before it."""
        self._process.send_signal(signal.SIGTERM)
        try:
            status = self._process.wait(STOP_MAX_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        for pid in self.worker_pids:
            _end(pid)
        self._process.stdout.close()
        self._log.close()
        return status


def _end(pid):
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        # As it should be.
        pass
