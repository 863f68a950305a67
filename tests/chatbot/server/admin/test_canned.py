"""Canned replies in the record."""

from tests.chatbot.server.admin.conftest import Client


async def test_a_canned_reply_is_kept_changed_and_removed(client: Client) -> None:
    reviewer = client("reviewer")
    for text in ("Hello {{name}}", "Hello {{name}}, this is {{agent}}."):
        saved = await reviewer.put("/canned-replies/hello", json={"text": text})
        assert saved.status_code == 200, saved.text
    (item,) = (await client("agent").get("/canned-replies")).json()["items"]
    assert item["text"] == "Hello {{name}}, this is {{agent}}."
    assert (item["name"], item["updated_by"]) == ("hello", "reviewer")
    assert (await reviewer.delete("/canned-replies/hello")).status_code == 204
    assert (await reviewer.get("/canned-replies")).json() == {"items": []}
    missing = await reviewer.delete("/canned-replies/hello")
    assert missing.status_code == 404
    audit = (await client("admin").get("/audit")).json()["items"]
    assert {row["action"] for row in audit} >= {"canned.save", "canned.delete"}


async def test_what_cannot_be_a_canned_reply(client: Client) -> None:
    for name, text in (("Hello", "a"), ("a b", "a"), ("a" * 41, "a"), ("ok", "  "), ("ok", "\0")):
        refused = await client("reviewer").put(f"/canned-replies/{name}", json={"text": text})
        assert refused.status_code == 422, (name, text)
