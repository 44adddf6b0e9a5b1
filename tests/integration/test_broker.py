"""The broker as a worker has it, without the worker."""

from __future__ import annotations

import kombu
import redis
from structlog.testing import capture_logs

from pgoutlier.worker.broker import Transport


def test_what_a_full_broker_refuses_a_consumer_is_said_in_one_line(broker_url: str) -> None:
    path = broker_url.removeprefix("redis+socket://").partition("?")[0]
    with (
        redis.Redis(unix_socket_path=path) as broker,
        kombu.Connection(broker_url) as connection,
    ):
        transport = Transport(connection)
        channel = transport.create_channel(transport.establish_connection())
        queue = kombu.Queue("short_lived", kombu.Exchange("short_lived"), expires=60, channel=channel)
        queue.declare()
        queue.consume()
        try:
            broker.config_set("maxmemory", "1")
            with capture_logs() as said:
                channel.maybe_refresh_binding_expiry()
        finally:
            broker.config_set("maxmemory", "0")
        channel.maybe_refresh_binding_expiry()
        channel.close()
    assert [line["event"] for line in said] == ["broker_unavailable"]
