"""Keys of the OpenAI-compatible API: made once, kept as hashes, revoked, in the audit record."""

from pathlib import Path

import httpx
import pytest
from sqlalchemy import select
from typer.testing import CliRunner

from chatbot.cli import build
from chatbot.errors import InputError, NotFound
from chatbot.record.database import Database, sqlite_url
from chatbot.record.tables import ApiKey, Audit
from chatbot.server.api_keys import create_key, find_key, list_keys, revoke_key
from chatbot.server.sites import ensure_demo_site
from tests.chatbot.server.room import Running


def _audit(database: Database) -> list[tuple[str, str, str]]:
    with database.session() as session:
        rows = session.scalars(select(Audit).order_by(Audit.id)).all()
        return [(row.actor, row.action, row.subject) for row in rows]


def test_a_key_is_kept_as_its_hash(database: Database) -> None:
    row, key = create_key(database, "ada", "reports")
    assert len(key) > 40
    with database.session() as session:
        kept = session.get(ApiKey, row.id)
        assert kept is not None
        assert key not in str(vars(kept))
        assert key.startswith(kept.hint)
    found = find_key(database, key)
    assert found is not None
    assert (found.id, found.name) == (row.id, "reports")
    for wrong in ("", key[:-1], key + "x", row.digest):
        assert find_key(database, wrong) is None


def test_a_revoked_key_is_out_and_stays_on_the_list(database: Database) -> None:
    row, key = create_key(database, "ada", "reports")
    revoke_key(database, "ben", row.id)
    revoke_key(database, "ben", row.id)
    assert find_key(database, key) is None
    (listed,) = list_keys(database)
    assert listed.revoked_at is not None
    assert _audit(database) == [
        ("ada", "key.create", row.id),
        ("ben", "key.revoke", row.id),
    ]
    with pytest.raises(NotFound):
        revoke_key(database, "ben", "key-none")


def test_a_key_may_be_for_the_calls_of_one_site(database: Database) -> None:
    ensure_demo_site(database)
    row, key = create_key(database, "ada", "telephony", "demo")
    found = find_key(database, key)
    assert found is not None
    assert (found.id, found.site) == (row.id, "demo")
    with pytest.raises(InputError, match="no site 'shop'"):
        create_key(database, "ada", "telephony", "shop")


async def test_administrators_make_and_revoke_keys(server: Running, anna: str) -> None:
    token = server.services.admin_token
    headers = {"Authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(base_url=f"{server.url}/v1/admin", headers=headers) as http:
        made = await http.post("/keys", json={"name": "reports"})
        assert made.status_code == 201
        answer = made.json()
        assert find_key(server.services.database, answer["key"]) is not None
        (listed,) = (await http.get("/keys")).json()["items"]
        assert "key" not in listed
        assert listed["name"] == "reports"
        assert (await http.delete(f"/keys/{answer['id']}")).status_code == 204
        assert (await http.delete("/keys/none")).status_code == 404
        assert (await http.post("/keys", json={"name": ""})).status_code == 422
        for method in ("GET", "POST"):
            refused = await http.request(
                method, "/keys", json={"name": "x"}, headers={"Authorization": f"Bearer {anna}"}
            )
            assert refused.status_code == 403


def test_the_command(tmp_path: Path) -> None:
    run, app = CliRunner().invoke, build()
    place = ["--data-dir", str(tmp_path)]
    made = run(app, ["keys", "create", "reports", *place])
    assert made.exit_code == 0, made.output
    key = made.stdout.strip().splitlines()[-1]
    database = Database(sqlite_url(tmp_path))
    row = find_key(database, key)
    assert row is not None
    listed = run(app, ["keys", "list", *place])
    assert row.id in listed.output
    assert key not in listed.output
    assert run(app, ["keys", "revoke", row.id, *place]).exit_code == 0
    assert find_key(database, key) is None
    database.close()
