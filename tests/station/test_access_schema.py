"""The API as its schema describes it, by requests that are made up: none may fail inside."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, given, seed, settings

from offnominal.station.app import create_app
from offnominal.station.settings import Settings
from offnominal.station.store.tables import Product
from tests.station.conftest import ADDRESS, log_in

EXAMPLES = 12
SCHEMA = "/v1/openapi.json"


@pytest.mark.slow
def test_no_request_fails_inside(tmp_path: Path) -> None:
    app = create_app(Settings(folder=tmp_path / "station", deadline=1.0))
    with TestClient(app, base_url=ADDRESS, raise_server_exceptions=False) as client:
        log_in(client, "ada", "admin")
        with app.state.station.database.writing() as session:
            session.add(Product(name="washer", created=datetime.now(UTC)))
        schema = schemathesis.openapi.from_dict(client.get(SCHEMA).json())
        found: list[str] = []
        count = 0
        for one in schema.get_all_operations():
            operation = one.ok()

            @seed(20)
            @settings(
                max_examples=EXAMPLES,
                deadline=None,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy())
            def play(case: Any) -> None:
                nonlocal count
                given_ = case.as_transport_kwargs(base_url=ADDRESS)
                given_.pop("cookies", None)
                headers = {
                    name: value
                    for name, value in dict(given_.pop("headers") or {}).items()
                    if name.lower() not in ("authorization", "cookie", "x-csrf-token")
                }
                answer = client.request(
                    given_.pop("method"), given_.pop("url"), headers=headers, **given_
                )
                count += 1
                # Full, or blind for want of a worker: what it says then is 503.
                if answer.status_code >= 500 and answer.status_code != 503:
                    found.append(f"{case.method} {case.formatted_path}: {answer.text[:200]}")

            play()
    assert count > 50
    assert sorted(set(found)) == []
