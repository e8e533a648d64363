"""What nodes did, told some seconds later, as it is then."""

from __future__ import annotations

from hub.news import News
from tests.unit.hub.operated_hub import OperatedHub


def told(news: News) -> list[tuple[str, list[str]]]:
    return [(event.kind, event.detail["nodes"]) for event in news.take(1.0)]


def test_each_thing_is_told_once() -> None:
    news = News()
    news.back("a")
    news.failing("b", "why")
    news.recovered("c")
    assert told(news) == [("nodes-back", ["a"]), ("nodes-recovered", ["c"]), ("nodes-failing", ["b"])]
    assert told(news) == []
    news.recovered("b")
    assert told(news) == [("nodes-recovered", ["b"])]


def test_what_is_over_before_it_is_told_is_not_told() -> None:
    news = News()
    news.failing("a", "why")
    news.recovered("a")
    news.recovered("b")
    news.failing("b", "why")
    for node_id in "cd":
        news.back(node_id)
        news.failing(node_id, "why")
        news.left(node_id)
    assert told(news) == []


async def test_the_calls_of_nodes_tell_of_both_ends() -> None:
    news = News()
    hub = OperatedHub(news=news)
    await hub.join("a", "b", "c")
    for node_id in "abc":
        await hub.beat(node_id, "Error", reason="why")
    await hub.beat("b", "Running")
    await hub.do("POST", "/gridnode/deregister", {"node_id": "c"})
    assert told(news) == [("nodes-failing", ["a"])]
    await hub.beat("a", "Error", reason="why")
    assert told(news) == []
    await hub.beat("a", "Idle")
    assert told(news) == [("nodes-recovered", ["a"])]
