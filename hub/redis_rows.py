"""The state as Redis holds it, made into what operations look at, and their changes made into entries.

An entry says what it rests on and what it writes; `redis_script.WRITE` does one only if all it rests on is
still so. Presence is not in a node's record: who is Online is a sorted set, which a sweep empties by itself.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from hub import codec, registry
from hub.access import Access, SigningKey, TokenRecord
from hub.registry import Live, Node, Presence
from hub.state import Change, Mark, View
from hub.tasklist import Task, TaskList

Entry = dict[str, Any]

DAMAGED = (ValueError, TypeError, KeyError, AttributeError, IndexError)
"""What reading a value raises that no GridCore wrote."""

_NUMBER = re.compile(r"\d{1,18}", re.ASCII)


@dataclass(slots=True)
class Known:
    """What everybody looks at, and its versions: opaque but for the number before the dot, which grows."""

    tasks: TaskList = field(default_factory=lambda: TaskList(revision=""))
    list_version: str = ""
    access: Access = field(default_factory=Access)
    access_version: str = ""


@dataclass(slots=True)
class Row:
    """A node, and its record as the text that Redis has."""

    record: str
    node: Node


@dataclass(slots=True)
class Snapshot:
    """A View of what was read for some operations, with the texts that it has in Redis."""

    known: Known
    rows: dict[str, Row]
    tokens: dict[str, str]
    marks: dict[str, str]
    damaged: dict[str, tuple[str, Presence]] = field(default_factory=dict)
    """Nodes of which nothing can be read, as if there were none: what Redis has, and where they stand."""

    @property
    def tasks(self) -> TaskList:
        return self.known.tasks

    @property
    def keys(self) -> Mapping[str, SigningKey]:
        return self.known.access.keys

    def node(self, node_id: str) -> Node | None:
        row = self.rows.get(node_id)
        return row.node if row else None

    def token(self, token_id: str) -> TokenRecord | None:
        text = self.tokens.get(token_id)
        return codec.load_token(json.loads(text)) if text else None

    def mark(self, name: str) -> Mark | None:
        text = self.marks.get(name)
        return dict(json.loads(text)) if text else None


class Looking:
    """A View that notes what is looked at."""

    def __init__(self, view: View) -> None:
        self._view = view
        self.at_tasks = False
        self.at_keys = False
        self.at_nodes: set[str] = set()
        self.at_tokens: set[str] = set()
        self.at_marks: set[str] = set()

    @property
    def tasks(self) -> TaskList:
        self.at_tasks = True
        return self._view.tasks

    @property
    def keys(self) -> Mapping[str, SigningKey]:
        self.at_keys = True
        return self._view.keys

    def node(self, node_id: str) -> Node | None:
        self.at_nodes.add(node_id)
        return self._view.node(node_id)

    def token(self, token_id: str) -> TokenRecord | None:
        self.at_tokens.add(token_id)
        return self._view.token(token_id)

    def mark(self, name: str) -> Mark | None:
        self.at_marks.add(name)
        return self._view.mark(name)


class Entries:
    """Makes entries of the changes that are decided one upon the other, before any of them is written."""

    def __init__(self, snapshot: Snapshot) -> None:
        known = snapshot.known
        self.tasks, self.list_version = known.tasks, known.list_version
        self.access_version = known.access_version
        self._nodes: dict[str, tuple[str, Node | None]] = {
            node_id: (row.record, row.node) for node_id, row in snapshot.rows.items()
        }
        self._nodes |= {node_id: (record, None) for node_id, (record, _) in snapshot.damaged.items()}
        self._damaged = {node_id: presence for node_id, (_, presence) in snapshot.damaged.items()}
        self._kept = {"tokens": dict(snapshot.tokens), "marks": dict(snapshot.marks)}

    def make(self, looked: Looking, change: Change, wake: str | None) -> Entry:
        """The entry of a change; those after it rest on it."""
        entry = {**self._conditions(looked, change), "grows": self._grows(change)}
        if change.tasks is not None:
            entry |= self._put_list(change.tasks)
        if _concerns_access(change):
            self.access_version = entry["new_access"] = next_version(self.access_version)
        entry |= {
            "put_nodes": [self._put_node(node_id, node) for node_id, node in change.nodes.items()],
            "put_kept": [
                *(self._put_token(token_id, token) for token_id, token in change.tokens.items()),
                *(self._put_kept("marks", name, _dump_mark(mark)) for name, mark in change.marks.items()),
                *(_kept("keys", key_id, _dump_key(key)) for key_id, key in change.keys.items()),
            ],
            "events": [
                {"text": json.dumps(codec.dump_event(event)), "ms": int(event.time * 1000)}
                for event in change.events
            ],
        }
        if wake is not None:
            entry["wake"] = wake
        return entry

    def _grows(self, change: Change) -> bool:
        """Whether there is more to keep after it: a definition, node, token or key that was not there."""
        kept = {task.name: task.definition for task in self.tasks.tasks}
        listed = change.tasks.tasks if change.tasks is not None else ()
        return (
            any(kept.get(task.name) != task.definition for task in listed)
            or any(node and node_id not in self._nodes for node_id, node in change.nodes.items())
            or any(token and not self._kept["tokens"].get(name) for name, token in change.tokens.items())
            or any(key is not None for key in change.keys.values())
        )

    def _conditions(self, looked: Looking, change: Change) -> Entry:
        entry: Entry = {
            "nodes": [self._node_now(node_id) for node_id in looked.at_nodes],
            "kept": [
                *(self._kept_now("tokens", token_id) for token_id in looked.at_tokens),
                *(self._kept_now("marks", name) for name in looked.at_marks),
            ],
        }
        if looked.at_tasks or change.tasks is not None:
            entry["list"] = self.list_version
        if looked.at_keys or _concerns_access(change):
            entry["access"] = self.access_version
        return entry

    def _node_now(self, node_id: str) -> Entry:
        record, node = self._nodes.get(node_id, ("", None))
        presence = node.record.presence if node else self._damaged.get(node_id, Presence.OFFLINE)
        return {"id": node_id, "was": record, "presence": presence}

    def _put_list(self, tasks: TaskList) -> Entry:
        before, self.tasks = self.tasks, tasks
        self.list_version = next_version(self.list_version)
        kept = {task.name: task for task in before.tasks}
        names = {task.name for task in tasks.tasks}
        return {
            "head": json.dumps({**codec.dump_head(tasks), **order_of(tasks)}),
            "new_list": self.list_version,
            "put_tasks": {
                task.name: json.dumps(codec.dump_task(replace(task, revision="")))
                for task in tasks.tasks
                if kept.get(task.name) != task
            },
            "drop_tasks": list(kept.keys() - names),
        }

    def _put_node(self, node_id: str, node: Node | None) -> Entry:
        text, before = self._nodes.pop(node_id, ("", None))
        if node is None:
            return {"id": node_id, "drop": True}
        entry: Entry = {"id": node_id, "presence": node.record.presence}
        if before is None or before.record is not node.record:
            # Presence stands elsewhere; a record that differs in nothing else is the same text.
            text = json.dumps(codec.dump_record(replace(node.record, presence=Presence.ONLINE)))
            entry["record"] = text
        if before is None or not _says_the_same(before.live, node.live):
            entry["live"] = codec.live_text(node.live)
        if before is None or before.live.heard != node.live.heard or not before.is_online:
            entry["heard"] = node.live.heard
        if before is None or before.live.last_seen != node.live.last_seen:
            entry["seen"] = node.live.last_seen
        is_new_order = registry.wants_nudge(node) and "record" in entry
        if is_new_order or (
            before is not None and registry.wants_nudge(before) and not registry.wants_nudge(node)
        ):
            entry["nudge"] = is_new_order
        self._nodes[node_id] = text, node
        return entry

    def _kept_now(self, which: str, name: str) -> Entry:
        return {"hash": which, "id": name, "was": self._kept[which].get(name, "")}

    def _put_token(self, token_id: str, token: TokenRecord | None) -> Entry:
        text = json.dumps(codec.dump_token(token)) if token else None
        is_revoked = token is not None and token.revoked is not None
        return self._put_kept("tokens", token_id, text) | {"revoked": is_revoked}

    def _put_kept(self, which: str, name: str, text: str | None) -> Entry:
        self._kept[which][name] = text or ""
        return _kept(which, name, text)


def next_version(version: str) -> str:
    """The version after this one, which nobody else makes."""
    return f"{number_of(version) + 1}.{secrets.token_hex(8)}"


def number_of(version: str) -> int:
    """Of two versions of the same, the later one has the greater number. What is no version has none: 0."""
    number = version.partition(".")[0]
    return int(number) if _NUMBER.fullmatch(number) else 0


def is_version(text: str) -> bool:
    """Whether it is one, or none yet."""
    return not text or bool(_NUMBER.fullmatch(text.partition(".")[0]))


def order_of(tasks: TaskList) -> dict[str, list[str]]:
    """The tasks' names and revisions, as the head has them. Not beside the tasks: what a hub of an earlier
    version writes is a whole head, which then lacks the revisions of what that hub may have changed."""
    return {
        "order": [task.name for task in tasks.tasks],
        "revisions": [task.revision for task in tasks.tasks],
    }


def read_list(head: str, version: str, texts: list[str], kept: dict[str, Task]) -> TaskList:
    """A task list of this version; `kept` holds tasks by their text, so that only new ones are read."""
    values = json.loads(head)
    tasks = {}
    for text in texts:
        task = kept.get(text) or codec.load_task(json.loads(text))
        tasks[task.name] = task
        kept[text] = task
    if len(kept) > 2 * len(texts) + 100:
        for text in kept.keys() - set(texts):
            del kept[text]
    revisions = values.get("revisions") or [""] * len(values["order"])
    named = zip(values["order"], revisions, strict=True)
    in_order = tuple(replace(tasks[name], revision=revision) for name, revision in named)
    return codec.load_list(values, in_order, version)


def read_rows(rows: list[list[Any]], known: Known, tokens: Any, marks: Any) -> Snapshot:
    """A View of these nodes, tokens and marks. A node that is damaged costs itself alone."""
    snapshot = Snapshot(known, {}, dict(tokens), dict(marks))
    for row in rows:
        node_id, record, _, presence, *_ = row
        try:
            snapshot.rows[node_id] = _read_row(row)
        except DAMAGED:
            snapshot.damaged[node_id] = record, Presence(presence)
    return snapshot


def _read_row(row: list[Any]) -> Row:
    _, record, live, presence, heard, seen, nudge = row
    loaded = replace(codec.load_record(json.loads(record)), presence=Presence(presence))
    reported = {**json.loads(live), "last_seen": float(seen)}
    return Row(record, Node(loaded, codec.load_live(reported, float(heard), nudged=not nudge)))


def read_access(keys: list[str], revoked: list[str]) -> Access:
    """What it takes to judge a token."""
    loaded = (codec.load_key(json.loads(text)) for text in keys)
    return Access({key.id: key for key in loaded}, frozenset(revoked))


def _says_the_same(before: Live, after: Live) -> bool:
    """Whether a node reported what it did before: nothing to write but when it was heard."""
    heard = replace(before, heard=after.heard, last_seen=after.last_seen, nudged=after.nudged)
    return heard == after


def _concerns_access(change: Change) -> bool:
    """Whether other tokens are good after it than before: not if one more was given out."""
    return bool(change.keys) or any(
        token is None or token.revoked is not None for token in change.tokens.values()
    )


def _kept(which: str, name: str, text: str | None) -> Entry:
    return {"hash": which, "id": name} if text is None else {"hash": which, "id": name, "text": text}


def _dump_key(key: SigningKey | None) -> str | None:
    return json.dumps(codec.dump_key(key)) if key else None


def _dump_mark(mark: Mark | None) -> str | None:
    return json.dumps(dict(mark)) if mark is not None else None
