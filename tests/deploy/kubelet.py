"""Pods as processes of this machine: started, probed and ended as the kubelet does it, from what the chart renders.

Not done: images, volumes, networks. The model's path and the addresses are put in for those of the pod.
"""

import os
import socket
import subprocess
import tempfile
import threading
import time

import grpc
import httpx
from grpc_health.v1 import health_pb2, health_pb2_grpc

import chart

HOST = "127.0.0.1"


def free_port():
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        return listener.getsockname()[1]


class Place:
    """What pods find here in place of what they would find in a cluster."""

    def __init__(self, model, programs):
        self.model = model
        # By the name of the container.
        self.programs = programs
        # Addresses and folders, as the chart writes them and as they are here.
        self.moved = {}


class StatefulSet:
    """Its pods by their ordinals. Each keeps its ports when it is replaced, as its name. A Deployment will do."""

    def __init__(self, values, name, place, kind="StatefulSet"):
        found = chart.named(values, kind, name)
        self.name, self.spec, self.place = name, found["spec"], place
        # Where something scales it, the chart does not say how many: one, as Kubernetes takes it.
        self.pods = []
        for _ in range(self.spec.get("replicas", 1)):
            self._add()

    def _add(self):
        pod = self._pod(len(self.pods), {})
        self.pods.append(pod)
        for number, port in pod.numbers.items():
            host = f"{pod.name}.{self.spec.get('serviceName')}.{chart.NAMESPACE}.svc"
            self.place.moved[f"{host}:{number}"] = f"{HOST}:{port}"

    def _pod(self, ordinal, ports):
        return Pod(f"{self.name}-{ordinal}", self.spec["template"]["spec"], self.place, ports)

    def start(self):
        """All at once, ready or not."""
        assert self.spec.get("podManagementPolicy", "Parallel") == "Parallel"
        for pod in self.pods:
            pod.start()

    def await_ready(self):
        for pod in self.pods:
            pod.await_ready()

    def roll(self):
        """Replaces one after the other, the highest ordinal first. Returns the ended pods."""
        ended = []
        for ordinal in reversed(range(len(self.pods))):
            ended.append(self.pods[ordinal])
            self.pods[ordinal].end()
            self.replace(ordinal)
            self.pods[ordinal].await_ready()
            time.sleep(self.spec.get("minReadySeconds", 0))
        return ended

    def scale(self, replicas):
        """Up, all at once; or down, one after the other, the highest ordinal first. Returns the ended pods."""
        ended = []
        while len(self.pods) > replicas:
            ended.append(self.pods.pop())
            ended[-1].end()
        added = range(len(self.pods), replicas)
        for ordinal in added:
            self._add()
            self.pods[ordinal].start()
        self.await_ready()
        return ended

    def replace(self, ordinal):
        """Of one that has ended."""
        self.pods[ordinal] = self._pod(ordinal, self.pods[ordinal].ports)
        self.pods[ordinal].start()

    def kill(self):
        for pod in self.pods:
            pod.kill()


class Pod:
    """Of one container. `end` is called however it went."""

    def __init__(self, name, spec, place, ports):
        (self.container,) = spec["containers"]
        self.name, self.spec, self.place = name, spec, place
        # By their names.
        self.ports = ports or {port["name"]: free_port() for port in self.container["ports"]}
        self.numbers = {port["containerPort"]: self.ports[port["name"]] for port in self.container["ports"]}
        self.log = tempfile.TemporaryFile("w+")
        self.process = None
        self.exit_status = None
        self.end_took_s = None
        # What the kubelet would have restarted it for.
        self.liveness_failures = []
        self._ending = threading.Event()
        self._watcher = None

    def command(self):
        """As it is started here."""
        # A command replaces the image's program, arguments follow it.
        line = self.container.get("args") or self.container["command"][1:]
        program = self.place.programs[self.container["name"]]
        return [program, *(self._replaced(argument) for argument in line)]

    def _replaced(self, argument):
        if argument.startswith("--model="):
            return f"--model={self.place.model}"
        argument = argument.replace("$(POD_NAME)", self.name).replace("$(POD_IP)", HOST)
        for number, port in self.numbers.items():
            argument = argument.replace(f"0.0.0.0:{number}", f"{HOST}:{port}")
        for there, here in self.place.moved.items():
            argument = argument.replace(there, here)
        return argument

    def start(self):
        plain = {entry["name"]: entry["value"] for entry in self.container["env"] if "value" in entry}
        self.process = subprocess.Popen(
            self.command(), stdout=self.log, stderr=subprocess.STDOUT, env=os.environ | plain, stdin=subprocess.DEVNULL
        )

    def await_live(self):
        """As long as the startup probe allows."""
        self._await("startupProbe")

    def await_ready(self):
        """Startup first, then readiness, each as long as the startup probe allows."""
        self._await("startupProbe")
        if self._watcher is None:
            self._watcher = threading.Thread(target=self._watch_liveness, daemon=True)
            self._watcher.start()
        self._await("readinessProbe")

    def _await(self, kind):
        startup = self.container["startupProbe"]
        deadline = time.monotonic() + min(startup["periodSeconds"] * startup["failureThreshold"], 120)
        while not self.probe(kind):
            assert self.process.poll() is None, f"{self.name} ended: {self.said()}"
            assert time.monotonic() < deadline, f"{self.name}: {kind} does not succeed: {self.said()}"
            time.sleep(0.1)

    def probe(self, kind):
        """As the kubelet: any status from 200 to 399, or SERVING."""
        probe = self.container[kind]
        timeout = probe.get("timeoutSeconds", 1)
        try:
            if "grpc" in probe:
                port, service = self.numbers[probe["grpc"]["port"]], probe["grpc"]["service"]
                with grpc.insecure_channel(f"{HOST}:{port}") as channel:
                    request = health_pb2.HealthCheckRequest(service=service)
                    answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=timeout)
                    return answer.status == health_pb2.HealthCheckResponse.SERVING
            url = f"http://{HOST}:{self.ports[probe['httpGet']['port']]}{probe['httpGet']['path']}"
            return 200 <= httpx.get(url, timeout=timeout).status_code < 400
        except (grpc.RpcError, httpx.HTTPError):
            return False

    def _watch_liveness(self):
        while not self._ending.wait(1):
            if not self.probe("livenessProbe") and not self._ending.is_set():
                self.liveness_failures.append(time.monotonic())

    def kill(self):
        """As when its node dies. Nothing happens to one that has ended."""
        if self.process is None or self.exit_status is not None:
            return
        self._ending.set()
        self.process.kill()
        self.exit_status = self.process.wait()

    def end(self):
        """preStop, SIGTERM, and SIGKILL when the grace period is over."""
        if self.process is None or self.exit_status is not None:
            return
        self._ending.set()
        begun = time.monotonic()
        deadline = begun + self.spec["terminationGracePeriodSeconds"]
        self._pre_stop()
        self.process.terminate()
        try:
            self.exit_status = self.process.wait(max(deadline - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.exit_status = self.process.wait()
        self.end_took_s = time.monotonic() - begun
        if self._watcher:
            self._watcher.join()

    def _pre_stop(self):
        hook = self.container.get("lifecycle", {}).get("preStop")
        if hook and self.process.poll() is None:
            # The chart has no other.
            time.sleep(hook["sleep"]["seconds"])

    def url(self, port):
        return f"http://{HOST}:{self.ports[port]}"

    def said(self):
        self.log.flush()
        self.log.seek(0)
        return self.log.read()[-4000:]
