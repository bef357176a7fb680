"""A cluster of real processes: started, waited for, and ended by its pid."""

import os
import signal

from kvasir_process import Process


class Cluster:
    """`kvasir up` with two workers, on ports that the system picks. Ends with `stop`."""

    def __init__(self, binary, model, *flags):
        command = [binary, "up", "--model", model, "--workers", "2", "--threads", "1", "--kv-memory", "256MiB"]
        self._process = Process(*command, "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", *flags)
        ready = self._process.ready
        self.http = ready["http"]
        self.grpc_url = ready["grpc"]
        self.grpc = self.grpc_url.split("://")[1]
        self.worker_pids = [worker["pid"] for worker in ready["workers"]]

    def log(self):
        return self._process.log()

    def stop(self):
        """Returns the exit status of the cluster, whose workers end before it."""
        status = self._process.stop()
        for pid in self.worker_pids:
            _end(pid)
        return status


def _end(pid):
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        # As it should be.
        pass
