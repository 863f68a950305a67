"""What the engine is taught to draft from, and what of a conversation it may share."""

from chatbot.review_data import approved_replies
from chatbot.worker.lessons import Lessons
from tests.chatbot.conversation.steps import ask, begin
from tests.chatbot.recorded import agent, record_conversation, reply, review, visitor
from tests.chatbot.worker.conftest import Place
from tests.chatbot.worker.test_worker import ended


def taught(place: Place) -> set[tuple[str, str, str | None]]:
    """(scope, text, conversation)"""
    decode = place.engine.tokenizer.decode
    return {(scope, decode(list(ids)), name) for scope, ids, name in place.engine.taught}


async def test_a_version_brings_its_common_replies_and_a_site_its_agents_words(
    place: Place,
) -> None:
    place.version("v-1", replies=["Hello, how can I help?", "Goodbye!"])
    cid = await begin(place.log)
    await place.log.change_status(cid, "human", reason="asked", actor="ada", agent="ada")
    await place.log.append_message(
        cid, role="agent", text="Ada here.", client_message_id="a1", author="ada"
    )
    await place.log.change_status(cid, "bot", reason="done", actor="ada")
    async with place.worker():
        await ask(place.log, cid, "my secret word")
        await ended(place, cid)
    assert taught(place) == {
        ("version v-1", "Hello, how can I help?", None),
        ("version v-1", "Goodbye!", None),
        ("site demo", "Ada here.", "c1"),
    }
    (request,) = place.engine.requests
    assert request.draft_scopes == ("site demo", "version v-1")


async def test_conversations_share_the_system_message_alone(place: Place) -> None:
    async with place.worker():
        for name in ("c1", "c2"):
            cid = await begin(place.log, name)
            await ask(place.log, cid, "the same question")
            await ended(place, cid)
    first, second = place.engine.requests
    assert (first.owner, second.owner) == ("c1", "c2")
    assert first.shared_tokens == second.shared_tokens
    shared = place.engine.tokenizer.decode(list(first.prompt_ids[: first.shared_tokens]))
    assert shared == f"System:\n{place.services.settings.system_prompt}\n"


async def test_what_staff_approved_is_taught_for_its_site(place: Place) -> None:
    database = place.services.database
    said = (visitor("Hi"), reply("Good."), visitor("?"), reply("Wrong."), agent("Ada."), reply("X"))
    record_conversation(database, "r1", *said, site="shop")
    record_conversation(database, "r2", *said, site="bank")
    record_conversation(database, "r3", *said, site="shop")  # nobody looked at it
    review(database, "r1", 2, "good")
    review(database, "r1", 4, "bad", "Right.")
    review(database, "r2", 2, "bad")
    assert [text for *_, text in approved_replies(database, 1)] == ["Ada."]
    lessons = Lessons(place.engine, database)
    await lessons.approved()
    wanted = {
        ("site shop", "Good.", "r1"),
        ("site shop", "Right.", "r1"),
        ("site shop", "Ada.", "r1"),
        ("site bank", "Ada.", "r2"),
    }
    assert taught(place) == wanted
    place.engine.taught.clear()
    await lessons.approved()  # not so soon again
    assert not place.engine.taught
