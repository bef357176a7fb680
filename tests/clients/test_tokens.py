"""`/tokenize` and `/detokenize`, as vLLM has them."""

import pytest

TEXTS = ["Hello", " two  spaces ", "naïve café", "🙂👍🏽", "\u05e9\u05dc\u05d5\u05dd", "a\n\tb", "", "\u0000\ufffd"]


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_a_text_comes_back(door, text):
    assert door.detokenize(door.tokenize(text)) == text


def test_the_answer_counts_and_says_what_fits(door):
    body = door.post("/tokenize", {"model": door.model, "prompt": "The capital of France is"}).json()
    assert body["count"] == len(body["tokens"]) == 5
    assert body["max_model_len"] == 8192


def test_texts_of_tokens_come_where_they_are_wanted(door):
    body = door.post("/tokenize", {"prompt": "The capital<|im_end|>", "return_token_strs": True}).json()
    assert body["token_strs"] == ["The", " capital", "<|im_end|>"]


def test_special_tokens_are_parsed_and_written(door):
    assert door.tokenize("<|im_start|>") == [1]
    assert door.detokenize([1, 2]) == "<|im_start|><|im_end|>"


def test_messages_become_the_prompt_of_a_chat(door):
    messages = [{"role": "user", "content": "Hi"}]
    body = door.post("/tokenize", {"messages": messages}).json()
    assert body["count"] == door.chat(messages, max_tokens=1).usage.prompt_tokens


@pytest.mark.parametrize(
    "path, body, param",
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": 3}, "prompt"),
        ("/tokenize", {"prompt": "a", "more": 1}, "more"),
        ("/tokenize", {"messages": [{"role": "user"}]}, "messages[0].content"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": "a"}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": [1.5]}, "tokens"),
        ("/detokenize", {"tokens": [99999]}, "tokens"),
    ],
    ids=str,
)
def test_what_is_no_request_is_refused(door, path, body, param):
    response = door.post(path, body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize"])
def test_another_model_is_not_found(door, path):
    response = door.post(path, {"model": "none", "prompt": "a", "tokens": [1]})
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"
