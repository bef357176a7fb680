"""What is served: `/v1/models`, health, and the fingerprint of the arithmetic."""

import time

import openai
import pytest

from stubs import v1


def test_models_are_listed_with_their_context(door):
    listed = door.openai.models.list()
    assert listed.object == "list"
    first = listed.data[0]
    assert (first.object, first.owned_by) == ("model", "kvasir")
    assert first.model_dump()["max_model_len"] == 8192


def test_every_listed_model_is_retrieved_and_answers(door):
    for model in door.openai.models.list().data:
        assert door.openai.models.retrieve(model.id) == model
        assert door.complete(model=model.id, max_tokens=1).model == model.id


def test_a_model_is_of_one_age_whenever_it_is_asked_for(door):
    until = time.monotonic() + 1
    ages = set()
    while time.monotonic() < until:
        ages.update(model.created for model in door.openai.models.list().data)
    assert len(ages) == 1


def test_another_model_is_not_found(door):
    with pytest.raises(openai.NotFoundError) as caught:
        door.openai.models.retrieve("gpt-none")
    assert caught.value.code == "model_not_found"


def test_the_name_of_another_model_may_have_slashes(door):
    with pytest.raises(openai.NotFoundError) as caught:
        door.openai.models.retrieve("org/none")
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize("path", ["/health", "/ready", "/live"])
def test_a_cluster_that_serves_is_healthy(door, path):
    assert door.http.get(path).status_code == 200


def test_the_fingerprint_is_the_id_of_the_arithmetic(door, rpc):
    numerics_id = rpc.status().numerics_id
    assert len(numerics_id) == 32
    assert door.chat("Hi", max_tokens=1).system_fingerprint == numerics_id
    assert door.complete(max_tokens=1).system_fingerprint == numerics_id
    assert {chunk.system_fingerprint for chunk in door.chat("Hi", stream=True)} == {numerics_id}


def test_both_doors_tell_of_the_same_model(door, rpc):
    model = rpc.inference.GetModel(v1.GetModelRequest())
    assert list(model.served_names) == [one.id for one in door.openai.models.list().data]
    assert model.context_len == 8192
