"""What the environment says of a key is read in one way, and told by the variable's name when it is bad."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from agent.settings import Settings
from gridcore import config
from gridcore.errors import ConfigError
from hub import running_hub
from hub.cli import main
from hub.settings import HubSettings, example
from tests.servers.authority import Authority

GOOD = "an-example-secret-of-some-length"
DIGITS = "83920174659283746501"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "computehub.toml"
    path.write_text(f'token = "{GOOD}"\nstate = "memory:"\n')
    return path


def hub(path: Path, **env: str) -> HubSettings:
    return config.load(HubSettings, path, {f"IDM_GRIDCORE_{key}": value for key, value in env.items()})


@pytest.mark.parametrize(
    "token", [DIGITS, f"{DIGITS}e5", "2026-11-24T00:00:00Z", "[83,92,01,74,65]", "#83920174659xyz-8"]
)
def test_a_key_of_text_takes_what_would_be_something_else_in_a_file(file: Path, token: str) -> None:
    assert hub(file, TOKEN=token).token == token
    assert hub(file, PREVIOUS_TOKEN=token).previous_token == token


@pytest.mark.parametrize("written", [f'"{DIGITS}"', f"'{DIGITS}'", DIGITS])
def test_hub_and_command_line_read_one_value_with_quotes_or_without(
    file: Path, monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    monkeypatch.setenv("IDM_GRIDCORE_TOKEN", written)
    assert config.load(HubSettings, file).token == DIGITS
    assert running_hub.find_hub(file, None, None, None).token == DIGITS
    assert running_hub.find_hub(None, "http://hub:1", None, None).token == DIGITS
    node = file.with_name("gridnode.toml")
    node.write_text('server_url = "http://hub:1"\n')
    assert config.load(Settings, node).token == DIGITS


def test_keys_that_are_no_text_are_read_as_in_the_file(file: Path) -> None:
    read = hub(file, PREFETCH="true", NODE_TOKEN_DAYS="7", TRUSTED_PROXIES='["10.0.0.0/8"]')
    assert (read.prefetch, read.node_token_days, read.trusted_proxies) == (True, 7, ("10.0.0.0/8",))
    node = file.with_name("gridnode.toml")
    node.write_text(f'server_url = "http://hub:1"\ntoken = "{GOOD}"\n')
    env = {"IDM_GRIDCORE_HOSTNAME": "007", "IDM_GRIDCORE_CPUS": "2", "IDM_GRIDCORE_LABELS": '{room = "1"}'}
    settings = config.load(Settings, node, env)
    assert (settings.hostname, settings.cpus, settings.labels) == ("007", 2, {"room": "1"})


@pytest.mark.parametrize(
    ("env", "begin"),
    [
        ({"TOKEN": "1234567"}, "IDM_GRIDCORE_TOKEN (environment): token: can be guessed"),
        ({"PREVIOUS_TOKEN": "schlüssel"}, "IDM_GRIDCORE_PREVIOUS_TOKEN (environment): previous_token: only"),
        ({"TOKEN": "a\udcff"}, "IDM_GRIDCORE_TOKEN (environment): expected text in UTF-8"),
        ({"NODE_TOKEN_DAYS": "many"}, "IDM_GRIDCORE_NODE_TOKEN_DAYS (environment): node_token_days: "),
        ({"PREFETCH": "1\ntoken = 2"}, "IDM_GRIDCORE_PREFETCH (environment): prefetch: "),
        ({"PREFETCH": "[" * 5_000}, "IDM_GRIDCORE_PREFETCH (environment): prefetch: "),
        ({"BIND": "8080"}, "IDM_GRIDCORE_BIND (environment): bind: expected HOST:PORT"),
        ({"TRUSTED_PROXIES": '["x"]'}, "IDM_GRIDCORE_TRUSTED_PROXIES (environment): trusted_proxies.0: "),
    ],
)
def test_what_is_wrong_with_a_variable_is_not_blamed_on_the_file(
    file: Path, env: dict[str, str], begin: str
) -> None:
    with pytest.raises(ConfigError) as error:
        hub(file, **env)
    assert str(error.value).startswith(begin)
    assert str(file) not in str(error.value)


def test_a_file_may_begin_with_a_byte_order_mark(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert hub(file).token == GOOD
    assert hub(file).state == "memory:"
    agent = file.with_name("gridnode.toml")
    lines = f'server_url = "http://hub.example:8080"\r\ntoken = "{GOOD}"\r\n'
    agent.write_bytes(b"\xef\xbb\xbf" + lines.encode())
    assert config.load(Settings, agent, {}).server_url == "http://hub.example:8080"


def test_a_file_that_is_nested_too_deeply_is_told_as_one(file: Path) -> None:
    file.write_text("notify = " + "[" * 5_000)
    with pytest.raises(ConfigError, match=r"computehub\.toml: not valid TOML: nested too deeply"):
        hub(file)


def test_keys_that_do_not_fit_each_other_name_file_and_variable(file: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"computehub\.toml and IDM_GRIDCORE_TLS_KEY: tls_certificate: miss"
    ):
        hub(file, TLS_KEY="/hub.key")


def test_a_token_that_no_header_can_carry_is_told_by_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IDM_GRIDCORE_TOKEN", "schlüssel")
    with pytest.raises(ConfigError, match=r"^IDM_GRIDCORE_TOKEN \(environment\): expected printable ASCII"):
        running_hub.find_hub(None, "http://hub:1", None, None)


@pytest.mark.parametrize("key", ["token", "previous_token"])
@pytest.mark.parametrize(
    "token", ["change-me-in-production", "your-secret-token-change-this", "hunter2", "x" * 40]
)
def test_a_hub_does_not_start_with_a_token_that_can_be_guessed(tmp_path: Path, key: str, token: str) -> None:
    values: dict[str, Any] = {"token": GOOD, "state": "memory:", key: token}
    path = tmp_path / "computehub.toml"
    path.write_text("".join(f'{name} = "{value}"\n' for name, value in values.items()))
    checked = CliRunner().invoke(main, ["--config", str(path), "--check"])
    assert checked.exit_code == 78
    assert checked.output.startswith(f"{path}: {key}: can be guessed, since it ")
    assert "openssl rand -hex 32" in checked.output
    assert token not in checked.output


def test_an_agent_goes_on_with_the_hubs_token_and_warns(tmp_path: Path) -> None:
    path = tmp_path / "gridnode.toml"
    path.write_text('server_url = "http://hub:1"\ntoken = "hunter2"\n')
    assert "can be guessed" in (config.load(Settings, path).token_warning or "")
    path.write_text(f'server_url = "http://hub:1"\ntoken = "{GOOD}"\n')
    assert config.load(Settings, path).token_warning is None


@pytest.mark.parametrize("name", ["TOKN", "BND", "PREVIOUS_TOKENS", "NODE_RETENTION_DAY", "TLS_CERT1FICATE"])
def test_a_misspelt_variable_is_not_ignored(file: Path, name: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"^IDM_GRIDCORE_{name} \(environment\): .* did you mean IDM_GRIDCORE_"
    ):
        hub(file, **{name: "1"})


def test_variables_of_the_other_program_are_left_to_it(file: Path) -> None:
    agents, hubs = set(Settings.model_fields), set(HubSettings.model_fields)
    assert hub(file, **{key.upper(): "x" for key in agents - hubs}).token == GOOD
    node = file.with_name("gridnode.toml")
    node.write_text(f'server_url = "http://hub:1"\ntoken = "{GOOD}"\n')
    env = {config.variable_of(key): "x" for key in hubs - agents}
    assert config.load(Settings, node, env).token == GOOD


def test_the_file_that_a_variable_names_may_stand_in_quotes(file: Path) -> None:
    assert config.candidates("computehub.toml", {config.CONFIG_VARIABLE: f'"{file}"'}) == [file]


def test_a_file_that_was_named_and_cannot_be_looked_at_is_not_taken_for_missing(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    assert config.find("x.toml", None, {"IDM_GRIDCORE_CONFIG": str(loop)}) == loop
    named = tmp_path / "idm-gridcore"
    named.symlink_to(named)
    assert config.find("x.toml", None, {"XDG_CONFIG_HOME": str(tmp_path)}) is None


def test_a_first_configuration_is_told_for_any_path(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff") / "computehub.toml"
    path.parent.mkdir()
    path.write_text(example(path))
    assert "%FF" in path.read_text()
    assert hub(path).database == path.with_name("computehub.state.db")


def test_words_around_a_hubs_certificate_hinder_no_command(tmp_path: Path) -> None:
    (tmp_path / "ca").mkdir()
    pair = Authority(tmp_path / "ca").issue("hub")
    file = tmp_path / "named.pem"
    file.write_text(f"# Rechnerraum Köln\n{pair.certificate.read_text()}# Ende für heute\n")
    assert running_hub.OwnCertificate(file).context.cert_store_stats()["x509"] == 1
