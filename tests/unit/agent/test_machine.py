"""What a machine is, and what it does not enforce."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent import machine
from agent.settings import Settings
from gridcore.errors import ConfigError

RASPBERRY = """\
#subsys_name	hierarchy	num_cgroups	enabled
cpuset	0	94	1
cpu	0	94	1
memory	0	94	0
pids	0	94	1
"""
OLD = RASPBERRY.replace("memory	0	94	0", "memory	4	184	1")


def settings_of(**values: object) -> Settings:
    return Settings.model_validate({"server_url": "http://hub:8080", "token": "t0ken", **values})


@pytest.mark.parametrize(
    ("value", "chosen"),
    [
        (2, (0, 2)),
        (9, (0, 2, 3, 7)),
        ("0-3", (0, 2, 3)),
        ("7,2", (2, 7)),
        ("1-2,6-4000", (2, 7)),
    ],
)
def test_the_owner_gives_some_of_the_cpus(value: int | str, chosen: tuple[int, ...]) -> None:
    assert machine.parse_cpus(value, (0, 2, 3, 7)) == chosen


def test_cpus_that_are_not_there_are_told() -> None:
    with pytest.raises(ValueError, match=r'none of "8-9" is there; this process may use CPU 0-2,5'):
        machine.parse_cpus("8-9", (0, 1, 2, 5))
    assert machine.cpus_warning("0-9", (0, 1, 2, 5)) == (
        'cpus: "0-9" names CPU 3-4,6-9, this process may use CPU 0-2,5'
    )
    assert machine.cpus_warning(3, (0, 1)) == "cpus: 3 asked for, this process may use CPU 0-1"
    assert machine.cpus_warning("1", (0, 1)) is None


def write(tmp_path: Path, table: str | None, unified: str | None = None) -> tuple[Path, Path]:
    if table is not None:
        (tmp_path / "cgroups").write_text(table)
    if unified is not None:
        (tmp_path / "cgroup.controllers").write_text(unified)
    return tmp_path, tmp_path / "cgroups"


def test_a_raspberry_pis_missing_memory_controller_is_told(tmp_path: Path) -> None:
    places = write(tmp_path, RASPBERRY)
    (warning,) = machine.limit_warnings(*places)
    assert "memory limits are not enforced" in warning
    assert "cgroup_enable=memory" in warning


def test_the_unified_hierarchy_lists_what_it_enforces(tmp_path: Path) -> None:
    places = write(tmp_path, OLD, "cpuset cpu io pids\n")
    (warning,) = machine.limit_warnings(*places)
    assert "no memory controller" in warning
    assert machine.limit_warnings(*write(tmp_path, RASPBERRY, "cpuset cpu io memory pids\n")) == ()
    assert len(machine.limit_warnings(*write(tmp_path, None, "cpu io"))) == 3


def test_the_old_hierarchy_and_an_unknown_one_warn_of_nothing(tmp_path: Path) -> None:
    assert machine.limit_warnings(*write(tmp_path, OLD)) == ()
    assert machine.limit_warnings(tmp_path / "none", tmp_path / "none") == ()


def test_gpus_are_found_in_dev_and_in_proc(tmp_path: Path) -> None:
    assert machine.gpu_count(tmp_path) == 0
    (tmp_path / "dev").mkdir()
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / "dev" / name).touch()
    assert machine.gpu_count(tmp_path) == 2
    for name in ("0000:01:00.0", "0000:02:00.0", "0000:03:00.0"):
        (tmp_path / "proc/driver/nvidia/gpus" / name).mkdir(parents=True)
    assert machine.gpu_count(tmp_path) == 3


def test_mounts_that_are_not_there_are_named(tmp_path: Path) -> None:
    settings = settings_of(mounts=[f"{tmp_path}:/data:ro", f"{tmp_path}/gone:/more"])
    assert machine.missing_mounts(settings) == (f"mounts: there is no {tmp_path}/gone on this machine",)


def test_good_settings_that_do_not_fit_this_machine_are_named() -> None:
    assert machine.misfits(settings_of(cpus=2), (0, 1)) == ()
    assert machine.misfits(settings_of(cpus="4"), (0, 1)) == (
        'cpus: none of "4" is there; this process may use CPU 0-1',
    )
    found = machine.misfits(
        settings_of(
            cpus="0-3",
            container_memory=16_000_000,
            allowed_images=[],
        ),
        (0, 1),
    )
    assert [line.partition(":")[0] for line in found] == [
        "cpus",
        "container_memory",
        "allowed_images",
    ]


def test_the_owners_words_count_more_than_what_is_found(tmp_path: Path) -> None:
    config = tmp_path / "gridnode.toml"
    cpus = machine.usable_cpus()
    assert machine.facts(config, settings_of()).cpus == cpus
    given = machine.facts(config, settings_of(cpus=1, gpu_count=3))
    assert (given.cpus, given.gpus) == (cpus[:1], 3)
    with pytest.raises(ConfigError, match=r"gridnode\.toml: cpus: none of"):
        machine.facts(config, settings_of(cpus="4000"))
    warnings = machine.facts(config, settings_of(cpus=4000)).warnings
    assert any(line.startswith("cpus: 4000 asked for") for line in warnings)


def test_state_lies_in_var_lib_for_a_service_and_else_beside_the_configuration(tmp_path: Path) -> None:
    service = Path("/etc/idm-gridcore/gridnode.toml")
    assert machine.state_directory(service, None) == Path("/var/lib/gridnode")
    assert machine.state_directory(tmp_path / "gridnode.toml", None) == tmp_path / "gridnode.state"
    assert machine.state_directory(service, tmp_path) == tmp_path
