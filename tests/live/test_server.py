"""The server replies to its own pages on this machine, and to nobody else."""

import http.client
import itertools
import json
import math
import socket
import time

import pytest

from throughtime.errors import ConfigError, FlowError
from throughtime.live.server import Reply, Server, as_json, page


def fail(request):
    raise FlowError("the lag is\n wrong; give another")


def forever(request):
    for i in itertools.count():
        yield {"i": i} if i % 2 == 0 else None
        time.sleep(0.001)


@pytest.fixture
def server():
    routes = {
        "/": lambda r: page("<h1>é</h1>"),
        "/run/": lambda r: as_json({"rest": r.rest, "query": dict(r.query)}),
        "/run/deep/": lambda r: as_json("deep " + r.rest),
        "/fails": fail,
        "/events": forever,
    }
    with Server(routes) as s:
        yield s


def get(server, path, method="GET", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request(method, path, headers=headers)
    reply = connection.getresponse()
    body = reply.read()
    connection.close()
    return reply, body


def test_a_page_with_what_guards_it(server):
    reply, body = get(server, "/")
    assert reply.status == 200 and body.decode() == "<h1>é</h1>"
    assert reply.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "default-src 'self'" in reply.headers["Content-Security-Policy"]
    assert reply.headers["X-Content-Type-Options"] == "nosniff"
    assert reply.headers["Cache-Control"] == "no-store"


def test_the_longest_prefix_and_the_query(server):
    assert json.loads(get(server, "/run/a/b?x=1&y=%20z&x=2")[1]) == {"rest": "a/b", "query": {"x": "2", "y": " z"}}
    assert json.loads(get(server, "/run/deep/a")[1]) == "deep a"


@pytest.mark.parametrize("path", ["/../etc/passwd", "/nothing", "/runs", "/%2e%2e/"])
def test_what_is_not_there(server, path):
    assert get(server, path)[0].status == 404


def test_the_rest_of_a_path_is_handed_on_as_it_came(server):
    assert json.loads(get(server, "/run/../../etc/passwd")[1])["rest"] == "../../etc/passwd"


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:80"},
        {"Host": ""},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
    ],
)
def test_strangers_get_nothing(server, headers):
    reply, body = get(server, "/", **headers)
    assert reply.status == 403 and "error" in json.loads(body)


def test_our_own_page_gets_it_by_either_name(server):
    for name in ("127.0.0.1", "localhost"):
        host = f"{name}:{server.port}"
        headers = {"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
        assert get(server, "/", **headers)[0].status == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_nothing_can_be_written(server, method):
    assert get(server, "/", method)[0].status == 501


def test_an_error_of_ours_is_one_line(server):
    reply, body = get(server, "/fails")
    assert reply.status == 400 and json.loads(body) == {"error": "the lag is wrong; give another"}


def test_events_one_by_one_until_the_reader_leaves(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as s:
        s.sendall(f"GET /events HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n\r\n".encode())
        got = b""
        while b'"i": 4' not in got:
            got += s.recv(4096)
    assert b"text/event-stream" in got
    assert b'data: {"i": 0}\n\n:\n\ndata: {"i": 2}\n\n' in got
    assert get(server, "/")[0].status == 200


def test_only_this_machine_can_reach_it(server):
    assert server._server.server_address[0] == "127.0.0.1"


def test_a_port_that_is_taken(server):
    with pytest.raises(ConfigError, match=f"port {server.port} .*choose another"):
        Server({}, server.port)
    with pytest.raises(ConfigError, match="port 99999"):
        Server({}, 99999)


def test_numbers_that_json_has_not():
    assert as_json({"a": [math.nan, 1.5, (math.inf,)]}) == Reply(b'{"a": [null, 1.5, [null]]}', "application/json")
