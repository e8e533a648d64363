"""What a node runs of a task: counts, limits, environment, and the digest by which containers are known."""

from __future__ import annotations

import pytest

from agent.reasons import LITTLE_MEMORY, Reason
from agent.settings import Settings
from agent.spec import NodeFacts, Wanted, want
from gridcore.protocol import TaskConfig

NODE = NodeFacts((0, 1, 2, 3), 4096, "owner")
BASE = {"task_name": "squares", "image": "reg:5000/squares:1", "generation": "1-a"}


def wanted(node: NodeFacts = NODE, settings: dict[str, object] | None = None, **fields: object) -> Wanted:
    values = {"server_url": "http://hub:8080", "token": "t", **(settings or {})}
    return want(TaskConfig.model_validate({**BASE, **fields}), node, "n1", Settings.model_validate(values))


def test_one_slot_a_cpu_each_pinned_to_its_own() -> None:
    slots = wanted().slots
    assert [slot.cpu for slot in slots] == [0, 1, 2, 3]
    assert [slot.name for slot in slots] == [f"idm-squares-n1-{i}" for i in range(4)]
    assert {slot.memory_mb for slot in slots} == {1024}


@pytest.mark.parametrize(
    ("settings", "fields", "count"),
    [
        ({"parallelism": 2}, {}, 2),
        ({}, {"parallelism": 1}, 1),
        ({"parallelism": 2}, {"parallelism": 3}, 2),
        ({"container_memory": 2048}, {}, 2),
        ({"max_container_memory": 4096}, {"memory": 1500}, 2),
    ],
)
def test_the_smallest_number_wins(settings: dict[str, object], fields: dict[str, object], count: int) -> None:
    result = wanted(settings=settings, **fields)  # type: ignore[arg-type] # test data
    assert len(result.slots) == count


def test_too_little_memory_is_idle_with_the_reason() -> None:
    result = wanted(NodeFacts((0,), 1400, "o"), {"container_memory": 4096})
    assert result.slots == ()
    assert result.reason == Reason(LITTLE_MEMORY, "needs 4096 MB a container, the node has 1400 MB")


def test_a_task_may_not_ask_for_more_memory_than_the_node_allows() -> None:
    assert wanted(memory=1024).slots
    text = "needs 1025 MB a container, the node allows 1024 MB"
    assert wanted(memory=1025).reason == Reason(LITTLE_MEMORY, text)


def test_more_containers_than_cpus_share_them_in_turn_with_a_warning() -> None:
    result = wanted(settings={"parallelism": 6, "container_memory": 64})
    assert [slot.cpu for slot in result.slots] == [0, 1, 2, 3, 0, 1]
    assert result.warning == "6 containers share 4 CPUs"


def test_the_task_decides_the_stop_timeout_up_to_the_nodes_most() -> None:
    assert wanted().slots[0].stop_timeout == 30
    assert wanted(stop_timeout=100).slots[0].stop_timeout == 100
    assert wanted(stop_timeout=1000).slots[0].stop_timeout == 600


def test_the_environment_is_the_contracts_and_unset_stays_unset() -> None:
    env = wanted(input_redis="redis://r", input_queue="in", output_queue="", env={"A": "b=c"}).slots[2].env
    assert env == {
        "TASK_NAME": "squares",
        "NODE_ID": "n1",
        "INSTANCE_ID": "2",
        "INPUT_REDIS_URL": "redis://r",
        "INPUT_QUEUE": "in",
        "A": "b=c",
    }


def test_the_digest_changes_with_all_that_decides_the_run_and_with_nothing_else() -> None:
    base = wanted().slots[0].digest
    assert wanted().slots[0].digest == base
    assert wanted(stop_timeout=99).slots[0].digest == base
    changes = [
        {"generation": "2-b"},
        {"image": "other:1"},
        {"env": {"A": "1"}},
        {"command": ["x"]},
        {"memory": 512},
        {"input_queue": "in"},
    ]
    digests = {wanted(**change).slots[0].digest for change in changes}  # type: ignore[arg-type] # test data
    assert len(digests | {base}) == len(changes) + 1


def test_without_a_generation_the_whole_task_stands_for_it() -> None:
    one = wanted(generation=None)
    assert one.generation is None
    assert one.slots[0].digest == wanted(generation=None).slots[0].digest
    assert one.key != wanted(generation=None, output_queue="out").key


def test_labels_hold_no_secret() -> None:
    slot = wanted(input_redis="redis://:s3cret@r", env={"KEY": "s3cret"}).slots[0]
    assert "s3cret" not in repr(slot.labels("owner"))


@pytest.mark.parametrize("bad", ["-v/:/host", "", "a b", "x\ny"])
def test_an_image_that_would_be_an_option_is_refused(bad: str) -> None:
    with pytest.raises(ValueError, match="image"):
        wanted(image=bad)


@pytest.mark.parametrize("env", [{"A": "x\ny"}, {"A=B": "x"}, {"": "x"}, {"TASK_NAME": "x"}, {"A": "\0"}])
def test_an_environment_that_would_break_its_file_is_refused(env: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="env"):
        wanted(env=env)
