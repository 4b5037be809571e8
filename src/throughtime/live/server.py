"""A small web server for the browser of this machine: pages, JSON and streams of events, and nothing for others."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from throughtime.errors import ConfigError, ThroughtimeError

# Whatever a page shows, it may load nothing from elsewhere, and no other page may frame it.
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class Request:
    """What was asked: the rest of the path behind the route's prefix, and the query by name."""

    rest: str
    query: Mapping[str, str]


@dataclass(frozen=True)
class Reply:
    """Bytes and what they are."""

    body: bytes
    kind: str
    status: int = 200


# A handler gives a reply, or a stream of values, each sent as one event; None in a stream is a sign of life.
Handler = Callable[[Request], "Reply | Iterator[Any]"]


def page(text: str) -> Reply:
    """An HTML page."""
    return Reply(text.encode(), "text/html; charset=utf-8")


def as_json(value: Any, status: int = 200) -> Reply:
    """A value as JSON; numbers that JSON has not (NaN, infinities) as null."""
    return Reply(json.dumps(_plain(value), allow_nan=False).encode(), "application/json", status)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


class Server:
    """Serves `routes` at http://127.0.0.1:port until it is closed.

    routes: by path; one that ends in "/" takes all that begins with it, and its handler gets the rest as it came: it
        looks it up among names that it knows and never opens it as a path.
    port:   0 for any that is free.

    It listens on 127.0.0.1 alone. A request whose Host is another name gets nothing (a foreign name can be made to
    point here: DNS rebinding), and none that another site's page has caused. Errors of ours are replied as JSON
    {"error": one line}. Raises ConfigError where the port cannot be had.
    """

    def __init__(self, routes: Mapping[str, Handler], port: int = 0) -> None:
        handler = type("Handler", (_Handler,), {"routes": dict(routes)})
        try:
            self._server = _Threads(("127.0.0.1", port), handler)
        except (OSError, OverflowError) as error:
            raise ConfigError(f"port {port} on 127.0.0.1 cannot be had ({error}); choose another with --port") from None
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return self._server.server_address[1]

    @property
    def address(self) -> str:
        """Where to point a browser."""
        return f"http://127.0.0.1:{self.port}/"

    def close(self) -> None:
        """Stops listening; streams end with their next event."""
        self._server.closing.set()
        self._server.shutdown()
        self._server.server_close()

    def wait(self) -> None:
        """Serves until Ctrl-C."""
        self._thread.join()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class _Threads(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, *args: Any) -> None:
        self.closing = threading.Event()
        super().__init__(*args)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A reader that went away is no news."""


class _Handler(BaseHTTPRequestHandler):
    routes: Mapping[str, Handler]
    server: _Threads
    server_version = "throughtime"
    sys_version = ""
    timeout = 30

    def do_GET(self) -> None:
        refused = self._refused()
        if refused:
            return self._send(as_json({"error": refused}, 403))
        parts = urlsplit(self.path)
        found = self._find(parts.path)
        if found is None:
            return self._send(as_json({"error": "there is no such page"}, 404))
        handler, rest = found
        try:
            reply = handler(Request(rest, dict(parse_qsl(parts.query, keep_blank_values=True))))
        except ThroughtimeError as error:
            return self._send(as_json({"error": " ".join(str(error).split())}, 400))
        if isinstance(reply, Reply):
            return self._send(reply)
        self._stream(reply)

    def _refused(self) -> str | None:
        """Why this request is not one of our own pages', or None if it is."""
        ours = {f"{name}:{self.server.server_address[1]}" for name in ("127.0.0.1", "localhost")}
        if self.headers.get("Host", "") not in ours:
            return "this server answers to 127.0.0.1 and localhost only"
        if self.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            return "another site's page asked for this"
        origin = self.headers.get("Origin")
        if origin is not None and origin not in {f"http://{name}" for name in ours}:
            return "another site's page asked for this"
        return None

    def _find(self, path: str) -> tuple[Handler, str] | None:
        if path in self.routes:
            return self.routes[path], ""
        prefixes = [p for p in self.routes if p != "/" and p.endswith("/") and path.startswith(p)]
        best = max(prefixes, key=len, default=None)
        return None if best is None else (self.routes[best], path[len(best) :])

    def _head(self, status: int, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        for name, value in _HEADERS.items():
            self.send_header(name, value)

    def _send(self, reply: Reply) -> None:
        self._head(reply.status, reply.kind)
        self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        self.wfile.write(reply.body)

    def _stream(self, events: Iterator[Any]) -> None:
        """Server-sent events, until the reader leaves, the stream ends or the server closes."""
        self._head(200, "text/event-stream; charset=utf-8")
        self.end_headers()
        try:
            for event in events:
                if self.server.closing.is_set():
                    break
                text = ":\n\n" if event is None else f"data: {as_json(event).body.decode()}\n\n"
                self.wfile.write(text.encode())
                self.wfile.flush()
        except OSError:  # the reader has gone
            pass
        finally:
            close = getattr(events, "close", None)
            if close is not None:
                close()

    def log_message(self, format: str, *args: Any) -> None:
        """Keeps the terminal for what the command prints."""
