"""Which URLs webhooks may have, and how much of one may be shown."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import SplitResult, urlsplit

from pgoutlier.db.errors import WebhookError

_LONGEST = 2_000
_LONGEST_HOST = 253
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_FORM = "write https://host/path"


@dataclass(frozen=True)
class Endpoint:
    """Where a request goes. target: path and query as they are sent. host: without the brackets of IPv6."""

    tls: bool
    host: str
    port: int
    target: str

    @property
    def host_header(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"


def check(url: str, *, insecure_http: bool = False) -> Endpoint:
    """What the URL says. Raises WebhookError, which shows no more of it than its host, if it cannot be used.

    insecure_http: without it http is for this machine only (localhost, 127.0.0.0/8, ::1).
    """
    if len(url) > _LONGEST or not all("!" <= character <= "~" for character in url) or "\\" in url:
        raise WebhookError(
            f"The URL is longer than {_LONGEST:,} characters or holds a space, a backslash or what is not ASCII;"
            f" {_FORM}, percent-encoded."
        )
    try:
        parts = urlsplit(url)
        port = parts.port
        host = (parts.hostname or "").removesuffix(".")
        _check_host(parts, host)
    except ValueError:
        raise WebhookError(f"The URL cannot be read; {_FORM}.") from None
    if parts.scheme not in {"http", "https"} or not host or port == 0:
        raise WebhookError(f"The URL has to begin with https:// and a host; {_FORM}.")
    if parts.username is not None or parts.password is not None:
        raise WebhookError("The URL holds a user or password; leave it out: the signature says who sends.")
    if parts.fragment or "#" in url:
        raise WebhookError("The URL has a part behind #, which is never sent; leave it out.")
    tls = parts.scheme == "https"
    if not tls and not insecure_http and not _is_loopback(host):
        raise WebhookError(
            f"http to {host} can be read and changed on its way; write https, or add --insecure-http."
        )
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Endpoint(tls, host, port or (443 if tls else 80), target)


def _check_host(parts: SplitResult, host: str) -> None:
    """Raises ValueError unless it is a name or an address."""
    if "[" in parts.netloc or ":" in host:
        ip_address(host)
        return
    if host and (len(host) > _LONGEST_HOST or not all(map(_LABEL.fullmatch, host.split(".")))):
        raise ValueError("no host")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def shown(url: str) -> str:
    """The URL for logs, lists and the history: path and query, which may be secret, are left out."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}" + ("/..." if parts.path not in {"", "/"} or parts.query else "")
