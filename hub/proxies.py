"""Where a request really came from: whose X-Forwarded-For counts, and which address in it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

MOST_CACHED = 16_384
MOST_HOPS = 32
"""Addresses of a header that are looked at, from its end."""


def parse_network(text: str) -> Network:
    """A network such as 10.0.0.0/8, or one address. Raises ValueError that says what was expected."""
    try:
        return ip_network(text)
    except ValueError:
        why = ""
        with suppress(ValueError):  # only that it names one address and the size of its network
            why = f"; did you mean {ip_network(text, strict=False)}?"
        raise ValueError(f"expected addresses or networks, such as 127.0.0.1 or 10.0.0.0/8{why}") from None


class Proxies:
    """The proxies that are trusted to say whom they speak for."""

    def __init__(self, networks: Sequence[str] = ()) -> None:
        self._networks = tuple(parse_network(text) for text in networks)
        # A fleet behind a proxy sends the same few headers again and again.
        self._found = lru_cache(MOST_CACHED)(self._find)

    def source(self, peer: str | None, headers: Sequence[tuple[bytes, bytes]]) -> str | None:
        """The address that a request came from: the peer's own, unless that is a trusted proxy."""
        if not self._networks or peer is None:
            return peer
        forwarded = b",".join(value for name, value in headers if name.lower() == b"x-forwarded-for")
        return self._found(peer, forwarded)

    def _find(self, peer: str, forwarded: bytes) -> str:
        """From the nearest to the farthest: the first that is no trusted proxy. What stands beyond that one,
        or beyond what is no address, anybody can have written."""
        nearest = read_address(peer)
        if nearest is None:
            return peer
        hops = forwarded.decode("latin-1").rsplit(",", MOST_HOPS)[-MOST_HOPS:] if forwarded else []
        for hop in reversed(hops):
            if not self._trusts(nearest):
                break
            before = read_address(hop)
            if before is None:
                break
            nearest = before
        return str(nearest)

    def _trusts(self, address: Address) -> bool:
        return any(address in network for network in self._networks)


def read_address(text: str) -> Address | None:
    """An address, also with a port or in brackets; None for all else. IPv4 that came as IPv6 is IPv4."""
    text = text.strip()
    if text.startswith("["):
        text, bracket, port = text[1:].partition("]")
        if not bracket or not (port == "" or _is_port(port)):
            return None
    elif text.count(":") == 1:
        text, _, port = text.partition(":")
        if not _is_port(":" + port):
            return None
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address.scope_id is not None:  # which of this machine's cables it is says nothing of who
            return IPv6Address(text.partition("%")[0])
    return address


def _is_port(text: str) -> bool:
    return text.startswith(":") and text[1:].isascii() and text[1:].isdigit() and len(text) <= 6
