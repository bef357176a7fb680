"""Answers that must have a form: JSON, a schema, a regular expression, a choice, a grammar."""

import json
import pathlib
import re
from typing import Literal

import grpc
import jsonschema
import pydantic
import pytest

from answer import without_special
from rpc import name_of
from stubs import v1

ASK = "Tell me of a cat, as JSON."
CAT = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 30},
        "kind": {"enum": ["house cat", "lynx", "lion"]},
        "friends": {"type": "array", "items": {"type": "string", "maxLength": 6}, "maxItems": 2},
    },
    "required": ["name", "age", "kind", "friends"],
    "additionalProperties": False,
}
REGEX = r"[A-Z]{3}-[0-9]{4}"
CHOICE = ["red", "green", "blue \u2013 \"quoted\""]
GRAMMAR = 'start: greeting ", " NAME "!"\ngreeting: "Hello" | "Good morning"\nNAME: /[A-Z][a-z]{2,8}/\n'
GREETING = r"(Hello|Good morning), [A-Z][a-z]{2,8}!"
DRAWN = dict(temperature=1, max_tokens=150)


def schema_format(schema, name="cat"):
    return {"type": "json_schema", "json_schema": {"name": name, "schema": schema, "strict": True}}


def structured(kind, value):
    return {"structured_outputs": {kind: value}}


def check_cat(text):
    jsonschema.validate(json.loads(text), CAT)


# Every kind of form, how to ask for it, and how to check the text.
FORMS = {
    "json_schema": ({"response_format": schema_format(CAT)}, check_cat),
    "json": (structured("json", CAT), check_cat),
    "json as a text": (structured("json", json.dumps(CAT)), check_cat),
    "regex": (structured("regex", REGEX), lambda text: _matches(REGEX, text)),
    "choice": (structured("choice", CHOICE), lambda text: _is_one_of(CHOICE, text)),
    "grammar": (structured("grammar", GRAMMAR), lambda text: _matches(GREETING, text)),
}
forms = pytest.mark.parametrize("fields, check", FORMS.values(), ids=FORMS.keys())


def _matches(pattern, text):
    assert re.fullmatch(pattern, text), text


def _is_one_of(choices, text):
    assert text in choices


@pytest.mark.parametrize("seed", range(3))
@forms
def test_an_answer_has_its_form(door, fields, check, seed):
    answer = door.chat_answer(ASK, seed=seed, **DRAWN, **fields)
    assert answer.choices[0].finish_reason == "stop"
    check(answer.text)


@forms
def test_a_greedy_answer_has_its_form(door, fields, check):
    check(door.chat_answer(ASK, max_tokens=150, **fields).text)


@forms
def test_a_completion_has_its_form(door, fields, check):
    check(door.answer(ASK, seed=1, **DRAWN, **fields).text)


@forms
def test_each_of_three_choices_has_its_form(door, fields, check):
    answer = door.chat_answer(ASK, n=3, seed=7, **DRAWN, **fields)
    assert len(answer.choices) == 3
    for text in answer.texts:
        check(text)


@forms
def test_an_answer_with_a_form_streams_as_it_comes_whole(door, fields, check):
    asked = dict(seed=5, **DRAWN, **fields)
    streamed = door.chat_answer(ASK, stream=True, **asked)
    assert streamed.choices == door.chat_answer(ASK, **asked).choices
    check(streamed.text)


@forms
def test_an_answer_with_a_form_has_logprobs(door, fields, check):
    answer = door.chat_answer(ASK, seed=5, logprobs=True, top_logprobs=3, **DRAWN, **fields)
    tokens = answer.choices[0].logprobs["content"]
    spelled = b"".join(bytes(token["bytes"]) for token in tokens)
    assert without_special(spelled.decode()) == answer.text
    assert all(token["logprob"] <= 0 and len(token["top_logprobs"]) == 3 for token in tokens)


@forms
def test_ignoring_the_end_contradicts_a_form(door, fields, check):
    assert door.raw_chat(ignore_eos=True, **fields).status_code == 400


def test_a_form_is_not_what_comes_without_it(door):
    # Else the tests above would have tested nothing.
    with pytest.raises(json.JSONDecodeError):
        check_cat(door.chat_answer(ASK, seed=0, **DRAWN).text)


def test_an_object_is_an_object(door):
    # The brace that closes it is made likely: so the answer ends.
    (end,) = door.tokenize("}")
    answer = door.chat_answer(
        ASK, response_format={"type": "json_object"}, logit_bias={str(end): 20}, seed=1, **DRAWN
    )
    assert answer.choices[0].finish_reason == "stop"
    assert isinstance(json.loads(answer.text), dict)


def test_an_object_begins_as_one_however_long_it_is(door):
    answer = door.chat_answer("Hi", response_format={"type": "json_object"}, max_tokens=12)
    assert answer.text.lstrip().startswith("{")


def test_a_text_may_be_anything(door):
    assert door.chat_answer("Hi", response_format={"type": "text"}).choices == door.chat_answer("Hi").choices


class Cat(pydantic.BaseModel):
    kind: str = pydantic.Field(pattern="^(lynx|lion)$")
    age: int = pydantic.Field(ge=0, le=30)


def test_the_client_parses_an_answer_into_its_class(door):
    response = door.openai.chat.completions.parse(
        model=door.model,
        messages=[{"role": "user", "content": ASK}],
        response_format=Cat,
        temperature=0,
        max_tokens=100,
    )
    cat = response.choices[0].message.parsed
    assert isinstance(cat, Cat) and cat.kind in ("lynx", "lion") and 0 <= cat.age <= 30


