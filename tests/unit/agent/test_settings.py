"""gridnode.toml: read with clear errors, written back with care."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from agent.settings import Settings, example, write_back
from gridcore.config import load
from gridcore.errors import ConfigError

GOOD = 'server_url = "http://hub:8080"\ntoken = "t0ken"\n'


def settings_of(tmp_path: Path, text: str, env: dict[str, str] | None = None) -> Settings:
    path = tmp_path / "gridnode.toml"
    path.write_text(text)
    return load(Settings, path, env or {})


def test_the_defaults_are_the_protocols(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, GOOD)
    assert (settings.heartbeat_interval, settings.stop_timeout, settings.container_memory) == (30, 30, 1024)
    assert (settings.parallelism, settings.node_id, settings.max_stop_timeout) == (None, None, 600)


@pytest.mark.parametrize(
    ("extra", "key", "expected"),
    [
        ("heartbeat_interval = 46", "heartbeat_interval", "less than or equal to 45"),
        ("heartbeat_intervall = 3", "heartbeat_intervall", "did you mean heartbeat_interval?"),
        ("parallelism = 0", "parallelism", "greater than or equal to 1"),
        ('parallelism = "two"', "parallelism", "integer"),
        ('node_id = "-x"', "node_id", "pattern"),
        ('architecture = "armv6l"', "architecture", "expected x86_64, aarch64 or arm"),
        ("= 3", "", "not valid TOML"),
        ('hours = "22-7"', "hours", 'such as "22:00-07:00"'),
        ('hours = "24:00-07:00"', "hours", 'such as "22:00-07:00"'),
        ('hours = "07:00-07:00"', "hours", 'such as "22:00-07:00"'),
        ("cpus = 0", "cpus", "at least 1"),
        ('cpus = "3-1"', "cpus", 'such as "0-3,6"'),
        ('cpus = "0,"', "cpus", 'such as "0-3,6"'),
        ("cpus = true", "cpus", 'such as "0-3,6"'),
        ('allowed_images = "a/*"', "allowed_images", 'a list, such as ["a/*"]'),
        ("cpus = [1]", "cpus", 'such as "0-3,6"'),
        ('mounts = "/a:/b"', "mounts", 'a list, such as ["/a:/b"]'),
        ('capabilities = ["--privileged"]', "capabilities.0", 'such as "NET_RAW"'),
        ('mounts = ["data:/data"]', "mounts.0", '"/on/this/machine:/in/the/container"'),
        ('mounts = ["/data:/data:z"]', "mounts.0", '"/on/this/machine:/in/the/container"'),
        ('mounts = ["/data:/scratch/"]', "mounts.0", "not free for a mount"),
        ('mounts = ["/da\\u0000ta:/x"]', "mounts.0", "no path has a null character"),
        ('mounts = ["/data:/x/../scratch"]', "mounts.0", "not free for a mount"),
        ('mounts = ["/data:/"]', "mounts.0", "not free for a mount"),
        ('network = "--host"', "network", "pattern"),
        ("yield_load = 0", "yield_load", "greater than 0"),
        ("cpu_shares = 1", "cpu_shares", "greater than or equal to 2"),
        ('state_directory = "here"', "state_directory", "expected an absolute path"),
        ('ca_file = "ca.pem"', "ca_file", "expected an absolute path"),
        ('ca_file = "/no/such/ca.pem"', "ca_file", "expected a PEM file"),
        ('ca_file = "/etc/hostname"', "ca_file", "there is no certificate in it"),
        ('ca_file = "/etc"', "ca_file", "expected a PEM file"),
        ('join_token = ""', "join_token", "is not set"),
        ('join_token = "a b"', "join_token", "printable ASCII"),
        ('join_token = "schlüssel"', "join_token", "printable ASCII"),
    ],
)
def test_a_bad_value_names_file_key_and_expectation(
    tmp_path: Path, extra: str, key: str, expected: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        settings_of(tmp_path, GOOD + extra)
    assert str(caught.value).startswith(f"{tmp_path}/gridnode.toml: {key}")
    assert expected in str(caught.value)


def test_the_owners_terms_are_strict_by_default(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, GOOD)
    assert (settings.capabilities, settings.mounts, settings.new_privileges) == ((), (), False)
    assert (settings.network, settings.cpu_shares, settings.oom_score) == ("bridge", 2, 500)
    assert (settings.allowed_images, settings.hours, settings.cpus, settings.yield_load) == (None,) * 4


def test_the_owner_can_loosen_them(tmp_path: Path) -> None:
    settings = settings_of(
        tmp_path,
        GOOD + 'allowed_images = ["a/*"]\nhours = "22:00-07:00"\ncpus = "0-3,6"\ncapabilities = ["NET_RAW"]\n'
        'mounts = ["/data:/data:ro", "/x:/y"]\nnetwork = "host"\nnew_privileges = true\n',
    )
    assert settings.cpus == "0-3,6"
    assert settings.mounts == ("/data:/data:ro", "/x:/y")
    assert (settings.network, settings.capabilities) == ("host", ("NET_RAW",))
    assert settings_of(tmp_path, GOOD, {"IDM_GRIDCORE_CPUS": "2"}).cpus == 2
    assert settings_of(tmp_path, GOOD, {"IDM_GRIDCORE_CPUS": "0-1"}).cpus == "0-1"


def test_a_bad_token_is_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        settings_of(tmp_path, 'server_url = "hub:8080"\ntoken = "my secret"\n')
    assert "my secret" not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 2


def test_keys_that_do_not_fit_each_other_show_nothing_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        settings_of(tmp_path, GOOD + 'state_directory = "here"\n')
    assert str(caught.value) == f"{tmp_path}/gridnode.toml: state_directory: expected an absolute path"


def test_one_of_both_tokens_is_enough_and_none_is_one_line(tmp_path: Path) -> None:
    url = 'server_url = "http://hub:8080"\n'
    joining = settings_of(tmp_path, url + 'join_token = "j0in"\n')
    assert (joining.token, joining.join_token) == (None, "j0in")
    assert settings_of(tmp_path, url, {"IDM_GRIDCORE_JOIN_TOKEN": "j0in"}).join_token == "j0in"
    assert "j0in" not in repr(joining)
    with pytest.raises(ConfigError) as caught:
        settings_of(tmp_path, url)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{tmp_path}/gridnode.toml: token: missing; set ")
    assert "join_token" in line


def test_the_environment_wins(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, GOOD, {"IDM_GRIDCORE_PARALLELISM": "3", "IDM_GRIDCORE_TOKEN": "other"})
    assert (settings.parallelism, settings.token) == (3, "other")


def test_the_example_is_complete_but_for_the_token(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="token: is not set"):
        settings_of(tmp_path, example())
    assert settings_of(tmp_path, example().replace("paste-the-token-of-the-hub-here", "t0ken"))


def test_the_node_id_replaces_an_old_one_and_keeps_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "gridnode.toml"
    text = f'# mine\nnode_id = "old"   # by hand\n{GOOD}\n[labels]\nroom = "x"  # here\n'
    path.write_text(text)
    path.chmod(0o640)
    write_back(path, "new")
    assert path.read_text() == text.replace('"old"', '"new"')
    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["gridnode.toml"]


def test_id_and_token_are_written_together_and_before_the_first_table(tmp_path: Path) -> None:
    path = tmp_path / "gridnode.toml"
    path.write_text('server_url = "http://hub:8080" # there\njoin_token = "j"\n\n[labels]\nroom = "x"\n')
    write_back(path, "n1", "0wn")
    settings = load(Settings, path, {})
    assert (settings.node_id, settings.token, settings.join_token) == ("n1", "0wn", "j")
    assert settings.labels == {"room": "x"}
    assert "# there\n" in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    write_back(path, "n2")
    assert load(Settings, path, {}).token == "0wn"


def test_a_file_that_is_no_toml_any_more_is_left_and_told(tmp_path: Path) -> None:
    path = tmp_path / "gridnode.toml"
    path.write_text("server_url = \n")
    with pytest.raises(ConfigError, match="not valid TOML"):
        write_back(path, "n1", "0wn")
    assert path.read_text() == "server_url = \n"


def run(*arguments: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "agent.cli", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", **env},
    )


def test_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "gridnode.toml"
    missing = run(IDM_GRIDCORE_CONFIG=str(path))
    assert missing.returncode == 78
    assert str(path) in missing.stderr
    assert "server_url" in missing.stderr
    assert run("--config", str(path), "init").returncode == 0
    assert path.stat().st_mode & 0o777 == 0o600
    again = run("--config", str(path), "init")
    assert (again.returncode, "exists already" in again.stderr) == (78, True)
    unset = run("--config", str(path), "--check")
    assert unset.returncode == 78
    assert unset.stderr.startswith(f"gridnode: {path}: token: ")
    path.write_text(GOOD)
    assert run("--config", str(path), "--check").returncode == 0
    assert run("--version").stdout.startswith("gridnode, version ")
    gone = run("--config", str(tmp_path / "none.toml"))
    assert gone.returncode == 78
    assert "there is no such file" in gone.stderr


def test_init_says_what_is_left_to_write(tmp_path: Path) -> None:
    server = ("--server", "http://hub:8080")
    token = ("--join-token-file", "-")
    for number, (options, left) in enumerate(
        {(): "Put the hub's address and token into it", server: "Put the hub's token into it",
         token: "Put the hub's address into it", (*server, *token): "written. Try it: "}.items()
    ):  # fmt: skip
        path = tmp_path / f"{number}.toml"
        done = run("init", "--config", str(path), *options, stdin="j0in-token\n")
        assert (done.returncode, left in done.stdout) == (0, True), done.stdout


def test_the_check_warns_of_a_token_that_everybody_can_read(tmp_path: Path) -> None:
    path = tmp_path / "gridnode.toml"
    told = f"gridnode: warning: everybody on this machine can read {path}, and it holds a secret"
    assert run("init", "--config", str(path), "--join-token-file", "-", stdin="j0in-token").returncode == 0
    assert told not in run("--config", str(path), "--check").stderr
    path.chmod(0o644)
    assert told in run("--config", str(path), "--check").stderr


@pytest.mark.parametrize("server", ["10.213.160.11:8080", "hub", "ftp://hub", "http://", "http://hub:no", ""])
def test_init_writes_nothing_for_a_server_that_is_no_address(tmp_path: Path, server: str) -> None:
    path = tmp_path / "gridnode.toml"
    done = run("init", "--config", str(path), "--server", server)
    assert (done.returncode, path.exists()) == (78, False)
    assert done.stderr.startswith("gridnode: --server: expected an address such as http://")


def test_what_init_writes_of_a_server_is_one_value(tmp_path: Path) -> None:
    path = tmp_path / "gridnode.toml"
    server = 'http://hub:8080/"x\\'
    assert run("init", "--config", str(path), "--server", server).returncode == 0
    assert tomllib.loads(path.read_text())["server_url"] == server


def test_init_takes_a_join_token_from_a_file_or_standard_input_only(tmp_path: Path) -> None:
    path, secret = tmp_path / "gridnode.toml", tmp_path / "secret"
    done = run("--config", str(path), "init", "--join-token-file", "-", stdin="j0in-token\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert "j0in-token" not in done.stdout
    assert path.stat().st_mode & 0o777 == 0o600
    assert (load(Settings, path, {}).token, load(Settings, path, {}).join_token) == (None, "j0in-token")
    checked = run("--config", str(path), "--check")
    assert (checked.returncode, "j0in-token" in checked.stdout + checked.stderr) == (0, False)
    path.unlink()
    secret.write_text("other\n")
    assert run("init", "--config", str(path), "--join-token-file", str(secret)).returncode == 0
    assert load(Settings, path, {}).join_token == "other"
    path.unlink()
    for nonsense in ("", "two words", "schlüssel"):
        done = run("--config", str(path), "init", "--join-token-file", "-", stdin=nonsense)
        assert (done.returncode, path.exists()) == (78, False)
        assert done.stderr.startswith("gridnode: join token: ")
    done = run("--config", str(path), "init", "--join-token-file", str(tmp_path / "none"))
    assert (done.returncode, "Traceback" in done.stderr, path.exists()) == (2, False, False)


def test_a_ca_file_without_tls_is_a_warning(tmp_path: Path) -> None:
    key, ca = tmp_path / "key.pem", tmp_path / "ca.pem"
    request = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
    ]
    more = ["-subj", "/CN=ca", "-keyout", str(key), "-out", str(ca)]
    subprocess.run([*request, *more], check=True, capture_output=True)
    path = tmp_path / "gridnode.toml"
    path.write_text(f'{GOOD}ca_file = "{ca}"\n')
    path.chmod(0o600)
    plain = run("--config", str(path), "--check")
    assert (plain.returncode, plain.stdout) == (0, f"{path}: good\n")
    assert "gridnode: warning: ca_file: counts for https:// only" in plain.stderr
    path.write_text(path.read_text().replace("http://", "https://"))
    assert "ca_file" not in run("--config", str(path), "--check").stderr
    path.write_text(f'{GOOD}ca_file = "{key}"\n')
    bad = run("--config", str(path), "--check")
    assert bad.returncode == 78
    assert bad.stderr.startswith(f"gridnode: {path}: ca_file: expected a PEM file with the hub's CA")


@pytest.mark.parametrize(
    "url", ["http://hub:99999", "http://hub:0", "http://[::1", "http://[x]:1", "http://:80"]
)
def test_an_address_that_can_be_no_hubs_is_told_in_plain_words(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigError, match="server_url: expected an address such as"):
        settings_of(tmp_path, f'server_url = "{url}"\ntoken = "t0ken"\n')


@pytest.mark.parametrize(
    "url", ["http://[fe80::1%eth0]:8080", "http://[fe80::1%25eth0]:8080", "https://[::1]"]
)
def test_an_ipv6_address_may_name_its_interface(tmp_path: Path, url: str) -> None:
    assert settings_of(tmp_path, f'server_url = "{url}"\ntoken = "t0ken"\n').server_url == url
