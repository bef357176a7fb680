"""Ids beside texts: `return_token_ids`, where vLLM puts them."""

from door import PROMPT


def test_ids_of_a_completion_are_those_of_its_text(door):
    choice = door.answer(return_token_ids=True).choices[0]
    assert door.detokenize(choice.token_ids) == choice.text


def test_ids_do_not_come_unasked(door):
    body = door.complete().model_dump()
    assert "token_ids" not in body["choices"][0] and "prompt_token_ids" not in body


def test_a_prompts_ids_stand_with_each_choice_of_a_completion(door):
    prompts = [PROMPT, "1 2 3"]
    choices = door.complete(prompts, return_token_ids=True).model_dump()["choices"]
    assert [choice.get("prompt_token_ids") for choice in choices] == [door.tokenize(prompt) for prompt in prompts]


def test_a_prompts_ids_stand_in_the_answer_of_a_chat(door):
    expected = door.post("/tokenize", {"messages": [{"role": "user", "content": "Hi"}]}).json()["tokens"]
    assert door.chat("Hi", return_token_ids=True).model_dump()["prompt_token_ids"] == expected


def test_a_prompts_ids_come_with_a_stream_of_a_chat(door):
    chunks = [chunk.model_dump() for chunk in door.chat("Hi", return_token_ids=True, stream=True)]
    found = [chunk["prompt_token_ids"] for chunk in chunks if chunk.get("prompt_token_ids")]
    assert found == [door.post("/tokenize", {"messages": [{"role": "user", "content": "Hi"}]}).json()["tokens"]]


def test_a_prompts_ids_come_with_a_stream_of_a_completion(door):
    chunks = [chunk.model_dump() for chunk in door.complete(return_token_ids=True, stream=True)]
    found = [chunk["choices"][0].get("prompt_token_ids") for chunk in chunks]
    assert [ids for ids in found if ids] == [door.tokenize(PROMPT)]


def test_ids_of_a_stream_are_those_of_the_whole(door):
    fields = dict(return_token_ids=True, n=2, temperature=1, seed=6)
    assert door.answer(stream=True, **fields).choices == door.answer(**fields).choices


def test_an_echo_does_not_add_the_prompts_ids_to_the_answers(door):
    assert door.answer(return_token_ids=True, echo=True).choices[0].token_ids == door.answer(
        return_token_ids=True
    ).choices[0].token_ids
