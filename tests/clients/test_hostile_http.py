"""What is sent to do harm, or by a broken client. Whatever it is, all others are served as before."""

import contextlib
import json
import random
import re
import socket
import struct

import httpx
import pytest

# How long an answer may take to come: a bound, for nothing here waits so long.
TIMEOUT_S = 20
# Of HTTP/2: kinds of frames, errors and flags.
HEADERS, RST_STREAM, SETTINGS, GOAWAY, CONTINUATION = 1, 3, 4, 7, 9
PROTOCOL_ERROR, FRAME_SIZE_ERROR, ENHANCE_YOUR_CALM = 1, 6, 11
END_STREAM, END_HEADERS = 1, 4
# GET http://x/live, of the static table but for the path and the authority.
LIVE_FIELDS = b"\x82\x86\x04\x05/live\x01\x01x"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
REQUEST = b"POST /v1/completions HTTP/1.1\r\nhost: a\r\n"
CHUNKED = REQUEST + b"transfer-encoding: chunked\r\n\r\n"
LIVE = b"GET /live HTTP/1.1\r\nhost: a\r\n\r\n"
LAST_LIVE = b"GET /live HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
ROUTES = {
    "/v1/chat/completions": "POST",
    "/v1/completions": "POST",
    "/v1/models": "GET",
    "/tokenize": "POST",
    "/detokenize": "POST",
    "/health": "GET",
    "/ready": "GET",
    "/live": "GET",
}


@pytest.fixture(scope="module")
def expected(door):
    return door.answer().text


@pytest.fixture(autouse=True)
def unharmed(cluster, door, rpc, expected):
    """After each test here: somebody new is answered, as before, and nothing is left of what was asked."""
    yield
    with httpx.Client(base_url=cluster.http, timeout=TIMEOUT_S) as client:
        body = {"model": door.model, "prompt": "The capital of France is", "temperature": 0, "max_tokens": 8}
        assert client.post("/v1/completions", json=body).json()["choices"][0]["text"] == expected
    status = rpc.await_idle()
    assert status.counters["conservation_violations"] == 0
    assert status.counters["epochs"] == 1, "no worker was lost"


def connect(cluster):
    host, port = cluster.http.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=TIMEOUT_S)


def send(connection, data):
    """All of it, or as much as somebody takes who has heard enough."""
    with contextlib.suppress(ConnectionError):
        connection.sendall(data)


def read_all(connection):
    """To the end that the server makes: fails if it makes none."""
    received = b""
    # A server that closes with bytes unread resets the connection.
    with contextlib.suppress(ConnectionError):
        while data := connection.recv(1 << 16):
            received += data
    return received


def exchange(cluster, data, ends=False):
    """What comes back until the server closes. With `ends` we have said all, and say that."""
    with connect(cluster) as connection:
        send(connection, data)
        if ends:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_WR)
        return read_all(connection)


def statuses(received):
    """Of the responses, one after the other. Their bodies may not hold such lines."""
    return [int(status) for status in re.findall(rb"HTTP/1\.[01] (\d{3}) ", received)]


def post(body, *headers):
    lines = [b"content-length: %d" % len(body), b"connection: close", *headers]
    return REQUEST + b"\r\n".join(lines) + b"\r\n\r\n" + body


def read_response(connection):
    """The status and the head of one without a body, of a connection that stays open."""
    received = b""
    while b"\r\n\r\n" not in received:
        data = connection.recv(1 << 16)
        assert data, received
        received += data
    return statuses(received)[0], received


# Bytes that are no HTTP.


@pytest.mark.parametrize("beginning", [b"", b"GET ", b"POST /v1/completions HTTP/1.1\r\n", b"\x16\x03\x01\x02\x00\x01"])
def test_random_bytes_are_no_request(cluster, seed, beginning):
    source = random.Random(seed)
    for _ in range(20):
        data = beginning + source.randbytes(source.randrange(1, 3000))
        # More than one where a line break comes early, by chance: what stands before it is a whole request.
        assert set(statuses(exchange(cluster, data, ends=True))) <= {400, 404, 405, 431}, data


