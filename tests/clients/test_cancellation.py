"""Answers that nobody waits for: a closed connection, an abort, a client that went away."""

import socket
import threading

import pytest

from stubs import v1

LONG = dict(max_tokens=4000, ignore_eos=True)


def abort(rpc, request_id):
    return rpc.inference.Abort(v1.AbortRequest(request_id=request_id)).found


@pytest.mark.parametrize("ask", ["chat", "complete"])
def test_a_stream_that_is_closed_frees_its_sequences(door, rpc, ask):
    rpc.await_idle()
    before = rpc.counters()
    stream = getattr(door, ask)(stream=True, n=2, **LONG)
    next(iter(stream))
    assert len(rpc.status().sequences) == 2
    stream.close()
    rpc.await_idle()
    after = rpc.counters()
    assert after["cancelled"] - before["cancelled"] == 2
    assert after["generation_tokens"] - before["generation_tokens"] < 2 * LONG["max_tokens"]


def test_every_prompt_of_a_closed_stream_is_freed(door, rpc):
    stream = door.complete(["a", "b", "c"], stream=True, **LONG)
    next(iter(stream))
    stream.close()
    rpc.await_idle()


def test_a_client_that_leaves_before_a_whole_answer_frees_its_sequence(cluster, door, rpc):
    rpc.await_idle()
    body = b'{"model": "%s", "prompt": "Hi", "max_tokens": 4000, "ignore_eos": true}' % door.model.encode()
    host, port = cluster.http.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        rpc.await_status(lambda status: status.sequences, "a sequence")
    rpc.await_idle()


def test_an_abort_ends_a_stream(door, rpc):
    with door.chat("Hi", stream=True, **LONG) as stream:
        chunks = iter(stream)
        first = next(chunks)
        assert abort(rpc, first.id)
        reasons = [chunk.choices[0].finish_reason for chunk in chunks]
    assert reasons[-1] == "abort" and len(reasons) < LONG["max_tokens"]
    rpc.await_idle()


def test_an_abort_ends_every_choice(door, rpc):
    with door.complete(stream=True, n=3, **LONG) as stream:
        chunks = iter(stream)
        assert abort(rpc, next(chunks).id)
        ended = [chunk.choices[0].index for chunk in chunks if chunk.choices[0].finish_reason == "abort"]
    assert sorted(ended) == [0, 1, 2]


def test_an_abort_ends_an_answer_that_comes_whole(door, rpc):
    rpc.await_idle()
    # The answer is awaited beside us.
    answers = []
    fields = dict(max_tokens=4000, ignore_eos=True, extra_headers={"x-request-id": "whole"})
    thread = threading.Thread(target=lambda: answers.append(door.complete(**fields)))
    thread.start()
    rpc.await_status(lambda status: status.sequences, "a sequence")
    assert abort(rpc, "cmpl-whole")
    thread.join()
    assert answers[0].choices[0].finish_reason == "abort"
    assert answers[0].usage.completion_tokens < 4000


def test_nobody_can_abort_what_does_not_run(door, rpc):
    response = door.complete(max_tokens=1)
    assert not abort(rpc, response.id)
    assert not abort(rpc, "never")


def test_blocks_are_all_accounted_for_when_nothing_runs(door, rpc):
    stream = door.complete(stream=True, **LONG)
    next(iter(stream))
    stream.close()
    blocks = rpc.await_idle().groups[0].blocks
    assert (blocks.unaccounted, blocks.held) == (0, 0)
