"""Many at once: each gets what it would get alone."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

NUM_THREADS = 16
PROMPTS = [
    "Once upon a time",
    "The capital of France is",
    "1, 2, 4, 8,",
    "def fibonacci(n):",
    "Roses are red,",
    "In the year 2050",
    "The recipe needs",
    "Dear Sir or Madam,",
]


def fields(nth):
    """Of different lengths, so that batches change while they run."""
    return dict(prompt=PROMPTS[nth % len(PROMPTS)], max_tokens=6 + nth, logprobs=2, return_token_ids=True)


def test_streams_side_by_side_are_the_same_as_alone(door):
    alone = [door.answer(**fields(nth)) for nth in range(NUM_THREADS)]
    with ThreadPoolExecutor(NUM_THREADS) as threads:
        together = list(threads.map(lambda nth: door.answer(stream=True, **fields(nth)), range(NUM_THREADS)))
    for one, other in zip(alone, together, strict=True):
        assert one.choices == other.choices


def test_chats_side_by_side_are_the_same_as_alone(door):
    def ask(nth, **more):
        return door.chat_answer(PROMPTS[nth % len(PROMPTS)], max_tokens=5 + nth, **more).choices

    alone = [ask(nth) for nth in range(NUM_THREADS)]
    with ThreadPoolExecutor(NUM_THREADS) as threads:
        assert list(threads.map(lambda nth: ask(nth, stream=True), range(NUM_THREADS))) == alone


def test_drawn_answers_side_by_side_are_the_same_as_alone(door):
    def ask(seed):
        return door.answer(PROMPTS[0], temperature=1, seed=seed, max_tokens=10, n=2).choices

    alone = [ask(seed) for seed in range(NUM_THREADS)]
    with ThreadPoolExecutor(NUM_THREADS) as threads:
        assert list(threads.map(ask, range(NUM_THREADS))) == alone


def test_the_asynchronous_client_gets_the_same(door):
    async def ask_all():
        async with openai.AsyncOpenAI(base_url=f"{door.url}/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(ask(client, nth) for nth in range(NUM_THREADS)))

    async def ask(client, nth):
        messages = [{"role": "user", "content": PROMPTS[nth % len(PROMPTS)]}]
        stream = await client.chat.completions.create(
            model=door.model, messages=messages, temperature=0, max_tokens=6, stream=True
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    expected = [door.chat_answer(PROMPTS[nth % len(PROMPTS)], max_tokens=6).text for nth in range(NUM_THREADS)]
    assert asyncio.run(ask_all()) == expected


def test_more_choices_than_the_cluster_computes_at_a_time_all_come(door):
    answer = door.answer(PROMPTS[0], n=128, temperature=1, seed=1, max_tokens=2)
    assert len(answer.choices) == 128
    assert answer.texts[:4] == door.answer(PROMPTS[0], n=4, temperature=1, seed=1, max_tokens=2).texts


def test_more_than_may_wait_are_refused_with_when_to_come_back_and_nothing_is_left(door, rpc):
    with pytest.raises(openai.RateLimitError) as caught:
        door.complete(["a"] * 256, n=2, max_tokens=1)
    assert caught.value.code == "rate_limit_exceeded"
    assert int(caught.value.response.headers["retry-after"]) >= 1
    rpc.await_idle()
    assert door.complete(max_tokens=1).choices[0].text
