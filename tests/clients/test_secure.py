"""Who may ask: keys and certificates, as OpenAI's client meets them, and what an operator sees and changes."""

import contextlib
import http.client
import json
import os
import socket
import ssl
import threading

import httpx
import openai
import pytest

from secure import WRONG_KEY, Authority, Gateway, Secure, until

OPEN_PATHS = ["/health", "/ready", "/live", "/metrics", "/", "/page/app.js"]
LONG = dict(max_tokens=4000, extra_body={"ignore_eos": True})


@pytest.fixture(scope="module")
def secure(tmp_path_factory):
    folder = tmp_path_factory.mktemp("secure")
    secure = Secure(os.environ["KVASIR_BIN"], os.environ["KVASIR_MODEL"], folder)
    yield secure
    assert secure.stop() == 0, "a cluster that is told to end has not failed"


@pytest.fixture(scope="module")
def answer(secure):
    """What everybody who may ask is told."""
    return secure.answer_as(secure.key)


@pytest.fixture
def added(secure):
    """Adds keys, and takes away what is left of them."""
    names = []

    def add(name, *flags):
        names.append(name)
        return secure.key_file.add(name, *flags)

    yield add
    for name in names:
        secure.key_file.remove(name)


@contextlib.contextmanager
def counted(secure, name, times=1):
    """So many refusals of that name, and no others. Waits for them: a client may know before it is counted."""
    before = secure.refusals()
    yield
    until(lambda: secure.refusals()[name] == before[name] + times, f"{times} more {name}")
    after = secure.refusals()
    after[name] -= times
    assert after == before, "nothing else is counted"


def raw_get(secure, path, headers=None, certificate=None):
    """Of a path as it is: other clients tidy it first."""
    host = secure.url.removeprefix("https://")
    connection = http.client.HTTPSConnection(host, context=secure.authority.context(certificate), timeout=60)
    connection.request("GET", path, headers=headers or {})
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response, body


def assert_unauthenticated(secure, refused):
    with pytest.raises(openai.AuthenticationError) as caught:
        refused()
    error = caught.value
    assert (error.status_code, error.code, error.type) == (401, "invalid_api_key", "invalid_request_error")
    assert error.response.headers["www-authenticate"] == "Bearer"
    assert error.response.json()["error"].keys() == {"message", "type", "param", "code"}
    assert secure.key not in error.response.text


def test_a_key_of_the_file_answers(secure):
    with secure.client(secure.key) as client:
        assert client.models.list().data[0].id == secure.model
        assert secure.answer(client)
        stream = secure.complete(client, stream=True)
        assert "".join(piece.choices[0].text for piece in stream) == secure.answer(client)
        chat = client.chat.completions.create(
            model=secure.model, messages=[{"role": "user", "content": "Hi"}], max_tokens=2
        )
        assert chat.usage.completion_tokens == 2


def test_nobody_asks_without_a_key(secure):
    with secure.client() as client, counted(secure, "missing_key", 3):
        assert_unauthenticated(secure, client.models.list)
        assert_unauthenticated(secure, lambda: secure.complete(client))
        assert_unauthenticated(secure, lambda: secure.complete(client, stream=True))


