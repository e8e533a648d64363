"""The URL of a Redis: every form of it, and what is wrong with others, without a word of what is secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from hub.redis_url import RedisTarget, parse_redis
from hub.settings import HubSettings


def parsed(url: str) -> RedisTarget:
    target = parse_redis(url)
    assert target is not None
    return target


def test_a_plain_redis_needs_nothing_but_its_host() -> None:
    target = parsed("redis://cache")
    assert (target.form, target.hosts, target.database, target.tls) == (
        "direct",
        (("cache", 6379),),
        0,
        False,
    )
    assert (target.username, target.password, target.replicas) == (None, None, 0)
    assert target.prefix == "{gridcore}:"


def test_login_database_tls_and_prefix() -> None:
    target = parsed("rediss://hub:p%40ss%2F@[::1]:7000/3?ca=/etc/ca.pem&prefix=fleet-2&replicas=1")
    assert (target.hosts, target.database, target.tls) == ((("::1", 7000),), 3, True)
    assert (target.username, target.password) == ("hub", "p@ss/")
    assert (target.ca, target.prefix, target.replicas) == (Path("/etc/ca.pem"), "{fleet-2}:", 1)


def test_sentinels_know_the_master_by_a_name_and_a_replica_confirms() -> None:
    target = parsed("redis+sentinel://a,b:26380/grid/1?password_file=/run/p&sentinel_password_file=/run/s")
    assert target.hosts == (("a", 26379), ("b", 26380))
    assert (target.service, target.database, target.replicas) == ("grid", 1, 1)
    assert (target.password_file, target.sentinel_password_file) == (Path("/run/p"), Path("/run/s"))


def test_a_cluster_has_nodes_and_no_databases() -> None:
    assert parsed("rediss+cluster://a:7001,b:7002/0").hosts == (("a", 7001), ("b", 7002))
    with pytest.raises(ValueError, match="no databases"):
        parse_redis("redis+cluster://a:7001/1")


@pytest.mark.parametrize("url", ["sqlite:///x.db", "memory:", "redis:/x", "http://x", "redis", "redis+x://h"])
def test_what_is_no_redis_is_left_to_others(url: str) -> None:
    assert parse_redis(url) is None


@pytest.mark.parametrize(
    ("rest", "says"),
    [
        ("", "HOST:PORT"),
        ("h:0", "HOST:PORT"),
        ("h:99999", "HOST:PORT"),
        ("h h", "HOST:PORT"),
        ("a,b", "one server"),
        ("h/x", "database"),
        ("h/1/2", "database"),
        ("h?tmieout=1", "unknown option tmieout"),
        ("h?ca=/x", "rediss"),
        ("h?prefix=a{b}", "prefix"),
        ("h?prefix=", "empty"),
        ("h?replicas=x", "replicas"),
        ("h?sentinel_password_file=/x", "sentinel"),
        ("h?password_file=/x", "not both"),
        ("h#x", "%23"),
    ],
)
def test_what_is_wrong_is_said_without_the_secret(rest: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as refusal:
        parse_redis(f"redis://:hunter2@{rest}")
    assert "hunter2" not in str(refusal.value)


def test_sentinels_without_the_masters_name_are_refused() -> None:
    with pytest.raises(ValueError, match="NAME"):
        parse_redis("redis+sentinel://a:26379")


def test_nothing_that_is_shown_of_the_settings_holds_the_password() -> None:
    settings = HubSettings(token="an-example-secret-of-some-length", state="redis://:hunter2@h")
    assert settings.redis is not None
    assert settings.database is None
    assert "hunter2" not in f"{settings} {settings!r} {settings.redis!r} {settings.redis.name}"
