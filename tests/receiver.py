"""A receiver of webhooks on this machine: keeps what it was sent, answers as it is told."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import signal
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

KEY = bytes(range(32))
SECRET = "whsec_" + base64.b64encode(KEY).decode()


@dataclass(frozen=True)
class Received:
    """One request, with its headers in lower case."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def notices(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.body)["data"]["notices"]
        return found

    @property
    def keys(self) -> list[str]:
        return [notice["key"] for notice in self.notices]

    def is_signed_by(self, key: bytes) -> bool:
        """Written from the text of the specification, with nothing of ours."""
        content = b".".join([self.id.encode(), self.headers["webhook-timestamp"].encode(), self.body])
        expected = base64.b64encode(hmac.digest(key, content, hashlib.sha256)).decode()
        versions = [entry.split(",", 1) for entry in self.headers["webhook-signature"].split(" ")]
        return any(name == "v1" and hmac.compare_digest(value, expected) for name, value in versions)


# Writes the whole answer to the connection.
Answerer = Callable[[BaseHTTPRequestHandler], None]


def status(code: int, *, text: str = "", **headers: str) -> Answerer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(text.encode())))
        handler.end_headers()
        handler.wfile.write(text.encode())

    return answer


def kill_sender(pid: Callable[[], int]) -> Answerer:
    """kill -9 of the process that sends, before it hears that all is well."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        os.kill(pid(), signal.SIGKILL)
        handler.close_connection = True

    return answer


@dataclass
class Receiver:
    """answers: what is answered, one by one; afterwards 204."""

    port: int
    answers: list[Answerer] = field(default_factory=list)
    received: list[Received] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook?token=hush"

    @property
    def keys(self) -> list[str]:
        return [key for request in self.received for key in request.keys]

    def hang(self, handler: BaseHTTPRequestHandler) -> None:
        """Answers nothing until the test is over."""
        self.ended.wait()
        handler.close_connection = True

    def hold(self, handler: BaseHTTPRequestHandler) -> None:
        """Answers once it is released."""
        self.released.wait()
        status(204)(handler)

    def trickle(self, handler: BaseHTTPRequestHandler) -> None:
        """A byte of a header every so often: none of them late, and no end of it."""
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        while not self.ended.wait(0.02):
            try:
                handler.wfile.write(b"x")
            except OSError:
                return


@contextmanager
def receiving(certificate: Path | None = None) -> Iterator[Receiver]:
    """certificate: a file of key and certificate, for TLS."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            receiver.received.append(Received(self.path, headers, body))
            (receiver.answers.pop(0) if receiver.answers else status(204))(self)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            # The handshake belongs to the thread of the request.
            server.socket = context.wrap_socket(
                server.socket, server_side=True, do_handshake_on_connect=False
            )
            server.handle_error = lambda *_: None  # type: ignore[method-assign]
        receiver = Receiver(server.server_address[1])
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield receiver
        finally:
            receiver.released.set()
            receiver.ended.set()
            server.shutdown()
            thread.join()