def test_whoever_calls_it_grpc_is_refused_as_http_all_the_same(secure):
    # Proxies and monitors count statuses.
    response, body = raw_get(secure, "/v1/models", {"content-type": "application/grpc"})
    assert response.status == 401 and json.loads(body)["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize("wrong", ["other", "part", "more", "upper case", "hash"])
def test_nobody_asks_with_a_wrong_key(secure, wrong):
    (line,) = [line for line in secure.key_file.path.read_text().splitlines() if '"ada"' in line]
    keys = {
        "other": WRONG_KEY,
        "part": secure.key[:-1],
        "more": secure.key + "0",
        "upper case": secure.key.upper(),
        # Whoever reads the file has no key by that.
        "hash": json.loads(line)["sha256"],
    }
    with secure.client(keys[wrong]) as client, counted(secure, "wrong_key"):
        assert_unauthenticated(secure, lambda: secure.complete(client))


@pytest.mark.parametrize("value", ["Basic KEY", "KEY", "Bearer", "Bearer ", "Token KEY", "Bearer KEY KEY", "Bearer é"])
def test_a_key_in_another_form_is_none(secure, value):
    headers = {"authorization": value.replace("KEY", secure.key)}
    response, body = raw_get(secure, "/v1/models", headers)
    assert response.status == 401
    assert json.loads(body)["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_scheme_is_read_in_any_case(secure, scheme):
    response, _body = raw_get(secure, "/v1/models", {"authorization": f"{scheme} {secure.key}"})
    assert response.status == 200


@pytest.mark.parametrize(
    "path",
    [
        "/cluster/status",
        "/cluster/events",
        "/v1/models",
        "/v1/models/x",
        "/nothing",
        "/health/",
        "/health/../v1/models",
        "/%68ealth",
        "//health",
        "/v1/models?/health",
        "/kvasir.v1.Admin/Status",
        "/kvasir.v1.Cluster/../v1/models",
    ],
)
def test_no_other_path_is_open(secure, path):
    # Also those that lead nowhere: strangers learn nothing.
    response, body = raw_get(secure, path)
    assert response.status == 401, body
    assert b"owned_by" not in body


@pytest.mark.parametrize("path", OPEN_PATHS)
def test_health_is_open_to_all(secure, path):
    assert raw_get(secure, path)[0].status == 200
    # A key that is wrong is no reason either.
    assert raw_get(secure, path, {"authorization": f"Bearer {WRONG_KEY}"})[0].status == 200


def test_a_certificate_is_as_good_as_a_key(secure, answer):
    assert secure.answer_as(certificate=secure.authority.pair("client")) == answer
    assert secure.answer_as(certificate=secure.authority.pair("admin")) == answer


def test_a_wrong_key_is_refused_whatever_the_certificate(secure):
    with secure.client(WRONG_KEY, secure.authority.pair("admin")) as client:
        assert_unauthenticated(secure, lambda: secure.complete(client))


def test_a_workers_certificate_may_not_ask(secure):
    with secure.client(certificate=secure.authority.pair("worker-w0")) as client, counted(secure, "not_allowed"):
        with pytest.raises(openai.PermissionDeniedError) as caught:
            secure.complete(client)
    assert caught.value.code == "not_allowed"


def test_a_servers_certificate_is_no_clients(secure):
    # Of the right authority, and good for asking other coordinators, but of no client.
    with secure.client(certificate=secure.authority.pair("coordinator")) as client, counted(secure, "not_allowed"):
        with pytest.raises(openai.PermissionDeniedError):
            secure.complete(client)


def test_a_certificate_of_another_authority_is_refused_at_the_handshake(secure, tmp_path):
    stranger = Authority(secure.binary, tmp_path / "stranger")
    # Also with a right key: whoever shows something false is let in for nothing else.
    with secure.client(secure.key, stranger.pair("client")) as client, counted(secure, "wrong_ca"):
        with pytest.raises(openai.APIConnectionError):
            secure.complete(client)


def test_an_expired_certificate_is_refused_at_the_handshake(secure):
    secure.authority.issue("--clients", "late", "--valid-days", "-1")
    with secure.client(certificate=secure.authority.pair("client-late")) as client, counted(secure, "expired"):
        with pytest.raises(openai.APIConnectionError):
            secure.complete(client)


def test_a_client_does_not_believe_another_authority(secure, tmp_path):
    stranger = Authority(secure.binary, tmp_path / "stranger")
    with httpx.Client(base_url=secure.url, verify=stranger.context()) as client:
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            client.get("/live")


def test_plain_http_is_refused(secure):
    with counted(secure, "bad_handshake"), httpx.Client() as client:
        with pytest.raises(httpx.TransportError):
            client.get(secure.url.replace("https://", "http://") + "/live")


def test_an_older_tls_is_refused(secure):
    context = secure.authority.context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with counted(secure, "bad_handshake"), httpx.Client(verify=context) as client:
        with pytest.raises(httpx.ConnectError):
            client.get(f"{secure.url}/live")


@pytest.mark.parametrize("protocol", ["h2", "http/1.1"])
def test_both_versions_of_http_are_offered(secure, protocol):
    context = secure.authority.context()
    context.set_alpn_protocols([protocol])
    with connected(secure) as plain, context.wrap_socket(plain, server_hostname="127.0.0.1") as encrypted:
        assert (encrypted.selected_alpn_protocol(), encrypted.version()) == (protocol, "TLSv1.3")


def test_nobody_waits_behind_handshakes_that_never_end(secure, answer):
    with contextlib.ExitStack() as held:
        for _ in range(50):
            # Half of a first record.
            held.enter_context(connected(secure)).sendall(b"\x16\x03\x01\x02\x00\x01")
        assert secure.answer_as(secure.key) == answer


def connected(secure):
    host, port = secure.url.removeprefix("https://").split(":")
    return socket.create_connection((host, int(port)), timeout=60)


def test_requests_beyond_a_keys_minute_are_told_to_wait(secure, added):
    key = added("minute", "--requests-per-minute", "2")
    with secure.client(key) as client, counted(secure, "over_limit"):
        secure.complete(client, max_tokens=1)
        # Whatever is asked for counts.
        client.models.list()
        with pytest.raises(openai.RateLimitError) as caught:
            secure.complete(client)
    assert_over_limit(caught.value, "2 requests a minute")
    # One more comes every 30 s.
    assert 1 <= int(caught.value.response.headers["retry-after"]) <= 30
    assert secure.answer_as(secure.key), "another key has a minute of its own"


def test_writing_the_file_gives_nobody_a_new_minute(secure, added):
    key = added("again", "--requests-per-minute", "1")
    with secure.client(key) as client:
        client.models.list()
        secure.key_file.write(secure.key_file.path.read_text() + "\n")
        with pytest.raises(openai.RateLimitError):
            client.models.list()


def test_requests_beyond_those_at_a_time_are_told_to_wait(secure, added):
    key = added("busy", "--concurrent-requests", "1")
    with secure.client(key) as client:
        with secure.complete(client, stream=True, **LONG) as stream:
            next(iter(stream))
            with counted(secure, "over_limit"), pytest.raises(openai.RateLimitError) as caught:
                secure.complete(client)
            assert_over_limit(caught.value, "1 requests at a time")
            assert int(caught.value.response.headers["retry-after"]) >= 1

        # One that is left unread counts no more.
        def answers():
            try:
                return secure.answer(client, max_tokens=1)
            except openai.RateLimitError:
                return None

        assert until(answers, "a place for the next request")


def assert_over_limit(error, what):
    assert (error.status_code, error.code, error.type) == (429, "rate_limit_exceeded", "rate_limit_error")
    assert what in error.message
    headers = error.response.headers
    assert int(headers["retry-after-ms"]) <= 1000 * int(headers["retry-after"])


def test_the_official_client_waits_as_it_is_told(secure, added):
    key = added("patient", "--concurrent-requests", "1")
    with secure.client(key) as client:
        stream = secure.complete(client, stream=True, **LONG)
        next(iter(stream))
        refused = threading.Event()
        http_client = secure.http()
        http_client.event_hooks["response"].append(lambda response: response.status_code == 429 and refused.set())
        # It tries again by itself; the answer comes once the stream is closed.
        patient = client.with_options(max_retries=5, http_client=http_client)
        answers = []
        asking = threading.Thread(target=lambda: answers.append(secure.answer(patient, max_tokens=1)))
        asking.start()
        assert refused.wait(10)
        stream.close()
        asking.join()
        patient.close()
    assert len(answers) == 1


def test_keys_come_and_go_while_the_cluster_runs(secure, answer):
    key = secure.key_file.add("guest")
    assert secure.answer_as(key) == answer
    # Its connection stays open; the key goes.
    with secure.client(key) as client:
        assert secure.answer(client) == answer
        secure.key_file.remove("guest")
        # The next request, at once: the file is looked at when somebody asks.
        assert_unauthenticated(secure, lambda: secure.complete(client))
    assert secure.answer_as(secure.key) == answer, "the others stay"


def test_a_file_that_cannot_be_read_takes_no_key_away(secure, answer):
    text = secure.key_file.path.read_text()
    try:
        for broken in [text + "{", text + '{"name": "x"}\n', text + text, "\x00"]:
            secure.key_file.write(broken)
            assert secure.answer_as(secure.key) == answer
            with secure.client(WRONG_KEY) as client:
                assert_unauthenticated(secure, lambda: secure.complete(client))
    finally:
        secure.key_file.write(text)


def test_certificates_are_renewed_while_the_cluster_runs(secure, answer):
    before = presented(secure)
    with secure.client(secure.key) as client:
        assert secure.answer(client) == answer
        secure.authority.issue("--renew")
        assert presented(secure) != before
        assert secure.answer(client) == answer, "a connection outlives the certificate that it began with"
    assert secure.answer_as(certificate=secure.authority.pair("client")) == answer


def presented(secure):
    """The server's certificate, to somebody new."""
    context = secure.authority.context()
    with connected(secure) as plain, context.wrap_socket(plain, server_hostname="127.0.0.1") as encrypted:
        return encrypted.getpeercert(binary_form=True)


@pytest.mark.parametrize(
    "user, tenant", [(None, "ada"), ("team", "ada/team"), ("ops", "ada/ops"), ("../ops", "ada/../ops"), ("", "ada")]
)
def test_a_user_is_part_of_the_keys_tenant(secure, user, tenant):
    fields = {} if user is None else {"user": user}
    with secure.client(secure.key) as client:
        assert seen_tenant(secure, client, **fields) == tenant


def test_a_certificates_tenant_is_its_name(secure):
    with secure.client(certificate=secure.authority.pair("client")) as client:
        assert seen_tenant(secure, client, user="ada") == "client/ada"


def seen_tenant(secure, client, **fields):
    """As the status shows it, of the only sequence."""
    until(lambda: not secure.status()["sequences"], "no sequences")
    with secure.complete(client, stream=True, **LONG, **fields) as stream:
        next(iter(stream))
        (sequence,) = secure.status()["sequences"]
    return sequence["tenant"]


def test_the_status_is_for_admins_alone(secure):
    allowed = [dict(key=secure.admin_key), dict(certificate=secure.authority.pair("admin"))]
    refused = [
        {},
        dict(key=secure.key),
        dict(key=WRONG_KEY),
        dict(certificate=secure.authority.pair("client")),
        dict(certificate=secure.authority.pair("worker-w0")),
        # The key counts.
        dict(key=secure.key, certificate=secure.authority.pair("admin")),
    ]
    for shown in allowed:
        run = secure.status_run(**shown)
        assert run.returncode == 0 and json.loads(run.stdout)["ready"], run.stderr
    for shown in refused:
        run = secure.status_run(**shown)
        assert run.returncode != 0 and not run.stdout, shown
        assert secure.key not in run.stderr


def test_no_key_is_ever_logged(secure):
    log = secure.cluster.log()
    assert "refused_wrong_key" in log, "refusals are told"
    for key in [secure.key, secure.admin_key, WRONG_KEY, secure.key[8:]]:
        assert key not in log


@pytest.fixture(scope="module")
def gateway(secure):
    gateway = Gateway(secure.binary, secure.cluster.grpc_url, "--tls-dir", secure.authority.folder)
    yield gateway
    assert gateway.stop() == 0, "a gateway that is told to end has not failed"


def test_a_gateway_answers_as_the_cluster_does(secure, gateway, answer):
    certificate = secure.authority.pair("client")
    with secure.client(certificate=certificate, url=gateway.url) as client:
        assert secure.answer(client) == answer
        stream = secure.complete(client, stream=True)
        assert "".join(piece.choices[0].text for piece in stream) == answer
        assert client.models.list().data[0].id == secure.model


def test_a_gateway_lets_nobody_in_who_shows_nothing(secure, gateway):
    # The certificate that the gateway has is not theirs.
    with secure.client(url=gateway.url) as client:
        assert_unauthenticated(secure, lambda: secure.complete(client))
    with secure.client(secure.key, url=gateway.url) as client:
        # It has no file of keys, so a key is nothing.
        assert_unauthenticated(secure, lambda: secure.complete(client))


def test_tenants_of_a_gateway_are_told_apart(secure, gateway):
    secure.authority.issue("--clients", "bob")
    for name, tenant in [("client-bob", "client/bob"), ("client", "client/client")]:
        with secure.client(certificate=secure.authority.pair(name), url=gateway.url) as client:
            assert seen_tenant(secure, client) == tenant
