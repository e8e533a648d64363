"""Looking at queues in a real Redis: every kind of them, and every way in which nobody knows."""

from __future__ import annotations

import socket
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from gridcore.protocol import TaskDefinition
from hub.queues import Length, QueueEyes
from tests.servers.authority import Authority
from tests.servers.redis_server import FORGETFUL, RedisServer

PASSWORD = "hunter22-of-the-users"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis"), FORGETFUL, password=PASSWORD) as started:
        yield started


@pytest.fixture
async def eyes() -> AsyncIterator[QueueEyes]:
    made = QueueEyes(look_time=1.0, connect_time=0.5)
    yield made
    await made.close()


def task(url: str | None, queue: str | None, **fields: Any) -> TaskDefinition:
    return TaskDefinition(name="t", image="x:1", input_redis=url, input_queue=queue, **fields)


async def look(eyes: QueueEyes, url: str | None, queue: str | None = "q") -> Length:
    return (await eyes.look(task(url, queue))).input


async def test_every_kind_of_queue_has_a_length(server: RedisServer, eyes: QueueEyes) -> None:
    with server.client() as client:
        client.flushdb()
        client.lpush("a-list", "x", "y")
        client.zadd("a-zset", {"x": 1, "y": 2, "z": 3})
        client.xadd("a-stream", {"x": "1"})
        client.sadd("a-set", "a", "b", "c", "d")
        client.set("a-string", "x")
    names = ("a-list", "a-zset", "a-stream", "a-set", "nothing")
    assert [(await look(eyes, server.url, name)).items for name in names] == [2, 3, 1, 4, 0]
    assert await look(eyes, server.url, "a-string") == Length(None, "the key is a string, which is no queue")


async def test_one_connection_serves_both_queues_again_and_again(
    server: RedisServer, eyes: QueueEyes
) -> None:
    with server.client() as client:
        for _ in range(5):
            await eyes.look(task(server.url, "in", output_redis=server.url, output_queue="out"))
        mine = [entry for entry in client.client_list() if entry["name"] == "computehub"]
        assert len(mine) == 1
        await eyes.close_unused(unused_after=0)
        assert len(eyes) == 0
    assert (await look(eyes, server.url)).items == 0, "and it looks again when it is asked"


async def test_a_connection_that_the_redis_closed_between_two_looks_is_made_anew(
    server: RedisServer, eyes: QueueEyes
) -> None:
    with server.client() as client:
        client.flushdb()
        client.lpush("q", "x", "y")
        for _ in range(3):
            assert await look(eyes, server.url) == Length(2)
            (mine,) = [entry for entry in client.client_list() if entry["name"] == "computehub"]
            client.client_kill_filter(_id=mine["id"])


async def test_a_wrong_password_is_unknown_and_stands_nowhere(server: RedisServer, eyes: QueueEyes) -> None:
    seen = await look(eyes, server.url.replace(PASSWORD, "wrong-password"))
    assert seen.items is None
    assert seen.reason == "the Redis refuses the login in the URL, or wants one"
    assert (await look(eyes, f"redis://127.0.0.1:{server.port}/0")).items is None


@pytest.mark.parametrize(
    ("url", "queue", "reason"),
    [
        (None, None, "the task does not name input_redis and input_queue: the image decides"),
        ("redis://h", None, "the task does not name input_queue: the image decides"),
        ("http://h", "q", "input_redis is no redis:// or rediss:// URL"),
        ("h:6379", "q", "input_redis is no redis:// or rediss:// URL"),
        ("redis://h:port", "q", "the URL cannot be understood"),
        ("redis://[::1", "q", "input_redis is no redis:// or rediss:// URL"),
    ],
)
async def test_what_cannot_be_looked_at_says_why(
    eyes: QueueEyes, url: str | None, queue: str | None, reason: str
) -> None:
    assert await look(eyes, url, queue) == Length(None, reason)


async def test_a_redis_that_nobody_runs_is_unknown(eyes: QueueEyes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    seen = await look(eyes, f"redis://:{PASSWORD}@127.0.0.1:{port}/0")
    assert seen.items is None
    assert seen.reason is not None
    assert seen.reason.startswith("the Redis cannot be reached")
    assert PASSWORD not in seen.reason


async def test_a_redis_that_hangs_is_unknown_until_it_goes_on(tmp_path: Path, eyes: QueueEyes) -> None:
    with RedisServer(tmp_path / "hanging", FORGETFUL) as server:
        assert (await look(eyes, server.url)).items == 0
        server.pause()
        hung = await look(eyes, server.url)
        assert hung.items is None
        assert hung.reason is not None
        assert "answer" in hung.reason
        server.resume()
        while (seen := await look(eyes, server.url)).items is None:
            pass  # it is left alone for a second, and says so at once
        assert seen == Length(0)


async def test_what_is_no_redis_is_unknown(eyes: QueueEyes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def babble() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"220 mail.example ESMTP\r\n")
                connection.recv(1024)

        thread = threading.Thread(target=babble)
        thread.start()
        seen = await look(eyes, f"redis://127.0.0.1:{listener.getsockname()[1]}/0")
        thread.join(10)
    assert seen.items is None


async def test_tls_is_spoken_and_checked(tmp_path: Path, eyes: QueueEyes) -> None:
    authority = Authority(tmp_path)
    with RedisServer(tmp_path / "tls", FORGETFUL, password=PASSWORD, authority=authority) as server:
        strange = await look(eyes, server.url)
        assert strange.items is None
        assert strange.reason is not None
        assert "certificate" in strange.reason.lower()
        assert (await look(eyes, f"{server.url}?ssl_ca_certs={authority.certificate}")).items == 0
        assert (await look(eyes, f"{server.url}?ssl_cert_reqs=none&ssl_check_hostname=false")).items == 0
