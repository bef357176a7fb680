"""Texts: a thousand prompts of every script. What comes piece by piece is what comes whole, and what the tokens spell.

The prompts are random: a failure names the seed and the number of its prompt.
"""

import random
from concurrent.futures import ThreadPoolExecutor

NUM_PROMPTS = 1000
NUM_THREADS = 32
MAX_TOKENS = [6, 12]
# They have no text.
SPECIAL = range(17)
REPLACEMENT = "\ufffd"
# The vocabulary has no token for them: they vanish, as in the tokenizers that we follow. All that UTF-8 may contain:
# six control characters, and what characters from U+40000 to U+BFFFF begin with.
WITHOUT_TOKENS = b"\x04\x06\x13\x14\x16\x1d\xf1\xf2"
STOPS = [" ", "\n", "e", "the", "\u0301", "\u05d4", "🙂", "\u200d", ", ", ".\n", "\u3002", "\u0627\u0644"]

EMOJI = ["🙂", "👍🏽", "👩‍👩‍👧", "🇳🇴", "🏴‍☠️", "❤️", "1️⃣", "🫠", "🧑🏿‍🚀"]
WORDS = [
    "Hello", "fjord", "the", "naïve", "straße", "ﬁne", "İstanbul", "Привет", "γειά", "日本語", "한국어", "ภาษาไทย", "हिन्दी",
]
RIGHT_TO_LEFT = ["שלום", "مرحبا", "سَلَام", "\u200fעברית\u200e", "۱۲۳", "\u202eevil\u202c"]
COMBINING = [
    "e\u0301", "n\u0303", "Z\u0351\u036b\u0343a\u0306l\u0324g\u0353o", "q\u0307\u0323", "\u0e01\u0e33", "\u0b95\u0bcb",
]
BLANKS = [" ", "  ", "\n", "\t", "\u00a0", "\u3000", "\u2028", "\r\n", "\ufeff"]


def prompt_of(rng):
    """A few pieces, each of some script or of none. Short: the time goes into tokens."""
    kinds = [EMOJI, WORDS, RIGHT_TO_LEFT, COMBINING, BLANKS, None]
    pieces = []
    for _ in range(rng.randint(1, 4)):
        kind = rng.choice(kinds)
        pieces.append(rng.choice(kind) if kind else _any_character(rng))
        pieces.append(rng.choice(["", " "]))
    return "".join(pieces) or "a"


def _any_character(rng):
    """Of all planes, but no half of a pair: that is no character."""
    while True:
        number = rng.choice([rng.randrange(1, 0x800), rng.randrange(1, 0x10000), rng.randrange(0x10000, 0x110000)])
        if not 0xD800 <= number < 0xE000:
            return chr(number)


def fields_of(seed, nth):
    rng = random.Random(f"{seed}/{nth}")
    stop = rng.sample(STOPS, rng.randint(1, 3)) if rng.random() < 0.4 else []
    fields = dict(prompt=prompt_of(rng), stop=stop, max_tokens=rng.randint(*MAX_TOKENS))
    return fields | dict(seed=nth, temperature=1, logprobs=0, return_token_ids=True)


def bytes_of(token):
    """Parts of characters are written as bytes."""
    if token.startswith("bytes:"):
        return bytes(int(part, 16) for part in token.removeprefix("bytes:").split("\\x")[1:])
    return token.encode()


def spelled(choice):
    """What the tokens spell, by our own count."""
    tokens = zip(choice.token_ids, choice.logprobs["tokens"], strict=True)
    return b"".join(bytes_of(token) for id, token in tokens if id not in SPECIAL).decode(errors="replace")


def cut(text, stops):
    """Up to the first stop string."""
    found = [text.index(stop) for stop in stops if stop in text]
    return text[: min(found)] if found else text


def check(door, seed, nth):
    """The whole answer, after it was compared with all that it must be equal to."""
    fields = fields_of(seed, nth)
    told = f"KVASIR_TEST_SEED={seed}, prompt {nth}: {fields['prompt']!a}, stop {fields['stop']!a}"
    whole = door.answer(**fields).choices[0]
    streamed = door.answer(stream=True, **fields).choices[0]
    assert streamed == whole, told
    if REPLACEMENT not in whole.text:
        assert not any(REPLACEMENT in piece for piece in streamed.pieces), told
    assert whole.text == cut(spelled(whole), fields["stop"]), told
    return whole


def test_a_thousand_prompts_stream_as_they_come_whole(door, seed):
    with ThreadPoolExecutor(NUM_THREADS) as threads:
        choices = list(threads.map(lambda nth: check(door, seed, nth), range(NUM_PROMPTS)))
    # Else we have tested nothing: characters in several tokens, stops that were met, and texts that are not ASCII.
    parts = sum(any(token.startswith("bytes:") for token in choice.logprobs["tokens"]) for choice in choices)
    stopped = sum(choice.finish_reason == "stop" for choice in choices)
    foreign = sum(not choice.text.isascii() for choice in choices)
    print(f"{parts} with parts of characters, {stopped} stopped, {foreign} not ASCII")
    assert min(parts, stopped, foreign) > 40


def test_prompts_of_every_script_come_back_as_an_echo(door, seed):
    prompts = [prompt_of(random.Random(f"{seed}/echo/{nth}")) for nth in range(50)]
    echoed = door.answer(prompts, echo=True, max_tokens=1).texts
    for prompt, text in zip(prompts, echoed, strict=True):
        assert text.startswith(prompt), ascii(prompt)


def test_prompts_of_every_script_come_back_from_their_tokens(door, seed):
    drawn = [prompt_of(random.Random(f"{seed}/tokens/{nth}")) for nth in range(100)]
    for prompt in [*drawn, "tab\tand \x04\x06\x13\x14\x16\x1d end", "\U0003ffff\U00040000\U000bffff\U000c0000"]:
        kept = prompt.encode().translate(None, WITHOUT_TOKENS).decode(errors="replace")
        assert door.detokenize(door.tokenize(prompt)) == kept, ascii(prompt)


def test_chats_of_every_script_stream_as_they_come_whole(door, seed):
    def check_chat(nth):
        fields = fields_of(seed, f"chat/{nth}")
        prompt = fields.pop("prompt")
        fields.update(seed=nth, logprobs=False)
        streamed, whole = (door.chat_answer(prompt, stream=stream, **fields) for stream in (True, False))
        assert streamed.choices == whole.choices, ascii(prompt)

    with ThreadPoolExecutor(NUM_THREADS) as threads:
        list(threads.map(check_chat, range(30)))
