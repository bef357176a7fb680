"""An answer of the HTTP door, the same whether it came whole or in pieces: that is what makes the two comparable."""

from dataclasses import dataclass, field


# They have bytes, and are no part of a text.
SPECIAL = ("<|im_end|>", "<|im_start|>", "<|endoftext|>", "<repo_name>")


@dataclass
class Choice:
    text: str = ""
    finish_reason: str | None = None
    # Lists by name, as the door calls them; of a chat only `content`.
    logprobs: dict = field(default_factory=dict)
    token_ids: list = field(default_factory=list)
    # Texts as they came.
    pieces: list = field(default_factory=list, compare=False)


@dataclass
class Answer:
    choices: dict
    id: str = ""
    fingerprint: str = ""
    usage: dict | None = None

    @property
    def text(self):
        """Of the only choice."""
        (choice,) = self.choices.values()
        return choice.text

    @property
    def texts(self):
        return [self.choices[index].text for index in sorted(self.choices)]


def whole(response):
    """Of a response that came at once."""
    body = response.model_dump()
    return _gather([body])


def gathered(stream):
    """Of a stream, read to its end."""
    return _gather([chunk.model_dump() for chunk in stream])


def _gather(bodies):
    answer = Answer(choices={})
    for body in bodies:
        answer.id, answer.fingerprint = body["id"], body["system_fingerprint"]
        answer.usage = body.get("usage") or answer.usage
        for choice in body["choices"]:
            _add(answer.choices.setdefault(choice["index"], Choice()), choice)
    return answer


def _add(choice, piece):
    assert choice.finish_reason is None, "a choice that ended says no more"
    text = _text(piece)
    choice.text += text
    choice.pieces.append(text)
    choice.finish_reason = piece["finish_reason"]
    choice.token_ids += piece.get("token_ids") or []
    for name, items in (piece.get("logprobs") or {}).items():
        choice.logprobs.setdefault(name, []).extend(items or [])


def _text(piece):
    """Completions have a text, chats a message or a delta of one."""
    if "text" in piece:
        return piece["text"]
    message = piece.get("message") or piece.get("delta")
    return message.get("content") or ""


def without_special(text):
    for special in SPECIAL:
        text = text.replace(special, "")
    return text
