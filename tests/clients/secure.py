"""A cluster that asks who you are: certificates and keys of its own, in a folder that is thrown away."""

import json
import os
import ssl
import subprocess
import time
from pathlib import Path

import httpx
import openai

from cluster import Cluster
from kvasir_process import Process

WAIT_MAX_S = 20
# No secret, and nobody's.
WRONG_KEY = "kvasir-" + "0" * 64


class Authority:
    """A folder that `kvasir certs` made."""

    def __init__(self, binary, folder):
        self.binary, self.folder = binary, Path(folder)
        self.issue()

    def issue(self, *flags):
        subprocess.run([self.binary, "certs", self.folder, *flags], check=True, capture_output=True)

    def path(self, name):
        return str(self.folder / name)

    def pair(self, name):
        return self.path(f"{name}.pem"), self.path(f"{name}.key")

    def context(self, certificate=None):
        """For a client that believes this authority, and shows a pair if there is one."""
        context = ssl.create_default_context(cafile=self.path("ca.pem"))
        if certificate:
            context.load_cert_chain(*certificate)
        return context


class KeyFile:
    """Replaced in one go, as an operator's editor does: no reader sees half of it."""

    def __init__(self, binary, path):
        self.binary, self.path = binary, Path(path)
        self.path.touch()

    def add(self, name, *flags):
        """Returns the key, which the file does not hold."""
        command = [self.binary, "key", name, *flags, "--add-to", self.path, "--json"]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["key"]

    def remove(self, name):
        lines = filter(None, self.path.read_text().splitlines())
        self.write("".join(f"{line}\n" for line in lines if json.loads(line)["name"] != name))

    def write(self, text):
        draft = self.path.with_suffix(".draft")
        draft.write_text(text)
        draft.replace(self.path)


class Secure:
    """The cluster, and clients of it with a key, a certificate, both or neither. Ends with `stop`."""

    def __init__(self, binary, model, folder):
        self.binary = binary
        self.authority = Authority(binary, Path(folder) / "certs")
        self.key_file = KeyFile(binary, Path(folder) / "keys.jsonl")
        self.key = self.key_file.add("ada")
        self.admin_key = self.key_file.add("ops", "--admin")
        self.cluster = Cluster(binary, model, "--tls-dir", self.authority.folder, "--api-keys", self.key_file.path)
        self.url = self.cluster.http
        with self.client(self.key) as client:
            self.model = client.models.list().data[0].id

    def stop(self):
        return self.cluster.stop()

    def http(self, certificate=None, url=None):
        context = self.authority.context(certificate)
        return httpx.Client(base_url=url or self.url, verify=context, timeout=60)

    def client(self, key=None, certificate=None, url=None):
        """OpenAI's, as they are told to use it with an authority of one's own."""
        url = url or self.url
        http = self.http(certificate, url)
        if not key:
            # The client wants some key, and sends it; this keeps it back.
            http.event_hooks["request"].append(lambda request: request.headers.pop("authorization"))
        return openai.OpenAI(base_url=f"{url}/v1", api_key=key or "none", max_retries=0, http_client=http)

    def complete(self, client, **fields):
        fields = {"model": self.model, "prompt": "The capital of France is", "max_tokens": 4, "temperature": 0} | fields
        return client.completions.create(**fields)

    def answer(self, client, **fields):
        return self.complete(client, **fields).choices[0].text

    def answer_as(self, key=None, certificate=None, **fields):
        with self.client(key, certificate) as client:
            return self.answer(client, **fields)

    def status_run(self, certificate=None, key=None):
        """`kvasir status`, ended. The key goes by the environment, where other users do not see it."""
        command = [self.binary, "status", "--json", "--endpoint", self.cluster.grpc_url]
        command += ["--tls-ca", self.authority.path("ca.pem")]
        if certificate:
            command += ["--tls-cert", certificate[0], "--tls-key", certificate[1]]
        environment = {name: value for name, value in os.environ.items() if name != "KVASIR_API_KEY"}
        if key:
            environment["KVASIR_API_KEY"] = key
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)

    def status(self):
        run = self.status_run(self.authority.pair("admin"))
        assert run.returncode == 0, run.stderr
        return json.loads(run.stdout)

    def refusals(self):
        """Those that there are, by name."""
        counters = self.status()["counters"].items()
        return {name.removeprefix("refused_"): count for name, count in counters if name.startswith("refused_")}


class Gateway:
    """`kvasir gateway` in front of a cluster. Ends with `stop`."""

    def __init__(self, binary, coordinator, *flags):
        self._process = Process(binary, "gateway", "--http", "127.0.0.1:0", "--coordinator", coordinator, *flags)
        self.url = self._process.ready["http"]

    def stop(self):
        return self._process.stop()


def until(holds, what):
    """What `holds` returns once that is true. Nothing tells us: we ask again and again."""
    deadline = time.monotonic() + WAIT_MAX_S
    while time.monotonic() < deadline:
        found = holds()
        if found:
            return found
        time.sleep(0.01)
    raise AssertionError(f"{what}: still not so")
