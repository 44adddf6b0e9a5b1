"""One POST within a bounded time: no redirect is followed, no proxy is used, TLS is verified, answers are cut off."""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from pgoutlier.worker.notices.webhook_url import Endpoint

_MOST_ANSWER_BYTES = 2_048


class NoAnswer(Exception):
    """No answer came: no connection, no trust in the certificate, no time left, or no HTTP."""


@dataclass(frozen=True)
class Answer:
    """text: the beginning of the body, with what is no text replaced."""

    status: int
    reason: str
    text: str
    retry_after: str | None

    @property
    def ok(self) -> bool:
        """Whether the receiver took it."""
        return 200 <= self.status < 300


def post(endpoint: Endpoint, body: bytes, headers: Mapping[str, str], *, timeout_seconds: float) -> Answer:
    """Send the body and read the answer. Raises NoAnswer, with a reason that holds nothing of the URL but its host.

    The time is for all of it; only the resolver of host names keeps to a time of its own.
    """
    deadline = time.monotonic() + timeout_seconds
    try:
        with _connection(endpoint, deadline) as connection:
            connection.request(
                "POST",
                endpoint.target,
                body,
                {**headers, "Host": endpoint.host_header, "Connection": "close"},
            )
            answer = connection.getresponse()
            text = answer.read(_MOST_ANSWER_BYTES).decode("utf-8", "replace")
            _left(deadline)  # where it was cut off, the end of the stream looks like the end of the answer
            return Answer(answer.status, answer.reason, text, answer.getheader("Retry-After"))
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, TimeoutError) or time.monotonic() >= deadline:
            raise NoAnswer(f"no answer within {timeout_seconds:g} s") from None
        raise NoAnswer(_reason(error)) from None


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate cannot be trusted: {error.verify_message}"
    if isinstance(error, http.client.RemoteDisconnected):
        return "the connection was closed without an answer"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return type(error).__name__


@contextmanager
def _connection(endpoint: Endpoint, deadline: float) -> Iterator[http.client.HTTPConnection]:
    """A connection that is shut at the deadline: a timeout alone begins anew with each byte that trickles in."""
    sock = _connect(endpoint, deadline)
    # TLS takes the socket over; a second handle of it goes on to reach the connection.
    handle = sock.dup()
    cut = threading.Timer(max(0.0, deadline - time.monotonic()), _shut, [handle])
    cut.daemon = True
    cut.start()
    try:
        if endpoint.tls:
            sock = ssl.create_default_context().wrap_socket(sock, server_hostname=endpoint.host)
        connection = http.client.HTTPConnection(endpoint.host, endpoint.port)
        connection.sock = sock
        yield connection
    finally:
        cut.cancel()
        handle.close()
        sock.close()


def _connect(endpoint: Endpoint, deadline: float) -> socket.socket:
    """The first of the host's addresses that takes a connection."""
    error: OSError = TimeoutError()
    for family, kind, protocol, _, address in socket.getaddrinfo(
        endpoint.host, endpoint.port, type=socket.SOCK_STREAM
    ):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(_left(deadline))
            sock.connect(address)
            return sock
        except OSError as failed:
            sock.close()
            error = failed
    raise error


def _left(deadline: float) -> float:
    """Raises TimeoutError if no time is left."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _shut(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
