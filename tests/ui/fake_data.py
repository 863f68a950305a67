"""The fake server's part of people, holds, exports and retention."""

from typing import Any

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse

from tests.ui.fake_api import NOW, Json, Refused, World

INSTALLATION = {"idle_close_hours": 168, "log_days": 30, "record_days": 0}


def add_data_routes(app: FastAPI, world: World) -> None:
    _retention(app, world)
    _people(app, world)
    _holds(app, world)
    _exports(app, world)


def in_force(world: World, visitor: str) -> Json | None:
    held = [h for h in world.holds if h["visitor"] == visitor and h["lifted_at"] is None]
    return held[0] if held else None


def _retention(app: FastAPI, world: World) -> None:
    def answer(name: str) -> Json:
        own = world.retention.get(name, dict.fromkeys(INSTALLATION))
        given = {key: value for key, value in own.items() if value is not None}
        effective = INSTALLATION | given
        return {"site": name, "own": own, "effective": effective, "due": 3, "held": 1}

    @app.get("/v1/admin/sites/{name}/retention")
    async def retention(name: str) -> Json:
        return answer(name)

    @app.put("/v1/admin/sites/{name}/retention")
    async def save(name: str, body: Json) -> Json:
        world.retention[name] = body
        return answer(name)


def _people(app: FastAPI, world: World) -> None:
    def of(visitor: str) -> list[Json]:
        return [c for c in world.conversations if c["visitor"] == visitor]

    @app.post("/v1/admin/people/find")
    async def find(body: Json) -> Json:
        visitor = body.get("visitor") or "visitor-1"
        found = of(visitor)
        if not found and "visitor" in body:
            raise Refused(404, "not_found", f"there is nothing of a visitor {visitor}")
        saw = {"version_id": "v2", "state": "live", "conversations": 2}
        unsure = {"version_id": "v1", "state": "retired", "conversations": None}
        return {
            "site": "demo", "visitor": visitor, "known": "subject" in body,
            "conversations": [c["id"] for c in found], "messages": 2 * len(found),
            "first_at": NOW, "last_at": NOW, "hold": in_force(world, visitor),
            "versions": [saw, unsure], "erasures": [],
        }  # fmt: skip

    @app.post("/v1/admin/people/erase")
    async def erase(body: Json) -> Json:
        visitor = body["visitor"]
        assert body["confirm"] == visitor
        if hold := in_force(world, visitor):
            raise Refused(409, "held", "a legal hold forbids it", hold_id=hold["id"])
        receipt = {
            "id": f"erasure-{len(world.erasures)}", "site": body["site"], "visitor": visitor,
            "state": "done", "requested_by": "ada", "reason": body["reason"],
            "requested_at": NOW, "completed_at": NOW,
            "conversations": [c["id"] for c in of(visitor)], "events": 60, "reviews": 1,
            "dataset_dialogues": 2, "runs": ["run-1"], "cancelled_runs": [],
            "exports": ["export-1"],
            "versions": [{"version_id": "v2", "state": "live", "conversations": 2}],
        }  # fmt: skip
        world.conversations = [c for c in world.conversations if c["visitor"] != visitor]
        world.erasures.insert(0, receipt)
        return receipt

    @app.get("/v1/admin/erasures")
    async def erasures() -> Json:
        kept = ("id", "site", "visitor", "state", "requested_by", "reason", "requested_at",
                "completed_at")  # fmt: skip
        return {"items": [{name: one[name] for name in kept} for one in world.erasures]}

    @app.get("/v1/admin/erasures/{name}")
    async def erasure(name: str) -> Json:
        return next(one for one in world.erasures if one["id"] == name)


def _holds(app: FastAPI, world: World) -> None:
    @app.get("/v1/admin/holds")
    async def holds() -> Json:
        return {"items": world.holds}

    @app.post("/v1/admin/holds")
    async def place(body: Json) -> JSONResponse:
        hold = {
            "id": f"hold-{len(world.holds)}", "site": body["site"], "visitor": body["visitor"],
            "reason": body["reason"], "placed_by": "ada", "placed_at": NOW, "lifted_by": "",
            "lifted_at": None, "lift_reason": "",
        }  # fmt: skip
        world.holds.insert(0, hold)
        return JSONResponse(hold, 201)

    @app.post("/v1/admin/holds/{name}/lift")
    async def lift(name: str, body: Json) -> Json:
        hold = next(one for one in world.holds if one["id"] == name)
        hold.update(lifted_by="ada", lifted_at=NOW, lift_reason=body["reason"])
        return hold


def _exports(app: FastAPI, world: World) -> None:
    def one(name: str) -> Json:
        return next(export for export in world.exports if export["id"] == name)

    @app.get("/v1/admin/exports")
    async def exports() -> Json:
        return {"items": world.exports}

    @app.post("/v1/admin/exports")
    async def start(body: Json) -> JSONResponse:
        made: dict[str, Any] = {
            "id": f"export-{len(world.exports)}", "state": "ready", "format": body["format"],
            "redact": body["redact"], "filter": body["filter"], "requested_by": "ada",
            "conversations": 30, "total": 30, "size": 12_345, "error": "", "created_at": NOW,
            "expires_at": NOW + 3_600_000,
        }  # fmt: skip
        world.exports.insert(0, made)
        return JSONResponse(made, 201)

    @app.get("/v1/admin/exports/{name}/file")
    async def file(name: str) -> Response:
        return Response(f"{one(name)['id']}\r\n", media_type="text/csv")

    @app.delete("/v1/admin/exports/{name}")
    async def delete(name: str) -> Json:
        one(name)["state"] = "deleted"
        return one(name)
