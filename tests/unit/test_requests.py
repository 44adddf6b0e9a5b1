"""Messages of a broker that hangs."""

from __future__ import annotations

import uuid

import pytest
from kombu import Connection, Queue
from redis.exceptions import TimeoutError as RedisTimeout

from worker.requests import BellRequest
from worker.tasks import drain


def test_messages_that_cannot_be_acknowledged_do_not_fill_a_worker(
    broker_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"test-{uuid.uuid4()}"
    with Connection(broker_url) as connection, connection.channel() as channel:
        queue = Queue(name, channel=channel)
        queue.declare()
        channel.basic_qos(0, 1, False)
        task_id = str(uuid.uuid4())
        headers = {"task": drain.name, "id": task_id, "lang": "py"}
        for _ in range(2):
            connection.Producer(channel).publish(
                [["payments"], {}, {}], routing_key=name, headers=headers, correlation_id=task_id
            )
        message = queue.get(no_ack=False)
        assert message is not None
        assert not channel.qos.can_consume()

        def times_out(*_: object, **__: object) -> None:
            raise RedisTimeout("Timeout reading from socket")

        with monkeypatch.context() as hanging:
            hanging.setattr(channel.qos, "_remove_from_indices", times_out)
            request = BellRequest(
                message,
                task=drain,
                on_ack=message.ack_log_error,
                connection_errors=connection.connection_errors,
                app=drain.app,
                decoded=True,
                headers=headers,
                body=([["payments"], {}, {}]),
                utc=True,
            )
            request.acknowledge()
        assert channel.qos.can_consume()
        queue.delete()
