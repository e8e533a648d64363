"""Why a certificate is not believed, as the hub says it of its Redis, of a task's, and of who is notified."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from gridcore.errors import ConfigError
from gridcore.protocol import TaskDefinition
from hub.metrics import Counts
from hub.notify import Messenger, NotDelivered
from hub.notify_rules import TEST, Notification
from hub.notify_target import NotifyTarget
from hub.queues import QueueEyes
from hub.redis_url import parse_redis
from hub.store_redis import open_redis
from tests.servers.authority import Authority
from tests.servers.children import Child, accepts, find, free_port
from tests.servers.redis_server import DURABLE, RedisServer

OTHER_NAME = "its certificate does not have the name or address by which it was asked"
UNKNOWN = "its certificate is not signed by an authority that is trusted here"


@pytest.fixture
def resources() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """Its certificates have 127.0.0.1, and not 127.0.0.2."""
    return Authority(tmp_path)


@pytest.fixture
def server(tmp_path: Path, authority: Authority, resources: ExitStack) -> RedisServer:
    options = {**DURABLE, "bind": "127.0.0.1 127.0.0.2"}
    return resources.enter_context(RedisServer(tmp_path / "redis", options, authority=authority))


async def why_not(url: str) -> str:
    target = parse_redis(url)
    assert target is not None
    with pytest.raises(ConfigError) as refusal:
        await open_redis(target)
    return str(refusal.value)


async def test_the_cause_is_told_and_what_to_do_about_just_that(
    server: RedisServer, authority: Authority, tmp_path: Path
) -> None:
    (tmp_path / "strange").mkdir()
    strange = Authority(tmp_path / "strange").certificate
    other = await why_not(f"rediss://127.0.0.2:{server.port}?ca={authority.certificate}")
    assert OTHER_NAME in other
    assert "put 127.0.0.2 into it" in other
    assert "ca=" not in other
    assert f"{UNKNOWN}. Name its authority with ?ca=FILE" in await why_not(
        f"rediss://127.0.0.1:{server.port}"
    )
    assert f"{UNKNOWN}. Is {strange} the authority" in await why_not(
        f"rediss://127.0.0.1:{server.port}?ca={strange}"
    )


async def test_with_a_sentinel_the_address_is_told_that_the_certificate_lacks(
    server: RedisServer, authority: Authority, tmp_path: Path, resources: ExitStack
) -> None:
    port, pair = free_port(), authority.issue("sentinel")
    (tmp_path / "sentinel").mkdir()
    path = tmp_path / "sentinel" / "sentinel.conf"
    path.write_text(
        f"bind 127.0.0.1\nport 0\ntls-port {port}\ntls-replication yes\ntls-auth-clients no\n"
        f"tls-cert-file {pair.certificate}\ntls-key-file {pair.key}\n"
        f"tls-ca-cert-file {authority.certificate}\ndir {path.parent}\n"
        f"sentinel monitor gridcore 127.0.0.2 {server.port} 1\n"
    )
    sentinel = Child("sentinel", [find("redis-server"), str(path), "--sentinel"], tmp_path / "sentinel.log")
    resources.callback(sentinel.kill)
    sentinel.start(lambda: accepts(port))
    url = f"rediss+sentinel://127.0.0.1:{port}/gridcore"
    told = await why_not(f"{url}?ca={authority.certificate}")
    assert f"Redis at 127.0.0.2:{server.port} is not believed: {OTHER_NAME}" in told
    assert "ca=" not in told
    assert f"{UNKNOWN}. Name its authority with ?ca=FILE" in await why_not(url)


async def test_a_look_at_queues_tells_the_cause(server: RedisServer, authority: Authority) -> None:
    eyes = QueueEyes()
    try:
        for host, query, cause in (
            ("127.0.0.2", f"?ssl_ca_certs={authority.certificate}", OTHER_NAME),
            ("127.0.0.1", "", UNKNOWN),
        ):
            url = f"rediss://{host}:{server.port}/0{query}"
            task = TaskDefinition(name="t", image="x:1", input_redis=url, input_queue="q")
            assert (await eyes.look(task)).input.reason == f"the Redis cannot be reached: {cause}"
    finally:
        await eyes.close()


async def test_a_message_that_was_not_delivered_tells_the_cause(authority: Authority) -> None:
    pair = authority.issue("receiver", "DNS:elsewhere")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    receiver = await asyncio.start_server(lambda _read, write: write.close(), "127.0.0.1", 0, ssl=context)
    asyncio.get_running_loop().set_exception_handler(lambda _loop, _about: None)
    url = f"https://127.0.0.1:{receiver.sockets[0].getsockname()[1]}/secret-hook"
    note = Notification("1", TEST, time.time(), None, "text")
    for target, cause in (
        (NotifyTarget(url=url), UNKNOWN),
        (NotifyTarget(url=url, ca_file=authority.certificate), OTHER_NAME),
    ):
        with pytest.raises(NotDelivered) as caught:
            await Messenger(target, Counts()).send(note)
        assert str(caught.value) == cause
    receiver.close()
    await receiver.wait_closed()
