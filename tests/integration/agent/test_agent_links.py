"""Two agents on one configuration or one state directory: refused by whatever name they come to it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.agent.conftest import Agent, eventually
from tests.integration.agent.fixed_hub import FixedHub

EXIT_CONFIG = 78
Linker = Callable[[Path, Path], None]


def test_an_agent_through_a_link_writes_to_the_file_and_keeps_the_link(
    make_agent: Callable[..., Agent], hub: FixedHub, tmp_path: Path
) -> None:
    agent = make_agent(hub.url, node_id=None)
    real = agent.config
    agent.config = tmp_path / "gridnode.toml"
    agent.config.symlink_to(real)
    agent.start()
    eventually(lambda: "node_id" in real.read_text(), "the node id in the file that the link resolves to")
    assert agent.config.is_symlink()
    assert agent.stop() == 0


@pytest.mark.parametrize(
    "link",
    [
        pytest.param(lambda new, old: new.symlink_to(old), id="symbolic"),
        pytest.param(lambda new, old: new.hardlink_to(old), id="hard"),
    ],
)
def test_a_second_agent_on_a_link_to_the_configuration_is_refused(
    make_agent: Callable[..., Agent], hub: FixedHub, tmp_path: Path, link: Linker
) -> None:
    # No id yet: the first agent replaces the file, which a lock must survive.
    first = make_agent(hub.url, node_id=None).start()
    eventually(lambda: "node_id" in first.config.read_text(), "the node id in the file")
    second = make_agent(hub.url)
    second.config = tmp_path / "gridnode.toml"
    link(second.config, first.config)
    assert second.start().wait() == EXIT_CONFIG
    assert "another gridnode runs with this file" in second.output()
    assert first.stop() == 0


def test_a_second_agent_on_the_same_state_directory_is_refused(
    make_agent: Callable[..., Agent], hub: FixedHub, tmp_path: Path
) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "state")
    first = make_agent(hub.url, state_directory=str(tmp_path / "state")).start()
    eventually(lambda: hub.calls("/gridnode/heartbeat"), "the first agent at work")
    second = make_agent(hub.url, state_directory=str(tmp_path / "link"))
    assert second.start().wait() == EXIT_CONFIG
    assert "state_directory: another gridnode keeps its state" in second.output()
    assert first.stop() == 0
