"""A hub on an IPv6 link-local address, in a network of its own: it, its command line and agents' client."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.hub_process import TOKEN
from tests.integration.nursery import environment
from tests.servers.authority import Authority

PORT = 8443
ADDRESS = f"[fe80::1%lo]:{PORT}"
STEPS = """
ip link set lo up
ip -6 addr add fe80::1/64 dev lo nodad
"$0" -m hub.cli --config computehub.toml 2>hub.log &
trap 'kill $!; wait $!; cat hub.log >&2' EXIT
for _ in $(seq 100); do grep -q listening hub.log && break; sleep 0.1; done
"$0" -m hub.cli --config computehub.toml token create --role viewer --ttl 1h --name cli 2>/dev/null
"$0" client.py
"""
CLIENT = """
import asyncio, json, sys
from pathlib import Path
from gridcore.client import AiohttpTransport, Request
from gridcore.trust import Trust

async def ask(url):
    trust = Trust(Path("ca.pem")) if url.startswith("https") else None
    async with AiohttpTransport(url, trust) as transport:
        answer = await transport(Request("GET", "/api/tokens", token=TOKEN))
        print(url, answer.status, [record["name"] for record in json.loads(answer.body)])

for zone in ("%lo", "%25lo"):
    asyncio.run(ask(f"{SCHEME}://[fe80::1{zone}]:{PORT}"))
"""


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_it_is_found_by_its_address_and_interface(tmp_path: Path, scheme: str) -> None:
    config = f'token = "{TOKEN}"\nstate = "memory:"\nbind = "{ADDRESS}"\n'
    if scheme == "https":
        authority = Authority(tmp_path)
        pair = authority.issue("hub", "IP:fe80::1")
        config += f'tls_certificate = "{pair.certificate}"\ntls_key = "{pair.key}"\n'
        assert authority.certificate == tmp_path / "ca.pem"
    (tmp_path / "computehub.toml").write_text(config)
    names = f"TOKEN, SCHEME, PORT = {TOKEN!r}, {scheme!r}, {PORT}\n"
    (tmp_path / "client.py").write_text(names + CLIENT)
    own = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--net", "--map-root-user"]
    done = subprocess.run(
        [*own, "sh", "-ec", STEPS, sys.executable],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
        env={**environment(), "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    token, *answers = done.stdout.splitlines()
    assert token.count(".") == 2
    assert answers == [
        f"{scheme}://[fe80::1{zone}]:{PORT} 200 ['cli']" for zone in ("%lo", "%25lo")
    ]  # fmt: skip
    assert f"address={ADDRESS}" in done.stderr.replace("\x1b", "")
