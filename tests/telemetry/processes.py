"""A process: started, read, and ended by its pid. Nothing that it writes fills a pipe: its output goes to files."""

import json
import os
import signal
import subprocess

from waiting import until

STOP_MAX_S = 30
_started = []


def end_all():
    """Those that a test which failed has left."""
    while _started:
        _started.pop().kill()


class Process:
    def __init__(self, command, folder, name, **environment):
        self.name = name
        folder.mkdir(exist_ok=True)
        self.output_path, self.log_path = folder / f"{name}.out", folder / f"{name}.log"
        with open(self.output_path, "w") as output, open(self.log_path, "w") as log:
            self._process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=log,
                env=clean_environment() | environment,
            )
        self.pid = self._process.pid
        _started.append(self)

    def is_running(self):
        return self._process.poll() is None

    def log(self):
        return self.log_path.read_text(errors="replace")

    def log_lines(self):
        """Of JSON; a last line may not be whole yet."""
        whole, _, _ = self.log().rpartition("\n")
        return [json.loads(line) for line in whole.split("\n") if line.startswith("{")]

    def first_line(self):
        """The line of JSON by which a process says where it listens."""

        def line():
            assert self.is_running(), f"{self.name} has ended: {self.log()[-2000:]}"
            text = self.output_path.read_text()
            return text.split("\n")[0] if "\n" in text else None

        return json.loads(until(line, f"{self.name} listens"))

    def kill(self):
        """As a machine that breaks would."""
        self._process.kill()
        self._process.wait()

    def stop(self, wait_max_s=STOP_MAX_S):
        """Asks it to end. Returns its exit status; `None` if it had to be killed."""
        if self.is_running():
            self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(wait_max_s)
        except subprocess.TimeoutExpired:
            self.kill()
            return None


def clean_environment():
    """What whoever runs the tests has set for their own clusters is not for ours."""
    ours = ("KVASIR_BIN", "KVASIR_MODEL")
    foreign = ("KVASIR_", "OTEL_", "ROTEL_", "RUST_LOG")
    return {name: value for name, value in os.environ.items() if name in ours or not name.startswith(foreign)}