@pytest.mark.parametrize("seed", range(3))
def test_an_answer_ends_where_its_schema_bounds_every_value(door, seed):
    # Of a model that likes empty lines: between two values they could go on forever.
    (line,) = door.tokenize("\n")
    answer = door.chat_answer(ASK, response_format=schema_format(CAT), logit_bias={str(line): 4}, seed=seed, **DRAWN)
    assert answer.choices[0].finish_reason == "stop", answer.text


class Animal(pydantic.BaseModel):
    kind: Literal["lynx", "lion"]
    age: int | None = None


class Zoo(pydantic.BaseModel):
    animals: list[Animal] = pydantic.Field(max_length=1)
    where: pathlib.Path


def test_a_class_of_classes_is_a_schema_too(door):
    # Formats are hints, says JSON Schema: `path` is no reason to refuse.
    response = door.raw_chat(response_format=schema_format(Zoo.model_json_schema()))
    assert response.status_code == 200, response.text


def test_the_same_seed_gives_the_same_form(door):
    fields = dict(response_format=schema_format(CAT), seed=3, **DRAWN)
    assert door.chat_answer(ASK, **fields).choices == door.chat_answer(ASK, **fields).choices


def test_an_answer_that_is_cut_off_says_so(door):
    choice = door.chat_answer(ASK, response_format=schema_format(CAT), max_tokens=3).choices[0]
    assert choice.finish_reason == "length"


def test_a_stop_string_ends_a_form_too(door):
    fields = structured("regex", "[ab]{10}x[ab]{10}")
    text = door.chat_answer(ASK, stop="x", seed=1, **DRAWN, **fields).text
    assert re.fullmatch("[ab]{10}", text)


def test_a_form_may_be_made_of_every_script(door):
    choices = ["שלום", "🙂👍🏽", "e\u0301"]
    answer = door.chat_answer("Hi", stream=True, seed=2, **DRAWN, **structured("choice", choices))
    assert answer.text in choices and "\ufffd" not in "".join(answer.choices[0].pieces)


REFUSED = {
    "a type that is none": ({"response_format": {"type": "xml"}}, "response_format.type"),
    "no type": ({"response_format": {}}, "response_format.type"),
    "no schema": ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    "a name alone": (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
        "response_format.json_schema.schema",
    ),
    "a schema that is none": ({"response_format": schema_format({"type": "cat"})}, "response_format"),
    "a reference to nothing": ({"response_format": schema_format({"$ref": "#/$defs/none"})}, "response_format"),
    "nothing that fits": (
        {"response_format": schema_format({"type": "string", "minLength": 3, "maxLength": 2})},
        "response_format",
    ),
    "a text": ({"response_format": "json_object"}, "response_format"),
    "a regex that is none": (structured("regex", "(["), "structured_outputs"),
    "no choices": (structured("choice", []), "structured_outputs"),
    "a grammar that is none": (structured("grammar", "start: nothing"), "structured_outputs"),
    "a schema that is no JSON": (structured("json", "{"), "structured_outputs"),
    "nothing": ({"structured_outputs": {}}, "structured_outputs"),
    "two at once": ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
    "both": (
        {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
        "structured_outputs",
    ),
}


@pytest.mark.parametrize("fields, param", REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_form_is_refused(door, fields, param):
    response = door.raw_chat(**fields)
    assert response.status_code == 400, response.text
    assert (response.json()["error"]["param"] or "").startswith(param)


KINDS = {
    "json_schema": (json.dumps(CAT), check_cat),
    "regex": (REGEX, lambda text: _matches(REGEX, text)),
    "lark": (GRAMMAR, lambda text: _matches(GREETING, text)),
}
kinds = pytest.mark.parametrize("kind, check", [(kind, check) for kind, (_, check) in KINDS.items()], ids=KINDS.keys())


def ask(rpc, kind, **more):
    constraint = v1.Constraint(**{kind: KINDS[kind][0]})
    return rpc.generate(
        chat=[("user", ASK)], sampling={"temperature": 1.0, "seed": 2}, constraint=constraint, max_tokens=150, **more
    )


@kinds
def test_a_constraint_over_grpc_is_kept(rpc, kind, check):
    choice = ask(rpc, kind)
    assert choice.reason == "stop"
    check(choice.text)


@kinds
def test_an_answer_with_a_constraint_is_resumed_to_the_bit(rpc, kind, check):
    whole = ask(rpc, kind)
    for received in (0, 1, len(whole.ids) // 2, len(whole.ids) - 1):
        resume = v1.Resume(descriptor=whole.descriptor, received_token_ids=whole.ids[:received])
        rest = rpc.generate(resume=resume)
        assert (rest.ids, rest.bits) == (whole.ids[received:], whole.bits[received:])


@pytest.mark.parametrize("kind, text", [("json_schema", "{"), ("regex", "(["), ("lark", "start: nothing")])
def test_a_constraint_that_is_none_is_refused(rpc, kind, text):
    error = rpc.refused(constraint=v1.Constraint(**{kind: text}))
    assert (error.code(), name_of(error)) == (grpc.StatusCode.INVALID_ARGUMENT, "invalid_constraint")


def test_a_constraint_contradicts_ignoring_the_end(rpc):
    error = rpc.refused(constraint=v1.Constraint(regex="a+"), ignore_eos=True)
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_a_constraint_has_a_largest_size(rpc):
    error = rpc.refused(constraint=v1.Constraint(regex="a" * (257 << 10)))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
