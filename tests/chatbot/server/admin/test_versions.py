"""Versions over HTTP: the evidence, promotion, override and rollback."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from chatbot.bootstrap import artifacts_dir
from chatbot.services import Services
from tests.chatbot.versions import make_version

BASE = "base-smollm2-135m"


@pytest.fixture
def artifacts(services: Services) -> Path:
    return artifacts_dir(services.settings)


def _register(services: Services, artifacts: Path, name: str, **numbers: Any) -> Path:
    directory = make_version(artifacts, name, **numbers)
    services.versions.register(directory)
    return directory


async def _promote(http: httpx.AsyncClient, name: str, **body: Any) -> httpx.Response:
    return await http.post(f"/versions/{name}/promote", json=body)


async def test_versions_are_listed_with_their_evidence(
    services: Services, artifacts: Path, agent: httpx.AsyncClient
) -> None:
    _register(services, artifacts, "v1", perplexity=1.8)
    data = (await agent.get("/versions")).json()
    assert data["live"] == BASE
    versions = {item["id"]: item for item in data["items"]}
    assert versions["v1"]["metrics"]["perplexity"] == 1.8
    assert versions["v1"]["decision"] == {"passed": True, "reasons": []}
    assert not versions[BASE]["decision"]["passed"]


async def test_one_version_comes_with_manifest_report_and_history(
    services: Services, artifacts: Path, agent: httpx.AsyncClient, admin: httpx.AsyncClient
) -> None:
    _register(services, artifacts, "v1")
    await _promote(admin, "v1", reason="good")
    data = (await agent.get("/versions/v1")).json()
    assert data["manifest"]["settings"] == {"rank": 16}
    assert data["report"]["models"]["candidate"]["stop_rate"] == 1.0
    assert [(c["kind"], c["actor"], c["previous_id"]) for c in data["history"]] == [
        ("promote", "admin", BASE)
    ]
    base = (await agent.get(f"/versions/{BASE}")).json()
    assert base["report"] is None
    assert [c["kind"] for c in base["history"]] == ["promote", "initial"]


async def test_the_report_page_cannot_act(
    services: Services, artifacts: Path, agent: httpx.AsyncClient
) -> None:
    _register(services, artifacts, "v1")
    page = await agent.get("/versions/v1/report.html")
    assert page.text.endswith("<title>v1</title>")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "sandbox" in policy
    assert "script-src" not in policy


async def test_unknown_versions_are_not_found(
    agent: httpx.AsyncClient, admin: httpx.AsyncClient
) -> None:
    for path in ("/versions/none", "/versions/none/report.html", f"/versions/{BASE}/report.html"):
        assert (await agent.get(path)).status_code == 404
    assert (await _promote(admin, "none")).status_code == 404


async def test_promoting_makes_a_version_live(
    services: Services, artifacts: Path, admin: httpx.AsyncClient
) -> None:
    _register(services, artifacts, "v1")
    answer = await _promote(admin, "v1", reason="better")
    assert answer.status_code == 200
    data = answer.json()
    assert (data["state"], data["promoted_by"], data["reason"]) == ("live", "admin", "better")
    assert services.versions.live().id == "v1"


async def test_a_refusal_gives_its_reasons_and_an_override_needs_one(
    services: Services, artifacts: Path, admin: httpx.AsyncClient
) -> None:
    _register(services, artifacts, "v1", stop_rate=0.2)
    refused = await _promote(admin, "v1", reason="please")
    assert refused.status_code == 409
    error = refused.json()["error"]
    assert error["code"] == "promotion_refused"
    assert "stop rate" in error["reasons"][0]
    unreasoned = await _promote(admin, "v1", override=True)
    assert unreasoned.status_code == 422
    assert unreasoned.json()["error"]["code"] == "refused"
    assert services.versions.live().id == BASE
    done = await _promote(admin, "v1", override=True, reason="the demo is tomorrow")
    assert done.json()["state"] == "live"


async def test_a_corrupt_version_is_named_and_not_promoted(
    services: Services, artifacts: Path, admin: httpx.AsyncClient
) -> None:
    directory = _register(services, artifacts, "v1")
    (directory / "adapter" / "adapter_model.safetensors").write_bytes(b"x")
    answer = await _promote(admin, "v1")
    assert answer.status_code == 500
    error = answer.json()["error"]
    assert error["code"] == "version_corrupt"
    assert "adapter_model.safetensors" in error["message"]
    assert services.versions.live().id == BASE


async def test_a_version_whose_report_is_gone_is_still_listed(
    services: Services, artifacts: Path, agent: httpx.AsyncClient
) -> None:
    directory = _register(services, artifacts, "v1")
    (directory / "report.json").unlink()
    items = (await agent.get("/versions")).json()["items"]
    (item,) = [item for item in items if item["id"] == "v1"]
    assert "cannot be read" in item["decision"]["reasons"][0]
    assert (await agent.get("/versions/v1")).json()["report"] is None


async def test_the_list_says_what_a_rollback_would_make_live(
    services: Services, artifacts: Path, admin: httpx.AsyncClient
) -> None:
    _register(services, artifacts, "v1")
    assert (await admin.get("/versions")).json()["rollback_to"] is None
    await _promote(admin, "v1", reason="good")
    assert (await admin.get("/versions")).json()["rollback_to"] == BASE
    await admin.post("/versions/rollback", json={"reason": "rude"})
    assert (await admin.get("/versions")).json()["rollback_to"] is None


async def test_rolling_back(services: Services, artifacts: Path, admin: httpx.AsyncClient) -> None:
    _register(services, artifacts, "v1")
    await _promote(admin, "v1")
    answer = await admin.post("/versions/rollback", json={"reason": "complaints"})
    assert (answer.json()["id"], answer.json()["reason"]) == (BASE, "complaints")
    again = await admin.post("/versions/rollback", json={"reason": ""})
    assert again.status_code == 409
    assert again.json()["error"]["code"] == "conflict"
