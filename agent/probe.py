"""One real container, started exactly as a task's is, to see whether this machine's engine can start any.

No registry is asked and nothing of the host goes into the image: it holds one program of a few machine
instructions, written here, that exits with 0. Image, container and volume are removed again.
"""

from __future__ import annotations

import asyncio
import secrets
import struct
import tarfile
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

from agent import spec
from agent.engine import Engine
from agent.errors import EngineError
from agent.planner import Container
from agent.settings import Settings
from gridcore.platforms import AMD64, ARM64, ARMV7

PROGRAM = "/check"
PATIENCE = 60.0
"""Seconds for the container to start and end."""
ADVICE = "no task's container would start either; the engine's log says more: journalctl -u docker"
LOOK = 0.1
"""Seconds between looks at it."""


@dataclass(frozen=True)
class _Machine:
    """What an ELF header says of a machine, and `exit(0)` in its instructions."""

    is_64_bit: bool
    number: int
    flags: int
    code: bytes


_MACHINES = {
    AMD64: _Machine(True, 62, 0, bytes.fromhex("31ff b83c000000 0f05")),
    ARM64: _Machine(True, 183, 0, struct.pack("<3I", 0xD2800000, 0xD2800BA8, 0xD4000001)),
    ARMV7: _Machine(False, 40, 0x05000000, struct.pack("<3I", 0xE3A00000, 0xE3A07001, 0xEF000000)),
}


def program(platform: str) -> bytes:
    """A static ELF program for a platform of ours that exits with 0.

    Raises:
        KeyError: no platform of ours.
    """
    machine = _MACHINES[platform]
    header_size, segment_size, base = (64, 56, 0x400000) if machine.is_64_bit else (52, 32, 0x10000)
    start = header_size + segment_size
    size = start + len(machine.code)
    # Identification; type (executable), machine, version; entry, where segments and sections are described;
    # flags; sizes and counts of those.
    header = b"\x7fELF" + bytes([2 if machine.is_64_bit else 1, 1, 1]) + bytes(9)
    header += struct.pack(
        "<HHIQQQIHHHHHH" if machine.is_64_bit else "<HHIIIIIHHHHHH",
        *(2, machine.number, 1, base + start, header_size, 0, machine.flags),
        *(header_size, segment_size, 1, 0, 0, 0),
    )
    load, read_and_execute, page = 1, 5, 0x1000
    if machine.is_64_bit:
        segment = struct.pack("<IIQQQQQQ", load, read_and_execute, 0, base, base, size, size, page)
    else:
        segment = struct.pack("<IIIIIIII", load, 0, base, base, size, size, read_and_execute, page)
    return header + segment + machine.code


def archive(platform: str) -> bytes:
    """A root file system with nothing but the program, as a tar file."""
    content = program(platform)
    file = tarfile.TarInfo(PROGRAM.lstrip("/"))
    file.mode, file.size = 0o755, len(content)
    packed = BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        tar.addfile(file, BytesIO(content))
    return packed.getvalue()


async def run_one(node: spec.NodeFacts, settings: Settings) -> float:
    """Run one container under the owner's terms; the seconds that it took.

    Raises:
        EngineError: it did not start, or did not end well; the text says at which step, and why.
    """
    # An owner of its own: an agent that runs here must not take it for one of its containers.
    name = f"idm-check-{secrets.token_hex(6)}"
    engine = Engine(name)
    began = time.monotonic()
    platform = await engine.platform()
    if platform not in _MACHINES:
        raise EngineError("engine", f"the engine's platform is {platform}, for which GridCore has no images")
    slot = spec.SlotSpec(
        instance=0,
        cpu=node.cpus[0],
        name=f"{name}-0",
        image=f"{name}:check",
        command=(PROGRAM,),
        memory_mb=settings.container_memory,
        stop_timeout=0,
        env={},
        task="check",
        generation="check",
        allowance=spec.Allowance.of(settings),
        scratch=name if settings.scratch_size else None,
    )
    slot = replace(slot, digest=name)
    try:
        with tempfile.TemporaryDirectory(prefix="gridnode-check-") as folder:
            packed = Path(folder) / "image.tar"
            packed.write_bytes(archive(platform))
            await engine.import_image(packed, slot.image)
        await engine.start(slot, ADVICE)
        _judge(await _ended(engine), name)
    finally:
        await _clean_up(engine, slot)
        await engine.api.close()
    return time.monotonic() - began


async def _ended(engine: Engine) -> Container:
    with suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE):
            while True:
                for container in await engine.containers():
                    if container.ended:
                        return container
                await asyncio.sleep(LOOK)
    raise EngineError("engine", f"the container did not end within {PATIENCE:g} s")


def _judge(container: Container, name: str) -> None:
    if container.exit_code or container.error:
        why = f"exit code {container.exit_code}" + (f", {container.error}" if container.error else "")
        raise EngineError("engine", f"{name} started and did not end well: {why}")


async def _clean_up(engine: Engine, slot: spec.SlotSpec) -> None:
    """Leave nothing; what cannot be removed has been told by what failed before."""
    with suppress(EngineError):
        if left := await engine.containers():
            with suppress(EngineError):
                await engine.signal([c for c in left if not c.ended], "KILL")
            await engine.remove(left)
    if slot.scratch is not None:
        with suppress(EngineError):
            await engine.remove_scratch([slot.scratch])
    with suppress(EngineError):
        await engine.remove_image(slot.image)
