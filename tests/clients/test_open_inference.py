"""The Open Inference Protocol over gRPC, as clients of KServe and Triton speak it."""

import struct

import grpc
import pytest

from door import PROMPT
from stubs import OpenInference, oip

TEXTS = [PROMPT, "1 2 3 4"]


@pytest.fixture(scope="module")
def service(cluster):
    with grpc.insecure_channel(cluster.grpc) as channel:
        yield OpenInference(channel)


def parameters(**values):
    kinds = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}
    return {name: oip.InferParameter(**{kinds[type(value)]: value}) for name, value in values.items()}


def request(door, texts=TEXTS, raw=False, outputs=(), **values):
    elements = [text.encode() for text in texts]
    tensor = oip.ModelInferRequest.InferInputTensor(name="text_input", datatype="BYTES", shape=[len(texts)])
    message = oip.ModelInferRequest(model_name=door.model, parameters=parameters(**values))
    if raw:
        message.raw_input_contents.append(b"".join(struct.pack("<I", len(one)) + one for one in elements))
    else:
        tensor.contents.bytes_contents.extend(elements)
    message.inputs.append(tensor)
    message.outputs.extend(oip.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in outputs)
    return message


def by_name(response):
    return {output.name: output for output in response.outputs}


def refused(service, message):
    with pytest.raises(grpc.RpcError) as caught:
        service.ModelInfer(message)
    return caught.value


def test_the_server_and_its_model_are_ready(service, door):
    assert service.ServerLive(oip.ServerLiveRequest()).live
    assert service.ServerReady(oip.ServerReadyRequest()).ready
    assert service.ModelReady(oip.ModelReadyRequest(name=door.model)).ready
    assert service.ServerMetadata(oip.ServerMetadataRequest()).name == "kvasir"


def test_the_models_tensors_are_described(service, door):
    described = service.ModelMetadata(oip.ModelMetadataRequest(name=door.model))
    assert [(one.name, one.datatype, list(one.shape)) for one in described.inputs] == [("text_input", "BYTES", [-1])]
    assert [one.name for one in described.outputs] == ["text_output", "finish_reason", "completion_tokens"]


@pytest.mark.parametrize("raw", [False, True])
def test_prompts_get_the_answers_that_openais_door_gives(service, door, raw):
    expected = [door.complete(text, max_tokens=8, temperature=0).choices[0].text for text in TEXTS]
    response = service.ModelInfer(request(door, raw=raw, max_tokens=8, temperature=0.0))
    if raw:
        contents = response.raw_output_contents
        assert contents[0] == b"".join(struct.pack("<I", len(one.encode())) + one.encode() for one in expected)
        assert struct.unpack("<II", contents[2]) == (8, 8)
    else:
        outputs = by_name(response)
        assert [one.decode() for one in outputs["text_output"].contents.bytes_contents] == expected
        assert list(outputs["completion_tokens"].contents.uint_contents) == [8, 8]
        assert list(outputs["finish_reason"].contents.bytes_contents) == [b"length"] * 2


def test_parameters_reach_the_sampling(service, door):
    values = dict(max_tokens=12, temperature=1.0, seed=5, top_k=50, stop="e")
    response = service.ModelInfer(request(door, [PROMPT], **values))
    expected = door.complete(PROMPT, **values).choices[0]
    outputs = by_name(response)
    assert outputs["text_output"].contents.bytes_contents[0].decode() == expected.text
    assert outputs["finish_reason"].contents.bytes_contents[0].decode() == expected.finish_reason


def test_outputs_that_are_named_are_the_only_ones(service, door):
    message = request(door, [PROMPT], outputs=["completion_tokens"], max_tokens=3)
    message.id = "mine"
    response = service.ModelInfer(message)
    assert response.id == "mine" and [output.name for output in response.outputs] == ["completion_tokens"]


def test_what_is_not_known_is_refused_by_name(service, door):
    for message, name in [
        (request(door, heat=1.0), "heat"),
        (request(door, max_tokens=-1), "max_tokens"),
        (request(door, temperature=-1.0), "temperature"),
        (request(door, outputs=["logits"]), "logits"),
        (request(door, []), "text_input"),
        (oip.ModelInferRequest(model_name=door.model), "text_input"),
    ]:
        error = refused(service, message)
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT and name in error.details()


def test_another_model_is_not_found(service):
    error = refused(service, oip.ModelInferRequest(model_name="none"))
    assert error.code() == grpc.StatusCode.NOT_FOUND and "none" in error.details()
