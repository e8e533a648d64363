"""A store of each kind, for every test of the contract."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hub.store import Store
from tests.contract.store_kinds import KINDS, StoreKind


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
async def kind(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[StoreKind]:
    made: StoreKind = request.param(tmp_path)
    yield made
    await made.end()


@pytest.fixture
async def store(kind: StoreKind) -> Store:
    return await kind.open()
