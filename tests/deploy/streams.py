"""Clients that never stop asking OpenAI's API for the same texts, and compare what they get."""

import json
import threading
import time

import httpx

TOKENS = 96
PROMPTS = [
    f"{beginning} {subject}"
    for beginning in (
        "Once upon a time there was",
        "The most important thing about",
        "In a letter to a friend I wrote of",
        "Step one: take",
    )
    for subject in ("a fjord", "two ravens", "the old lighthouse", "seven boxes")
]


class Unavailable(Exception):
    """Refused before it began: nobody is there who could answer."""


def answer(url, prompt, model="default"):
    """One, streamed: its text, the logprobs of its tokens, and why it ended. Raises if it breaks off."""
    body = {"model": model, "prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "logprobs": 1, "stream": True}
    text, logprobs, reason, is_done = "", [], None, False
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=120) as response:
        if response.status_code == 503:
            raise Unavailable(response.read().decode())
        if response.status_code != 200:
            raise RuntimeError(f"{response.status_code}: {response.read().decode()}")
        for line in response.iter_lines():
            data = line.removeprefix("data: ")
            if data == "[DONE]":
                is_done = True
            elif data and data != line:
                event = json.loads(data)
                if "error" in event:
                    raise RuntimeError(data)
                for choice in event["choices"]:
                    text += choice["text"]
                    reason = choice["finish_reason"] or reason
                    logprobs += (choice.get("logprobs") or {}).get("token_logprobs") or []
    if not is_done:
        raise RuntimeError("the stream broke off")
    return text, logprobs, reason


class Streams:
    """One thread for each prompt. Leave the block to stop them; then `answered`, `wrong` and `failed` say how it went.

    The patient ask again when they are refused before their answer began. Nobody else does.
    """

    def __init__(self, url, expected, model="default", is_patient=False):
        self.is_patient = is_patient
        self.url, self.expected, self.model = url, expected, model
        self.answered, self.wrong, self.failed = 0, [], []
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._threads = [threading.Thread(target=self._ask, args=(prompt,), daemon=True) for prompt in expected]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, prompt):
        while not self._stop.is_set():
            try:
                found = answer(self.url, prompt, self.model)
            except Exception as error:
                if not (self.is_patient and isinstance(error, Unavailable)):
                    with self._lock:
                        self.failed.append(f"{prompt}: {error!r}")
                time.sleep(0.2)
                continue
            with self._lock:
                self.answered += 1
                if found != self.expected[prompt]:
                    self.wrong.append((prompt, self.expected[prompt], found))
