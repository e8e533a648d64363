"""The hub's web application."""

from __future__ import annotations

from typing import Any, NamedTuple

from quart import Quart, Response, request
from quart_schema import HttpSecurityScheme, Info, QuartSchema, security_scheme, tag

from gridcore import __version__
from hub.bearer import Bearers
from hub.description import Description, document_text
from hub.door import Door, actor
from hub.failures import Failures
from hub.gridnode import gridnode_api
from hub.headers import Headers
from hub.insight import Insight
from hub.insight_api import insight_api
from hub.logdesk import Desk, LogDesk
from hub.measured import Measured
from hub.news import News
from hub.node_calls import NodeCalls
from hub.nodes_api import nodes_api
from hub.operators import refuse_vain_guard
from hub.pace import Pace
from hub.problems import answer_with_problems
from hub.refusals import Refusals
from hub.refused_acts import tell_refused_acts
from hub.roles import Rights
from hub.settings import HubSettings
from hub.store import Store
from hub.tallies import Requests
from hub.tasks_api import tasks_api
from hub.tokens_api import tokens_api
from hub.trail import trail_api
from hub.waiters import Waiters


class Application(NamedTuple):
    """The application, and the parts of it that answer nodes on the fast way too."""

    quart: Quart
    calls: NodeCalls
    bearers: Bearers
    rights: Rights
    requests: Requests


def create_app(settings: HubSettings, store: Store, *parts: Any, **named: Any) -> Quart:
    """The application alone; arguments are those of `build_app`."""
    return build_app(settings, store, *parts, **named).quart


def build_app(
    settings: HubSettings,
    store: Store,
    waiters: Waiters | None = None,
    desk: Desk | None = None,
    news: News | None = None,
    refusals: Refusals | None = None,
    failures: Failures | None = None,
    insight: Insight | None = None,
    pace: Pace | None = None,
) -> Application:
    """The application over an open store. Close `waiters` to end all held requests."""
    refusals = Refusals() if refusals is None else refusals
    news = News() if news is None else news
    waiters = Waiters() if waiters is None else waiters
    desk = LogDesk(waiters) if desk is None else desk
    failures = Failures(waiters.pause) if failures is None else failures
    insight = Insight(store, waiters) if insight is None else insight
    store.listen(insight.wake)

    app = Quart("computehub", static_folder=None)
    # A path is right or it is not: no redirects from `/api/tasks/` or `//api/tasks`.
    app.url_map.merge_slashes = False
    answer_with_problems(app, forbidden=lambda: refusals.note(actor(request), 403))
    tell_refused_acts(app, store)

    @app.before_request
    async def refuse_vain_guards() -> None:
        refuse_vain_guard(request)

    QuartSchema(
        app,
        redoc_ui_path=None,
        scalar_ui_path=None,
        swagger_ui_path=None,
        info=Info(title="ComputeHub", version=__version__),
        security_schemes={"token": HttpSecurityScheme(scheme="bearer")},
        security=[{"token": []}],
        conversion_preference="pydantic",
        openapi_provider_class=Description,
    )

    @app.get("/health")
    @tag(["health"])
    @security_scheme([])
    @document_text("text/plain", "OK: the hub is alive.")
    async def show_health() -> Response:
        """Whether the hub is alive; needs no token."""
        return Response("OK", content_type="text/plain; charset=utf-8")

    app.register_blueprint(tasks_api(store))
    app.register_blueprint(nodes_api(store, desk))
    calls = NodeCalls(
        store,
        waiters,
        desk,
        news,
        prefetch=settings.prefetch,
        token_ttl=settings.node_token_ttl,
        took_up=insight.took_up,
        pace=Pace() if pace is None else pace,
    )
    gridnode = gridnode_api(calls, desk, token_ttl=settings.node_token_ttl)
    app.register_blueprint(gridnode)
    app.register_blueprint(tokens_api(store))
    app.register_blueprint(insight_api(store, insight))
    bearers = Bearers(settings, store)
    app.register_blueprint(trail_api(store, waiters, bearers))
    rights = Rights(app.url_map)
    door = Door(app.asgi_app, bearers, rights, failures, refusals, waiters)  # type: ignore[arg-type]  # Quart's own types of ASGI
    measured = Measured(Headers(door, settings.cors_origins), insight.metrics.requests)
    app.asgi_app = measured  # type: ignore[method-assign, assignment]  # how Quart wants a layer put around it
    return Application(app, calls, bearers, rights, insight.metrics.requests)
