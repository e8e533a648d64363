"""A real Prometheus and its `promtool`, of Debian's package, which `make setup` only unpacks."""

from __future__ import annotations

import json
import os
import shutil
import urllib.parse
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from tests.servers.children import Child, free_port

UNPACKED = (
    Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "idm-gridcore/prometheus/usr/bin"
)
"""Where tests/fleet/machine.sh puts it."""

CONFIGURATION = """\
global: {{scrape_interval: 1s}}
rule_files: [{rules}]
scrape_configs:
  - job_name: computehub
    authorization: {{credentials_file: {token}}}
    static_configs: [{{targets: ["127.0.0.1:{hub}"]}}]
"""


def require(program: str) -> str:
    """The path of `prometheus` or `promtool`; without it the test is skipped, and with CI set it fails."""
    unpacked = UNPACKED / program
    path = shutil.which(program) or (str(unpacked) if unpacked.exists() else None)
    if path is not None:
        return path
    missing = (
        f"{program} is missing: neither on PATH nor in {UNPACKED}. `make setup` unpacks it there on Debian "
        "and Ubuntu (apt-get download prometheus); elsewhere install Prometheus"
    )
    if os.environ.get("CI"):
        pytest.fail(missing)
    pytest.skip(missing)  # a machine without apt-get: all the rest can be tested there; with CI set it fails


class Prometheus:
    """Starts with `with`; scrapes one hub each second, with a token of its own."""

    def __init__(self, directory: Path, hub_port: int, token: str, rules: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        secret = directory / "token"
        secret.touch(0o600)
        secret.write_text(token)
        path = directory / "prometheus.yml"
        path.write_text(CONFIGURATION.format(rules=rules, token=secret, hub=hub_port))
        self.port = free_port()
        command = [
            require("prometheus"),
            f"--config.file={path}",
            f"--storage.tsdb.path={directory / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
        ]
        self._child = Child("prometheus", command, directory / "log")

    def __enter__(self) -> Prometheus:
        self._child.start(self._is_ready)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._child.kill()

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/-/ready", timeout=1):
                return True
        except OSError:
            return False

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """What an expression gives now: labels and value of each series."""
        result = self.ask(f"query?{urllib.parse.urlencode({'query': expression})}")["result"]
        return [(series["metric"], float(series["value"][1])) for series in result]

    def ask(self, what: str) -> Any:
        """The data of an answer of its API."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/v1/{what}", timeout=10) as answer:
            return json.load(answer)["data"]
