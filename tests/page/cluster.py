"""A running cluster, as other people ask it: its status, and answers that go on while a test looks at the page."""

import contextlib
import time

import httpx

ASK_MAX_S = 60
LOOK_EACH_S = 0.05


class Cluster:
    def __init__(self, kvasir, process):
        self._kvasir = kvasir
        self.url = process.ready["http"]
        self.grpc_url = process.ready["grpc"]
        self.http = httpx.Client(base_url=self.url, timeout=ASK_MAX_S)

    def close(self):
        self.http.close()

    def status(self):
        return self.http.get("/cluster/status").raise_for_status().json()

    def sequence(self, request_id):
        """Of a request that runs: waits for it to be there."""
        deadline = time.monotonic() + ASK_MAX_S
        while time.monotonic() < deadline:
            for sequence in self.status()["sequences"]:
                if request_id in sequence["request_id"] and sequence["state"] == "running":
                    return sequence
            # Nothing tells of it but the status, which is asked again.
            time.sleep(LOOK_EACH_S)
        raise AssertionError(f"{request_id} does not run")

    @contextlib.contextmanager
    def running(self, name, tokens=4000):
        """A long answer, which is left when the block ends. Gives its sequence."""
        body = {"model": self.model(), "prompt": "Once upon a time", "max_tokens": tokens, "stream": True, "ignore_eos": True}
        with self.http.stream("POST", "/v1/completions", json=body, headers={"x-request-id": name}) as response:
            assert response.status_code == 200, response.read()
            # Kept: the answer is left when nobody holds what reads it.
            lines = response.iter_lines()
            next(lines)
            yield self.sequence(name)
            lines.close()

    def model(self):
        return self.http.get("/v1/models").json()["data"][0]["id"]

    def whole_answer(self, prompt, tokens):
        body = {"model": self.model(), "messages": [{"role": "user", "content": prompt}], "max_tokens": tokens, "temperature": 0}
        answer = self.http.post("/v1/chat/completions", json=body).raise_for_status().json()
        return answer["choices"][0]["message"]["content"]

    def migrate(self, request_id, group):
        return self._kvasir.run("migrate", request_id, "--to", str(group), "--endpoint", self.grpc_url)

    def reshard(self, group, ranks):
        return self._kvasir.run("reshard", "--group", str(group), "--ranks", str(ranks), "--endpoint", self.grpc_url)
