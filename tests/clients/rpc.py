"""The gRPC door, asked with grpcio. Greedy unless told otherwise."""

import struct
import time
from dataclasses import dataclass, field

import grpc
import pytest

from stubs import Admin, Inference, admin, v1

PROMPT = "The capital of France is"
WAIT_MAX_S = 60


@dataclass
class Choice:
    """One answer, put together from its messages."""

    descriptor: object = None
    prompt_bytes: list = field(default_factory=list)
    prompt_scores: list = field(default_factory=list)
    tokens: list = field(default_factory=list)
    text: str = ""
    reason: str = ""
    usage: object = None

    @property
    def ids(self):
        return [token.id for token in self.tokens]

    @property
    def bits(self):
        return [bits(token.logprob) for token in self.tokens]


class Rpc:
    def __init__(self, address):
        self.address = address
        self.channel = grpc.insecure_channel(address)
        self.inference = Inference(self.channel)
        self.admin = Admin(self.channel)

    def close(self):
        self.channel.close()

    def start(self, **fields):
        """The stream of responses."""
        return self.inference.Generate(request(**fields), timeout=WAIT_MAX_S)

    def generate(self, **fields):
        """Of the only choice."""
        (choice,) = self.choices(**fields)
        return choice

    def choices(self, **fields):
        found = read(self.start(**fields))
        return [found[index] for index in sorted(found)]

    def refused(self, **fields):
        """The error that the request meets."""
        with pytest.raises(grpc.RpcError) as caught:
            self.choices(**fields)
        return caught.value

    def status(self):
        return self.admin.Status(admin.StatusRequest(), timeout=WAIT_MAX_S)

    def counters(self):
        return dict(self.status().counters)

    def await_status(self, holds, what):
        """The first status that holds. There is no stream of statuses: we ask again and again."""
        deadline = time.monotonic() + WAIT_MAX_S
        while time.monotonic() < deadline:
            status = self.status()
            if holds(status):
                return status
            time.sleep(0.01)
        pytest.fail(f"{what}: still not so; {status}")

    def await_idle(self):
        return self.await_status(lambda status: not status.sequences, "no sequences")

    def await_settled(self):
        """Idle, and every worker has said so of the last step: what it computed can be found from then on."""
        return self.await_status(_is_settled, "settled blocks")


def _is_settled(status):
    return not status.sequences and not any(group.blocks.in_flight for group in status.groups)


def request(sampling=None, ids=None, chat=None, **fields):
    """A request for the usual prompt, unless another one is given."""
    if ids is not None:
        fields["token_ids"] = v1.TokenIds(ids=ids)
    elif chat is not None:
        fields["chat"] = v1.Chat(messages=[v1.ChatMessage(role=role, content=text) for role, text in chat])
    elif "resume" not in fields:
        fields.setdefault("text", PROMPT)
    if "resume" not in fields:
        fields.setdefault("max_tokens", 8)
    return v1.GenerateRequest(sampling=v1.SamplingParams(**(sampling or {})), **fields)


def read(responses):
    """The choices of a stream, by index."""
    choices = {}
    for response in responses:
        add(choices.setdefault(response.choice, Choice()), response)
    return choices


def add(choice, response):
    event = response.WhichOneof("event")
    assert event == "started" or choice.descriptor is not None, "the first message of each carries its descriptor"
    assert not choice.reason, "the last message of each carries its finish reason"
    if event == "started":
        choice.descriptor = response.started.descriptor
        choice.prompt_bytes = list(response.started.prompt_token_bytes)
    elif event == "prompt_scores":
        choice.prompt_scores += response.prompt_scores.tokens
    elif event == "chunk":
        choice.tokens += response.chunk.tokens
        choice.text += response.chunk.text
    else:
        choice.text += response.finished.text
        choice.reason = v1.FinishReason.Name(response.finished.reason).removeprefix("FINISH_REASON_").lower()
        choice.usage = response.finished.usage


def bits(number):
    """Of a float32."""
    return struct.unpack("<I", struct.pack("<f", number))[0]


def name_of(error):
    """What the server calls it."""
    return dict(error.trailing_metadata()).get("kvasir-error")
