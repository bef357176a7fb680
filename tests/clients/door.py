"""The HTTP door, asked with OpenAI's client. Greedy and short unless told otherwise."""

import httpx
import openai

from answer import gathered, whole

PROMPT = "The capital of France is"
# Fields that the official client does not name.
EXTRA = {
    "add_generation_prompt",
    "chat_template_kwargs",
    "ignore_eos",
    "min_p",
    "priority",
    "repetition_penalty",
    "return_token_ids",
    "stop_token_ids",
    "structured_outputs",
    "top_k",
}


class Door:
    def __init__(self, url):
        self.url = url
        self.openai = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120)
        self.http = httpx.Client(base_url=url, timeout=120)
        self.model = self.openai.models.list().data[0].id

    def close(self):
        self.openai.close()
        self.http.close()

    def chat(self, messages="Hi", **fields):
        """What the client returns, whole or a stream. A text is one message of the user."""
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        if "max_completion_tokens" not in fields:
            fields.setdefault("max_tokens", 8)
        return self.openai.chat.completions.create(messages=messages, **self._split(fields))

    def complete(self, prompt=PROMPT, **fields):
        fields.setdefault("max_tokens", 8)
        fields = self._split(fields)
        # Of chats only, for OpenAI.
        if "response_format" in fields:
            fields["extra_body"]["response_format"] = fields.pop("response_format")
        return self.openai.completions.create(prompt=prompt, **fields)

    def chat_answer(self, messages="Hi", **fields):
        return _read(self.chat(messages, **fields))

    def answer(self, prompt=PROMPT, **fields):
        """Of a completion."""
        return _read(self.complete(prompt, **fields))

    def post(self, path, body, **options):
        """For what OpenAI's client does not do. Fields of no type are sent as they are."""
        return self.http.post(path, json=body, **options)

    def raw_chat(self, **fields):
        body = {"messages": [{"role": "user", "content": "Hi"}], "temperature": 0, "max_tokens": 8}
        return self.post("/v1/chat/completions", {"model": self.model, **body, **fields})

    def raw_completion(self, **fields):
        body = {"prompt": PROMPT, "temperature": 0, "max_tokens": 8}
        return self.post("/v1/completions", {"model": self.model, **body, **fields})

    def tokenize(self, text):
        return self.post("/tokenize", {"prompt": text}).json()["tokens"]

    def detokenize(self, ids):
        return self.post("/detokenize", {"tokens": ids}).json()["prompt"]

    def _split(self, fields):
        fields = {"model": self.model, "temperature": 0, **fields}
        extra = {name: fields.pop(name) for name in EXTRA & fields.keys()}
        return fields | {"extra_body": extra}


def _read(response):
    return gathered(response) if isinstance(response, openai.Stream) else whole(response)