GARBAGE = {
    "bytes": b"\xff" * 100,
    "HTTP/1": b"GET / HTTP/1.1\r\n\r\n",
    "settings of a stream": b"\0\0\0\x04\0\0\0\0\x01",
    "half a setting": b"\0\0\x03\x04\0\0\0\0\0abc",
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE.keys())
def test_garbage_after_the_preface_of_http_2_ends_the_connection(cluster, garbage):
    frames = http2_frames(exchange(cluster, PREFACE + garbage))
    assert [kind for kind, _ in frames][-1] == GOAWAY
    (code,) = struct.unpack(">I", frames[-1][1][4:8])
    assert code in (PROTOCOL_ERROR, FRAME_SIZE_ERROR)


def test_random_frames_of_http_2_harm_nobody(cluster, seed):
    source = random.Random(seed)
    for _ in range(40):
        frames = b"".join(random_frame(source) for _ in range(20))
        exchange(cluster, PREFACE + frame(SETTINGS) + frames, ends=True)


def random_frame(source):
    """Of a kind that there is, mostly, with anything in it."""
    payload = source.randbytes(source.randrange(40))
    return frame(source.randrange(12), source.randrange(256), source.randrange(4), payload)


def frame(kind, flags=0, stream=0, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def http2_frames(received):
    """The kind and the payload of each."""
    frames = []
    while received:
        length = int.from_bytes(received[:3], "big")
        frames.append((received[3], received[9 : 9 + length]))
        received = received[9 + length :]
    return frames


def test_a_request_of_http_2_is_answered_without_http_1(cluster):
    # Else what follows here tests nothing.
    request = frame(HEADERS, END_STREAM | END_HEADERS, 1, LIVE_FIELDS)
    frames = http2_frames(exchange(cluster, PREFACE + frame(SETTINGS) + request, ends=True))
    # The first field of the answer is `:status: 200` of the static table.
    assert [payload[0] for kind, payload in frames if kind == HEADERS] == [0x88]


def test_requests_of_http_2_that_are_taken_back_at_once_end_the_connection(cluster):
    begin = PREFACE + frame(SETTINGS)
    resets = [
        frame(HEADERS, END_STREAM | END_HEADERS, stream, LIVE_FIELDS) + frame(RST_STREAM, 0, stream, b"\0\0\0\x08")
        for stream in range(1, 20_001, 2)
    ]
    assert_too_much(exchange(cluster, begin + b"".join(resets)))


def assert_too_much(received):
    """The connection has ended with a word about it, unless a reset was faster: we were still sending."""
    codes = [struct.unpack(">I", payload[4:8])[0] for kind, payload in http2_frames(received) if kind == GOAWAY]
    assert codes in ([], [ENHANCE_YOUR_CALM])


def test_headers_of_http_2_that_never_end_end_the_connection(cluster):
    # Each is a field of its own: "x: " and a kilobyte.
    piece = b"\x00\x01x\x7f\x81\x07" + b"a" * 1024
    endless = [frame(CONTINUATION, 0, 1, piece) for _ in range(2000)]
    begin = PREFACE + frame(SETTINGS) + frame(HEADERS, END_STREAM, 1, LIVE_FIELDS)
    # Nobody keeps two megabytes of headers.
    assert_too_much(exchange(cluster, begin + b"".join(endless)))


# Heads of requests.

HEADS = {
    "200 headers": (LIVE[:-2] + b"".join(b"x-%d: a\r\n" % number for number in range(200)) + b"\r\n", 431),
    "a header of 1 MB": (LIVE[:-2] + b"x: " + b"a" * (1 << 20) + b"\r\n\r\n", 431),
    "a name of 1 MB": (LIVE[:-2] + b"a" * (1 << 20) + b": x\r\n\r\n", 431),
    "a line of 1 MB": (b"GET /" + b"a" * (1 << 20) + b" HTTP/1.1\r\n\r\n", 431),
    "a method of 1 MB": (b"G" * (1 << 20) + b" / HTTP/1.1\r\n\r\n", 431),
    "a version that is none": (b"GET /live HTTP/7.7\r\nhost: a\r\n\r\n", 400),
    "no version": (b"GET /live\r\nhost: a\r\n\r\n", 400),
    "a space before the colon": (b"GET /live HTTP/1.1\r\nhost : a\r\n\r\n", 400),
    "a header on two lines": (b"GET /live HTTP/1.1\r\nhost: a\r\n b: c\r\n\r\n", 400),
    "a null byte in a header": (b"GET /live HTTP/1.1\r\nhost: a\0b\r\n\r\n", 400),
    "a null byte in a path": (b"GET /li\0ve HTTP/1.1\r\nhost: a\r\n\r\n", 400),
    "another encoding": (REQUEST + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n", 400),
    "chunked, and then not": (REQUEST + b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n", 400),
    "two lengths": (REQUEST + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{} ", 400),
}


@pytest.mark.parametrize("head, status", HEADS.values(), ids=HEADS.keys())
def test_a_head_that_is_none_is_refused_and_ends_the_connection(cluster, head, status):
    # What follows it is not read as a request: nobody knows where this one ends.
    received = exchange(cluster, head + LIVE)
    # It may be reset before it is read, if we were still sending.
    assert statuses(received) == [status] or (not received and len(head) > 1 << 20)


@pytest.mark.parametrize("length", ["-1", "+2", "0x2", "2, 3", "two", "", "2 2", "9" * 30, str(2**64 - 1), str(2**64)])
def test_a_length_that_is_none_is_refused(cluster, length):
    received = exchange(cluster, REQUEST + b"content-length: %s\r\n\r\n{}" % length.encode() + LIVE)
    assert statuses(received) in ([400], [413], [431])


def test_a_body_that_is_announced_too_large_costs_nothing(cluster, door):
    # No room is made for what did not come. The client is still heard, and others meanwhile.
    with connect(cluster) as connection:
        send(connection, REQUEST + b"content-length: %d\r\n\r\n{" % 2**62)
        assert door.raw_completion().status_code == 200


CHUNKS = {
    "no number": b"zz\r\n{}\r\n0\r\n\r\n",
    "negative": b"-1\r\n{}\r\n0\r\n\r\n",
    "too large for a number": b"f" * 20 + b"\r\n{}",
    "shorter than its data": b"1\r\n{}\r\n0\r\n\r\n",
    "without an end": b"2\r\n{}2\r\n{}\r\n0\r\n\r\n",
    "an extension of 100 kB": b"2;" + b"a" * 100_000 + b"\r\n{}\r\n0\r\n\r\n",
    "20,000 trailers": b"0\r\n" + b"x: a\r\n" * 20_000 + b"\r\n",
}


@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS.keys())
def test_a_chunk_of_a_wrong_size_is_refused_and_ends_the_connection(cluster, chunks):
    received = exchange(cluster, CHUNKED + chunks + LIVE)
    assert statuses(received) == [400] or (not received and len(chunks) > 100_000)


@pytest.mark.parametrize("size", [b"50", b"ffffffffffffffff", b"0" * 1000])
def test_a_chunk_that_does_not_come_is_refused_once_the_client_has_ended(cluster, size):
    received = exchange(cluster, CHUNKED + size + b"\r\n{}\r\n", ends=True)
    assert statuses(received) in ([], [400])


def test_a_length_and_chunks_together_smuggle_nothing(cluster):
    # A proxy that goes by the length sees one request here.
    hidden = b"GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n"
    body = b"0\r\n\r\n" + hidden
    head = b"POST /tokenize HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\ntransfer-encoding: chunked\r\n\r\n"
    received = exchange(cluster, head % len(body) + body, ends=True)
    assert statuses(received) == [400]
    assert b"/smuggled" not in received


# Connections.


def test_a_request_that_dribbles_and_is_left_holds_up_nobody(cluster, door, expected):
    request = REQUEST + b"content-length: 100\r\n\r\n{"
    with connect(cluster) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for index in range(len(request)):
            connection.sendall(request[index : index + 1])
            if index % 10 == 0:
                assert door.answer().text == expected


def test_idle_connections_hold_up_nobody(cluster, door, expected):
    with contextlib.ExitStack() as held:
        for index in range(300):
            connection = held.enter_context(connect(cluster))
            # Some have said nothing, some half of a head, and some a head without its body.
            connection.sendall([b"", b"GET /live HT", REQUEST + b"content-length: 5\r\n\r\n"][index % 3])
        for _ in range(5):
            assert door.answer().text == expected
            # As does somebody new.
            assert statuses(exchange(cluster, LAST_LIVE)) == [200]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_stream_that_is_never_read_ends_with_its_connection(cluster, door, rpc, path):
    before = rpc.await_idle().counters
    fields = {"model": door.model, "max_tokens": 7000, "ignore_eos": True, "stream": True, "n": 2}
    prompt = {"prompt": "Hi"} if path == "/v1/completions" else {"messages": [{"role": "user", "content": "Hi"}]}
    body = json.dumps(fields | prompt).encode()
    with connect(cluster) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        connection.sendall(post(body).replace(b"/v1/completions", path.encode()))
        rpc.await_status(lambda status: len(status.sequences) == 2, "two sequences")
        assert door.raw_completion().status_code == 200
    after = rpc.await_idle().counters
    assert after["cancelled"] - before["cancelled"] == 2


def test_a_hundred_answers_that_nobody_waits_for_are_all_freed(cluster, door, rpc):
    body = json.dumps({"model": door.model, "prompt": "Hi", "max_tokens": 4000, "ignore_eos": True, "stream": True})
    before = rpc.await_idle().counters
    for index in range(100):
        with connect(cluster) as connection:
            connection.sendall(post(body.encode()))
            # Some leave when their answer has begun, others before anything has.
            if index % 2:
                assert connection.recv(1)
    status = rpc.await_idle()
    ended = {name: status.counters[name] - before[name] for name in ("submitted", "finished", "cancelled")}
    assert len(set(ended.values())) == 1 and ended["cancelled"] >= 50, ended
    blocks = status.groups[0].blocks
    assert (blocks.unaccounted, blocks.held) == (0, 0)


def test_pipelined_requests_are_answered_in_their_order(cluster, door):
    body = json.dumps({"model": door.model, "prompt": "Hi", "max_tokens": 1}).encode()
    completion = REQUEST + b"content-length: %d\r\n\r\n" % len(body) + body
    requests = [LIVE, completion, b"GET /none HTTP/1.1\r\nhost: a\r\n\r\n", completion, LIVE, LAST_LIVE]
    assert statuses(exchange(cluster, b"".join(requests))) == [200, 200, 404, 200, 200, 200]


def test_a_thousand_pipelined_requests_are_all_answered(cluster):
    assert statuses(exchange(cluster, LIVE * 999 + LAST_LIVE)) == [200] * 1000


def test_a_client_that_asks_whether_it_may_send_is_told_so(cluster, door):
    body = json.dumps({"model": door.model, "prompt": "Hi", "max_tokens": 1}).encode()
    head = b"content-length: %d\r\nexpect: 100-continue\r\nconnection: close\r\n\r\n" % len(body)
    with connect(cluster) as connection:
        connection.sendall(REQUEST + head)
        assert read_response(connection)[0] == 100
        connection.sendall(body)
        assert statuses(read_all(connection)) == [200]


def test_a_client_of_http_1_0_gets_a_stream_that_ends_with_its_connection(cluster, door):
    body = json.dumps({"model": door.model, "prompt": "Hi", "max_tokens": 2, "stream": True}).encode()
    received = exchange(cluster, post(body).replace(b"HTTP/1.1", b"HTTP/1.0").replace(b"connection: close\r\n", b""))
    head, _, stream = received.partition(b"\r\n\r\n")
    assert statuses(head) == [200]
    # It knows no chunks.
    assert b"transfer-encoding" not in head.lower()
    assert stream.startswith(b"data: ") and stream.endswith(b"data: [DONE]\n\n")


# Methods.


@pytest.mark.parametrize("path", ROUTES)
def test_head_is_a_get_without_its_body(cluster, path):
    received = exchange(cluster, b"HEAD %s HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n" % path.encode())
    head, _, body = received.partition(b"\r\n\r\n")
    assert statuses(head) == [200 if ROUTES[path] == "GET" else 405]
    assert not body


@pytest.mark.parametrize("method", ["OPTIONS", "TRACE", "CONNECT", "PATCH", "GETS", "X" * 100])
@pytest.mark.parametrize("path", ROUTES)
def test_a_method_that_a_route_does_not_have_is_told_those_that_it_has(door, path, method):
    response = door.http.request(method, path, headers={"x-secret": "told"})
    assert response.status_code == 405
    assert ROUTES[path] in response.headers["allow"]
    assert response.json()["error"]["code"] == "method_not_allowed"
    # TRACE would send it back.
    assert "told" not in response.text
    # No page of anybody's may ask from a browser.
    assert "access-control-allow-origin" not in response.headers


# JSON.

DEEP = b"[" * 100_000 + b"]" * 100_000
NO_JSON = {
    "deep": DEEP,
    "deep in a field": b'{"model": "MODEL", "prompt": ' + DEEP + b"}",
    "deep objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "deep without an end": b'{"prompt": ' + b"[" * 100_000,
    "a null byte": b'{"model": "MODEL", "prompt": "a\x00b"}',
    "null bytes": b"\x00" * 1000,
    "half a pair": b'{"model": "MODEL", "prompt": "\\ud800"}',
    "the other half": b'{"model": "MODEL", "prompt": "\\udc00"}',
    "halves in the wrong order": b'{"model": "MODEL", "prompt": "\\udc00\\ud800"}',
    "half a pair in bytes": b'{"model": "MODEL", "prompt": "\xed\xa0\x80"}',
    "half a pair in a name": b'{"\\ud800": 1}',
    "too long a form": b'{"model": "MODEL", "prompt": "\xc0\x80"}',
    "1e999": b'{"model": "MODEL", "prompt": "Hi", "temperature": 1e999}',
    "-1e999": b'{"model": "MODEL", "prompt": "Hi", "max_tokens": -1e999}',
    "Infinity": b'{"model": "MODEL", "prompt": "Hi", "temperature": Infinity}',
    "a number without an end": b'{"model": "MODEL", "prompt": "Hi", "max_tokens": ' + b"9" * 100_000,
    "a long number": b'{"model": "MODEL", "prompt": "Hi", "max_tokens": ' + b"9" * 100_000 + b"}",
    "hexadecimal": b'{"model": "MODEL", "prompt": "Hi", "max_tokens": 0x1}',
    "a mark of the byte order": b'\xef\xbb\xbf{"model": "MODEL", "prompt": "Hi"}',
    "two values": b'{"model": "MODEL", "prompt": "Hi"}{}',
    "UTF-16": '{"model": "MODEL", "prompt": "Hi"}'.encode("utf-16"),
}


@pytest.mark.parametrize("path", ["/v1/completions", "/tokenize"])
@pytest.mark.parametrize("body", NO_JSON.values(), ids=NO_JSON.keys())
def test_json_that_is_none_is_refused(door, path, body):
    response = door.http.post(path, content=body.replace(b"MODEL", door.model.encode()))
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert len(error["message"]) < 1000, "it is not sent back"


@pytest.mark.parametrize(
    "field, value",
    [
        ("max_tokens", 10**30),
        ("max_tokens", -1),
        ("max_tokens", 1.5),
        ("n", 10**9),
        ("seed", 2**64),
        ("temperature", 1e308),
        ("temperature", -1e308),
        ("top_p", 1e-400 + 2),
        ("top_k", -(2**63)),
        ("logprobs", 2**31),
        ("priority", 2**31),
        ("stop", ["a"] * 100_000),
        ("prompt", ["a"] * 100_000),
        ("prompt", [2**32]),
        ("prompt", [-1]),
        ("logit_bias", {str(token): 1 for token in range(40_000)}),
        ("logit_bias", {"1": 1e308}),
        ("stop_token_ids", [2**40]),
        ("user", "a" * 1_000_000),
        ("prompt", "a" * 2_000_000),
    ],
    ids=lambda value: str(value)[:20],
)
def test_numbers_and_lists_beyond_all_bounds_are_refused_by_their_field(door, field, value):
    response = door.raw_completion(**{field: value})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == field
    assert len(error["message"]) < 1000, "it is not sent back"


@pytest.mark.parametrize("field", ["prompt", "user", "stop"])
def test_a_null_character_is_one_like_others(door, field):
    assert door.raw_completion(**{field: "a\0b"}).status_code == 200


def test_a_prompt_with_a_null_character_is_not_cut_there(door):
    assert door.detokenize(door.tokenize("a\0b")) == "a\0b"


def test_of_two_fields_of_one_name_the_last_one_counts(door):
    # As for most who read JSON, and whoever stands in between.
    body = '{"model": "none", "model": "%s", "prompt": "Hi", "max_tokens": 3, "max_tokens": 1}' % door.model
    response = door.http.post("/v1/completions", content=body)
    assert response.json()["usage"]["completion_tokens"] == 1


def test_a_pair_of_halves_is_a_character(door):
    body = b'{"prompt": "\\ud83d\\ude00"}'
    ids = door.http.post("/tokenize", content=body).json()["tokens"]
    assert door.detokenize(ids) == "\N{GRINNING FACE}"


@pytest.mark.parametrize("name", ["é", "a" * 101, "a" * 10_000, ""], ids=lambda name: name[:3])
def test_a_name_of_a_request_that_is_none_is_replaced(door, name):
    response = door.http.get("/live", headers={"x-request-id": name.encode()})
    assert response.status_code == 200
    assert response.headers["x-request-id"].isalnum()
