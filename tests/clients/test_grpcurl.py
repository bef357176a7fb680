"""grpcurl, which knows nothing but what the server tells of itself."""

import json
import subprocess

import pytest


@pytest.fixture(scope="module")
def curl(grpcurl, cluster):
    """Runs it with a message as JSON. The status, and what was printed."""

    def run(*arguments, data=None):
        message = [] if data is None else ["-d", json.dumps(data)]
        flags = [one for one in arguments if one.startswith("-")]
        words = [one for one in arguments if not one.startswith("-")]
        command = [grpcurl, "-plaintext", *flags, *message, cluster.grpc, *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    return run


def messages(text):
    """JSON objects, one after another."""
    decoder, found = json.JSONDecoder(), []
    while text := text.lstrip():
        message, end = decoder.raw_decode(text)
        found.append(message)
        text = text[end:]
    return found


def test_services_are_listed(curl):
    listed = curl("list").stdout.split()
    assert {"kvasir.v1.Inference", "kvasir.v1.Admin", "grpc.health.v1.Health"} <= set(listed)


def test_methods_are_listed(curl):
    listed = curl("list", "kvasir.v1.Inference").stdout.split()
    names = ("Abort", "Detokenize", "Generate", "GetModel", "Tokenize")
    assert sorted(listed) == [f"kvasir.v1.Inference.{name}" for name in names]


def test_messages_are_described(curl):
    described = curl("describe", "kvasir.v1.GenerateRequest").stdout
    assert "repeated string stop" in described and ".kvasir.v1.SamplingParams sampling" in described


def test_an_answer_is_generated(curl, rpc):
    request = {"text": "The capital of France is", "maxTokens": 4, "sampling": {"topLogprobs": 1}}
    done = curl("kvasir.v1.Inference/Generate", data=request)
    assert done.returncode == 0, done.stderr
    responses = messages(done.stdout)
    ids = [token["id"] for response in responses for token in response.get("chunk", {}).get("tokens", [])]
    assert ids == rpc.generate(max_tokens=4).ids
    assert responses[-1]["finished"]["reason"] == "FINISH_REASON_LENGTH"


def test_a_descriptor_as_json_resumes_an_answer(curl):
    request = {"text": "The capital of France is", "maxTokens": 6}
    whole = messages(curl("kvasir.v1.Inference/Generate", data=request).stdout)
    ids = [token["id"] for response in whole for token in response.get("chunk", {}).get("tokens", [])]
    resume = {"descriptor": whole[0]["started"]["descriptor"], "receivedTokenIds": ids[:2]}
    rest = messages(curl("kvasir.v1.Inference/Generate", data={"resume": resume}).stdout)
    assert [token["id"] for response in rest for token in response.get("chunk", {}).get("tokens", [])] == ids[2:]


def test_tokens_are_made_and_read(curl):
    (made,) = messages(curl("kvasir.v1.Inference/Tokenize", data={"text": "Hello"}).stdout)
    (read,) = messages(curl("kvasir.v1.Inference/Detokenize", data={"tokenIds": made["tokenIds"]}).stdout)
    assert read == {"text": "Hello"}


def test_the_status_of_the_cluster_is_told(curl):
    (status,) = messages(curl("kvasir.v1.Admin/Status", data={}).stdout)
    assert status["ready"] and len(status["groups"][0]["ranks"]) == 2


def test_health_is_told(curl):
    (health,) = messages(curl("grpc.health.v1.Health/Check", data={}).stdout)
    assert health == {"status": "SERVING"}


@pytest.mark.parametrize(
    "method, data, code",
    [
        ("Generate", {"text": ""}, "InvalidArgument"),
        ("Generate", {}, "InvalidArgument"),
        ("Generate", {"text": "a", "sampling": {"temperature": -1}}, "InvalidArgument"),
        ("Detokenize", {"tokenIds": [99999]}, "InvalidArgument"),
    ],
    ids=str,
)
def test_a_refusal_has_its_code_and_a_sentence(curl, method, data, code):
    done = curl(f"kvasir.v1.Inference/{method}", data=data)
    assert done.returncode != 0
    assert f"Code: {code}" in done.stderr and "Message: " in done.stderr


def test_the_name_of_an_error_is_in_its_metadata(curl):
    done = curl("-v", "kvasir.v1.Inference/Generate", data={"text": ""})
    assert "kvasir-error: invalid_request" in done.stdout + done.stderr


def test_an_unknown_field_is_found_by_the_client(curl):
    done = curl("kvasir.v1.Inference/Generate", data={"text": "a", "tempratuer": 1})
    assert done.returncode != 0 and "tempratuer" in done.stderr
