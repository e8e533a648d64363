"""The servers that tests start: a test run that dies leaves none behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.servers.children import accepts, wait_until

DYING = """
import os, pathlib, signal, sys
from tests.servers.redis_server import RedisServer
server = RedisServer(pathlib.Path(sys.argv[1])).start()
print(server.port, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_server_ends_with_the_test_run_that_started_it(tmp_path: Path) -> None:
    died = subprocess.run(
        [sys.executable, "-c", DYING, str(tmp_path)], stdout=subprocess.PIPE, text=True, check=False
    )
    assert died.returncode == -9
    port = int(died.stdout)
    wait_until(lambda: not accepts(port), "the server is gone", 5)
