"""What the agent reads over the engine's own socket, asked of a real engine and real containers."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from agent import spec
from agent.engine_api import EngineApi
from agent.engine_events import listen
from agent.errors import EngineError, EngineTimeout, EngineUnreachable
from tests.integration.agent.conftest import docker, eventually

Run = Callable[..., str]


@pytest.fixture
async def api() -> AsyncIterator[EngineApi]:
    """The engine of this machine."""
    engine_api = EngineApi()
    yield engine_api
    await engine_api.close()


@pytest.fixture
def owner() -> str:
    """An owner of this test's own."""
    return f"test-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def run(images: dict[str, str], owner: str) -> Iterator[Run]:
    """Start a container with a shell script, with logs as bounded as the agent's; removed at the end."""
    started: list[str] = []

    def start(script: str, *options: str) -> str:
        logs = ("--log-driver", "json-file", "--log-opt", "max-size=10m", "--log-opt", "max-file=2")
        label = ("--label", f"{spec.OWNER}={owner}", "--memory", "64m")
        started.append(docker("run", "-d", *logs, *label, *options, images["worker"], "sh", "-c", script))
        return started[-1]

    yield start
    if started:
        docker("rm", "-f", "-v", *started, check=False)


def _ended(container: str) -> None:
    docker("wait", container)


async def test_the_end_of_a_log_is_stdout_and_stderr_without_the_engines_frames(
    api: EngineApi, run: Run
) -> None:
    container = run("echo one; echo two >&2; echo 'drei ä'")
    _ended(container)
    log = await api.log_tail(container, lines=10, max_bytes=1000)
    assert sorted(log.splitlines()) == sorted([b"one", b"two", "drei ä".encode()])
    assert (await api.log_tail(container, lines=1, max_bytes=1000)).count(b"\n") == 1


async def test_a_long_log_is_cut_to_its_last_bytes(api: EngineApi, run: Run) -> None:
    container = run("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); echo line $i; done")
    _ended(container)
    log = await api.log_tail(container, lines=10_000, max_bytes=5000)
    assert 4980 < len(log) <= 5000
    assert {len(line) for line in log.splitlines()} == {len("line 20000")}  # whole lines
    assert log.endswith(b"line 19999\nline 20000\n")


async def test_lines_longer_than_the_engines_pieces_are_whole(api: EngineApi, run: Run) -> None:
    container = run("busybox head -c 100000 /dev/zero | busybox tr '\\0' x; echo; echo end")
    _ended(container)
    assert await api.log_tail(container, lines=100, max_bytes=200_000) == b"x" * 100_000 + b"\nend\n"


async def test_a_container_with_a_terminal_has_a_log_too(api: EngineApi, run: Run) -> None:
    container = run("echo hello; echo there", "--tty")
    _ended(container)
    assert await api.log_tail(container, lines=10, max_bytes=1000) == b"hello\r\nthere\r\n"


async def test_a_log_without_a_word_is_empty(api: EngineApi, run: Run) -> None:
    container = run("sleep 30")
    assert await api.log_tail(container, lines=10, max_bytes=1000) == b""


async def test_a_container_that_is_no_more_is_gone(api: EngineApi, run: Run) -> None:
    container = run("exit 0")
    docker("rm", "-f", container)
    for call in (api.log_tail(container, lines=1, max_bytes=1), api.log_rate(container, 0.1, 1.0)):
        with pytest.raises(EngineError) as raised:
            await call
        assert raised.value.kind == "gone"


async def test_a_spewing_log_is_told_at_once_and_its_end_stays_small(api: EngineApi, run: Run) -> None:
    container = run("busybox yes a line that nobody reads")
    await asyncio.sleep(1.0)
    started = time.monotonic()
    rate = await api.log_rate(container, 5.0, 2**20)
    took = time.monotonic() - started
    assert rate > 2**20
    assert took < 4.0  # enough was certain long before
    tail = await api.log_tail(container, lines=10_000, max_bytes=64 * 1024)
    assert 64 * 1000 < len(tail) <= 64 * 1024


