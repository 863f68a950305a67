"""The worker's drafts for agents, with a scripted model and real stores."""

import asyncio
import json
from collections.abc import Callable

from chatbot.assist.board import AssistBoard, AssistJob, DraftSet
from chatbot.conversation.events import ConversationId, VisitorId
from tests.chatbot.worker.conftest import LONG, Place

CID = ConversationId("c-1")
PAST = "Which order is it?"


async def _waiting(place: Place, text: str = "Where is my parcel?") -> int:
    """A visitor has asked for people and then something; its offset."""
    await place.log.create(CID, site="demo", visitor=VisitorId("v"))
    if (await place.log.read(CID)) == []:
        await _ask(place, "Hello")
        await place.log.change_status(CID, "waiting", reason="asked", actor="visitor")
    return await _ask(place, text)


async def _ask(place: Place, text: str) -> int:
    accepted = await place.log.append_message(
        CID, role="visitor", text=text, client_message_id=text, author="v"
    )
    return accepted.offset


async def _set(place: Place, fits: Callable[[DraftSet], bool]) -> DraftSet:
    board = AssistBoard(place.services.redis)
    async with asyncio.timeout(30):
        while True:
            found = await board.get(CID)
            if found is not None and fits(found):
                return found
            await asyncio.sleep(0.01)


async def test_the_models_draft_grows_and_is_completed(place: Place) -> None:
    place.version("v-tuned")
    upto = await _waiting(place)
    place.engine.hold_at = 60
    async with place.worker():
        await AssistBoard(place.services.redis).ask(AssistJob(CID, upto))
        await _set(place, lambda found: found.upto == upto)
        place.engine.go.set()
        whole = await _set(place, lambda found: found.complete)
    (draft,) = whole.drafts
    assert (draft.text, draft.source, draft.origin) == (LONG, "model", "v-tuned")
    assert (whole.version, whole.upto, draft.confidence) == ("v-tuned", upto, 0.5)
    (request,) = place.engine.requests
    assert request.adapter == "v-tuned"
    assert request.owner == CID  # served from what the bot's replies left in the cache
    assert request.shared_tokens
    assert place.engine.prompts[0].rstrip().endswith("Assistant:")
    assert "Where is my parcel?" in place.engine.prompts[0]
    assert not [e for e in await place.log.read(CID) if e.type == "reply.completed"]


async def test_what_the_version_learned_from_is_offered(place: Place) -> None:
    place.version("v-learned", run_id="run-1")
    run = place.services.settings.data_dir / "runs" / "run-1"
    run.mkdir(parents=True)
    dialogue = {
        "messages": [
            {"role": "user", "content": "Where is my parcel now?"},
            {"role": "assistant", "content": PAST, "weight": 1},
        ]
    }
    (run / "train.jsonl").write_text(json.dumps(dialogue) + "\n")
    upto = await _waiting(place)
    async with place.worker() as worker:
        await worker._assistant._memory.ready("v-learned")
        await AssistBoard(place.services.redis).ask(AssistJob(CID, upto))
        whole = await _set(place, lambda found: found.complete)
    assert [(draft.text, draft.source) for draft in whole.drafts] == [
        (PAST, "past"),
        (LONG, "model"),
    ]
    assert [(hint.kind, hint.text) for hint in whole.hints] == [("ask", PAST)]


async def test_a_question_that_is_answered_is_not_drafted_for(place: Place) -> None:
    first = await _waiting(place)
    await _ask(place, "and a second thing")
    board = AssistBoard(place.services.redis)
    await board.ask(AssistJob(CID, first))
    async with place.worker():
        second = await _ask(place, "and a third")
        await board.ask(AssistJob(CID, second))
        await _set(place, lambda found: found.complete)
    assert (await board.get(CID) or DraftSet("", 0, "")).upto == second
    assert len(place.engine.requests) == 1


async def test_a_draft_is_not_completed_when_the_conversation_moved_on(place: Place) -> None:
    upto = await _waiting(place)
    place.engine.hold_at = 30
    board = AssistBoard(place.services.redis)
    async with place.worker():
        await board.ask(AssistJob(CID, upto))
        async with asyncio.timeout(30):
            while not place.engine.running:  # noqa: ASYNC110 - the engine knows no event
                await asyncio.sleep(0.01)
        await place.log.change_status(CID, "closed", reason="done", actor="anna")
        await _ask(place, "hello again")  # reopens it with the bot: the draft is for nobody
        place.engine.go.set()
        async with asyncio.timeout(30):
            while len(place.engine.ended) < 2:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.01)
    found = await board.get(CID)
    assert found is not None
    assert not found.complete


async def test_no_drafts_where_they_are_switched_off(place: Place) -> None:
    upto = await _waiting(place)
    board = AssistBoard(place.services.redis)
    await board.ask(AssistJob(CID, upto))
    async with place.with_settings(assist_running=0).worker():
        await _ask(place, "more")
    assert await board.take(1) == AssistJob(CID, upto)
