"""When a certificate ends, read from its bytes, and what is told of one that ends soon or has ended."""

from __future__ import annotations

import ssl
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gridcore.errors import ConfigError
from hub.certificates import not_after, read_pair
from hub.tls import Tls


def make(directory: Path, days: int, *more: str) -> tuple[Path, Path]:
    """A self-signed certificate that ends in so many days, and its key."""
    pair = directory / "hub.pem", directory / "hub.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc",
         "-days", str(days), "-subj", "/CN=hub", "-out", str(pair[0]), "-keyout", str(pair[1]), *more],
        check=True, capture_output=True,
    )  # fmt: skip
    return pair


# Beyond 2049 the time is written in another form.
@pytest.mark.parametrize("days", [1, 100, 20_000])
def test_the_end_is_that_which_openssl_tells(tmp_path: Path, days: int) -> None:
    pair = make(tmp_path, days)
    said = subprocess.run(
        ["openssl", "x509", "-in", str(pair[0]), "-noout", "-enddate"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    expected = datetime.strptime(said.strip(), "notAfter=%b %d %H:%M:%S %Y GMT").replace(tzinfo=UTC)
    assert read_pair(*pair).ends == expected
    assert abs(expected - datetime.now(UTC) - timedelta(days=days)) < timedelta(minutes=5)


def test_bytes_that_are_cut_off_anywhere_are_no_certificate(tmp_path: Path) -> None:
    text = make(tmp_path, 1)[0].read_text()
    der = ssl.PEM_cert_to_DER_cert(text)
    for length in range(0, len(der), 7):
        with pytest.raises((ValueError, IndexError)):
            not_after(der[:length])


@pytest.mark.parametrize(("days", "told"), [(13, "warning"), (15, None)])
async def test_an_end_within_two_weeks_is_warned_about(tmp_path: Path, days: int, told: str | None) -> None:
    pair = make(tmp_path, days)
    with capture_logs() as logs:
        tls = Tls(*pair)
    assert [line["log_level"] for line in logs if line["log_level"] != "info"] == ([told] if told else [])
    with capture_logs() as logs:
        await tls.look()
    assert [line["log_level"] for line in logs] == ([told] if told else [])


async def test_a_certificate_that_has_ended_is_an_error_in_the_log(tmp_path: Path) -> None:
    pair = make(tmp_path, 1)
    tls = Tls(*pair)
    ended = datetime.now(UTC) - timedelta(days=1)
    object.__setattr__(tls._pair, "ends", ended)
    with capture_logs() as logs:
        await tls.look()
    assert logs[0]["log_level"] == "error"


def test_a_chain_is_shown_and_its_first_certificate_counts(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    pair, other = make(tmp_path, 30), make(tmp_path / "other", 300)
    first = read_pair(*pair).ends
    pair[0].write_text("a comment\n" + pair[0].read_text() + other[0].read_text())
    assert read_pair(*pair).ends == first


def test_a_missing_key_is_told_with_its_path(tmp_path: Path) -> None:
    pair = make(tmp_path, 1)
    pair[1].unlink()
    with pytest.raises(ConfigError, match=rf"tls_key: {pair[1]} cannot be read: No such file"):
        read_pair(*pair)