async def test_a_quiet_log_costs_no_following(api: EngineApi, run: Run) -> None:
    container = run("i=0; while [ $i -lt 30 ]; do i=$((i+1)); echo $i; done; sleep 60")
    assert await api.log_rate(container, 1.0, 2**20) < 10_000  # 30 lines just now, then nothing
    await asyncio.sleep(6.5)
    started = time.monotonic()
    assert await api.log_rate(container, 30.0, 2**20) < 1000
    assert time.monotonic() - started < 2.0


async def test_a_talkative_log_is_measured(api: EngineApi, run: Run) -> None:
    container = run("while :; do echo 0123456789; sleep 0.05; done")
    await asyncio.sleep(2.0)
    rate = await api.log_rate(container, 2.0, 2**20)
    assert 200 < rate < 3000  # up to 20 lines of 11 bytes and the engine's own 72 a second


async def test_what_a_container_wrote_is_measured_and_only_ours_are_seen(
    api: EngineApi, run: Run, owner: str
) -> None:
    small, large = run("sleep 60"), run("dd if=/dev/zero of=/fat bs=1048576 count=30; sleep 60")
    eventually(lambda: "/fat" in docker("diff", large), "the file is there")
    await asyncio.sleep(1.0)
    sizes = await api.sizes(owner)
    assert set(sizes) == {small, large}
    assert 30 * 2**20 <= sizes[large] < 31 * 2**20
    assert sizes[small] < 2**20
    assert await api.sizes("somebody-else") == {}


async def test_volumes_are_measured_by_owner(api: EngineApi, run: Run, owner: str) -> None:
    name = f"scratch-{owner}"
    docker("volume", "create", "--label", f"{spec.OWNER}={owner}", name)
    try:
        _ended(run("dd if=/dev/zero of=/scratch/f bs=1048576 count=5", "-v", f"{name}:/scratch"))
        sizes = await api.volume_sizes(owner)
        assert set(sizes) == {name}
        assert 5 * 2**20 <= sizes[name] < 6 * 2**20
        assert await api.volume_sizes("somebody-else") == {}
    finally:
        docker("rm", "-f", *docker("ps", "-aq", "--filter", f"volume={name}").split(), check=False)
        docker("volume", "rm", "-f", name)


async def test_the_engine_tells_where_it_keeps_things(api: EngineApi) -> None:
    assert (await api.root()).is_absolute()


async def test_events_of_our_containers_wake(api: EngineApi, run: Run, owner: str) -> None:
    woken = asyncio.Event()
    listening = asyncio.create_task(listen(owner, woken.set, api))
    try:
        await asyncio.sleep(0.5)
        assert not woken.is_set()
        await asyncio.to_thread(run, "exit 0")
        await asyncio.wait_for(woken.wait(), 5)
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)


async def test_events_that_nobody_listened_to_are_told_by_the_engine(
    api: EngineApi, run: Run, owner: str
) -> None:
    # A kill for memory while the agent was away is told by its event alone: not each engine sets OOMKilled.
    await asyncio.to_thread(run, "exit 0")
    woken = asyncio.Event()
    listening = asyncio.create_task(listen(owner, woken.set, api))
    try:
        await asyncio.wait_for(woken.wait(), 5)
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)


async def test_an_engine_that_is_away_or_hangs_is_told_and_one_that_returns_answers(tmp_path: Path) -> None:
    path = tmp_path / "docker.sock"
    api = EngineApi(f"unix://{path}", timeout=0.5)
    try:
        with pytest.raises(EngineUnreachable, match="is dockerd running"):
            await api.log_tail("x", lines=1, max_bytes=1)

        async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()  # until the client gives up
            writer.close()

        async with await asyncio.start_unix_server(hang, path):
            with pytest.raises(EngineTimeout):
                await api.log_tail("x", lines=1, max_bytes=1)
        path.unlink(missing_ok=True)
        path.symlink_to("/var/run/docker.sock")
        assert await api.sizes("nobody") == {}
    finally:
        await api.close()


async def test_an_engine_behind_ssh_is_not_reachable() -> None:
    api = EngineApi("ssh://somewhere")
    assert not api.reachable
    with pytest.raises(EngineError, match="not possible over ssh"):
        await api.sizes("x")
    await listen("x", lambda: None, api)  # returns
