"""Who may do what: one table for all routes, and whom a node's token may speak for. Pure.

A path that stands in no rule is for admins and the shared token only, so a route that somebody forgets to put
here is closed and not open. Tasks' real secrets are in the answers under `/gridnode`: no operator gets those.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from werkzeug.exceptions import HTTPException, MethodNotAllowed
from werkzeug.routing import Map

from hub.access import Role
from hub.errors import Forbidden
from hub.events import Actor

OPEN_PATHS = frozenset({"/health"})
"""What needs no token at all."""

READ = frozenset({Role.VIEWER, Role.OPERATOR, Role.ADMIN})
OPERATE = frozenset({Role.OPERATOR, Role.ADMIN})
ADMINISTER = frozenset({Role.ADMIN})
COMPUTE = frozenset({Role.NODE})
ENTER = frozenset({Role.NODE, Role.JOIN})

RIGHTS: Mapping[tuple[str, str], frozenset[Role]] = {
    ("GET", "/openapi.json"): READ,
    ("GET", "/metrics"): READ,
    ("GET", "/api/events"): READ,
    ("GET", "/api/problems"): READ,
    # Tasks
    ("GET", "/api/tasks"): READ,
    ("POST", "/api/tasks"): OPERATE,
    ("POST", "/api/tasks/next"): OPERATE,
    ("POST", "/api/tasks/finish"): OPERATE,
    ("POST", "/api/tasks/hold"): OPERATE,
    ("POST", "/api/tasks/release"): OPERATE,
    ("POST", "/api/tasks/promote"): OPERATE,
    ("POST", "/api/tasks/abort"): OPERATE,
    ("GET", "/api/tasks/{}"): READ,
    ("PATCH", "/api/tasks/{}"): OPERATE,
    ("DELETE", "/api/tasks/{}"): OPERATE,
    ("GET", "/api/tasks/{}/progress"): READ,
    ("POST", "/api/tasks/{}/requeue"): OPERATE,
    ("POST", "/api/tasks/{}/move"): OPERATE,
    ("POST", "/api/tasks/{}/revert"): OPERATE,
    # Nodes
    ("GET", "/api/nodes"): READ,
    ("POST", "/api/nodes/drain"): OPERATE,
    ("POST", "/api/nodes/resume"): OPERATE,
    ("GET", "/api/nodes/{}"): READ,
    ("DELETE", "/api/nodes/{}"): ADMINISTER,
    ("POST", "/api/nodes/{}/stop"): OPERATE,
    ("POST", "/api/nodes/{}/drain"): OPERATE,
    ("POST", "/api/nodes/{}/resume"): OPERATE,
    # It makes a node work, and shows what only the task's authors wrote.
    ("GET", "/api/nodes/{}/logs"): OPERATE,
    # Tokens
    ("GET", "/api/tokens"): ADMINISTER,
    ("POST", "/api/tokens"): ADMINISTER,
    ("DELETE", "/api/tokens/{}"): ADMINISTER,
    ("GET", "/api/keys"): ADMINISTER,
    ("POST", "/api/keys"): ADMINISTER,
    ("DELETE", "/api/keys/{}"): ADMINISTER,
    # What nodes say
    ("POST", "/gridnode/register"): ENTER,
    ("POST", "/gridnode/heartbeat"): COMPUTE,
    ("POST", "/gridnode/logs"): COMPUTE,
    ("GET", "/gridnode/task"): COMPUTE,
    ("POST", "/gridnode/deregister"): COMPUTE,
}
"""Method and rule, where `{}` is a part of the path that differs, to the roles that may."""

_VARIABLE = re.compile(r"<[^>]+>")


def plain(rule: str) -> str:
    """A rule of the application as the table has it."""
    return _VARIABLE.sub("{}", rule)


class Rights:
    """The table, asked with the paths of requests as the application itself will take them."""

    def __init__(self, url_map: Map) -> None:
        self._adapter = url_map.bind("hub")

    def allow(self, role: Role, method: str, path: str) -> bool:
        """Whether a token of this role may ask this."""
        method = "GET" if method == "HEAD" else method
        roles = RIGHTS.get((method, path))
        if roles is None:  # not one of the paths that are always the same
            roles = self._look(method, path)
        return role in roles

    def _look(self, method: str, path: str) -> frozenset[Role]:
        try:
            # As Quart does: it takes away what slashes there are before the path.
            rule, _ = self._adapter.match("/" + path.lstrip("/"), method, return_rule=True)
        except MethodNotAllowed:
            return frozenset(Role)  # nothing is done: the answer lists the methods, as /openapi.json does
        except HTTPException:
            return ADMINISTER
        known = plain(rule.rule)
        if method == "OPTIONS":
            return frozenset().union(*(roles for (_, other), roles in RIGHTS.items() if other == known))
        return RIGHTS.get((method, known), ADMINISTER)


def may_act_for(by: Actor, node_id: str) -> bool:
    """Whether this actor may speak for a node; its role has let it in already."""
    return by.grant is None or by.grant.node is None or by.grant.node == node_id


def insist_on(by: Actor, node_id: str) -> None:
    """Raises Forbidden unless this actor may speak for that node, whether there is such a node or not."""
    if not may_act_for(by, node_id):
        raise Forbidden
