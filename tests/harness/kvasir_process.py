"""A process of Kvasir, for tests in Python: started, waited for, and ended by its pid. Their conftest.py finds this folder."""

import json
import signal
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
