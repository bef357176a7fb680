"""Fixed requests whose answers are checked in, and how an answer is written down: tokens, and logprobs as bits."""

import json
from pathlib import Path

from rpc import bits
from stubs import v1

FILE = Path(__file__).with_name("expected.json")
# Another engine's answers to six prompts, with the margins between its first and second choice.
GOLDEN = Path(__file__).parents[1] / "golden" / "smollm2-135m.json"
STORY = dict(text="Once upon a time", max_tokens=16)


def golden():
    return json.loads(GOLDEN.read_text())["prompts"]


def requests():
    """By name, as fields of `rpc.request`."""
    drawn = {"temperature": 1.0, "seed": 42}
    fixed = {
        "chat": dict(chat=[("user", "What is a fjord?")], max_tokens=16),
        "conversation": dict(chat=[("system", "Be brief."), ("user", "Hi"), ("assistant", "Yo"), ("user", "Who?")]),
        "drawn": dict(sampling=drawn, **STORY),
        "choice": dict(sampling={**drawn, "choice": 1}, **STORY),
        "cool": dict(sampling={**drawn, "temperature": 0.3}, **STORY),
        "top": dict(sampling={**drawn, "top_k": 20, "top_p": 0.9, "min_p": 0.05}, **STORY),
        "penalties": dict(
            sampling={**drawn, "repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": 0.25}, **STORY
        ),
        "bias": dict(sampling={"logit_bias": [v1.LogitBias(id=198, bias=-3.5)]}, **STORY),
        "unicode": dict(text="Zoë 🙂 שלום 日本", max_tokens=16, sampling=drawn),
        "scored": dict(text="The quick brown fox jumps over the lazy dog.", prompt_logprobs=0, max_tokens=4),
    }
    goldens = {
        f"golden {nth}": dict(ids=prompt["prompt_ids"], max_tokens=16, ignore_eos=True)
        for nth, prompt in enumerate(golden())
    }
    return fixed | goldens


def written(choice):
    """An answer as it stands in the file."""
    answer = {"ids": choice.ids, "logprob_bits": choice.bits, "text": choice.text, "reason": choice.reason}
    if choice.prompt_scores:
        answer["prompt_logprob_bits"] = [bits(token.logprob) for token in choice.prompt_scores]
    return answer


def read():
    return json.loads(FILE.read_text())


def write(numerics_id, answers):
    """One answer a line: so a difference shows whose it is."""
    lines = ",\n".join(f"    {json.dumps(name)}: {json.dumps(answer)}" for name, answer in answers.items())
    FILE.write_text(f'{{\n  "numerics_id": "{numerics_id}",\n  "answers": {{\n{lines}\n  }}\n}}\n')
