"""The console before the real server: real HTTP, real record, real log."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import streamlit as st
from sqlalchemy import select
from streamlit.testing.v1 import AppTest

from chatbot.conversation.archive import Archiver
from chatbot.record.tables import Audit, Conversation, Review, Staff
from chatbot.server.staff import create_staff
from chatbot.services import Services
from tests.chatbot.server.conftest import services
from tests.chatbot.server.room import Running, ScriptedWorker, chat_tab, running, until
from tests.ui.conftest import fill_login, named, start, texts

__all__ = ["services"]  # a fixture
PASSWORD = "a long password"


@pytest.fixture
async def server(services: Services, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Running]:
    st.cache_resource.clear()
    create_staff(services.database, "test", "ada", PASSWORD, "admin")
    services.versions.ensure_base(services.settings.base_model)
    async with running(services) as started:
        monkeypatch.setenv("FRONTDESK_PUBLIC_URL", started.url)
        yield started
        st.cache_resource.clear()


@pytest.fixture
async def conversation(server: Running) -> str:
    """A visitor's question and the bot's reply, both recorded."""
    worker = ScriptedWorker(server.services, ["Ferns ", "cannot be returned."])
    async with worker.at_work(), chat_tab(server) as tab:
        await tab.send("message.send", client_message_id="m1", text="Can I return a fern?")
        await tab.receive_until("reply.completed")
        name = str(tab.welcome["conversation_id"])
    stop = asyncio.Event()
    archiving = asyncio.create_task(
        Archiver(server.services.log, server.services.archive).run(stop)
    )
    try:
        await until(lambda: _recorded(server.services, name))
    finally:
        stop.set()
        await archiving
    return name


def _recorded(services: Services, name: str) -> bool:
    with services.database.session() as session:
        row = session.get(Conversation, name)
        return row is not None and row.messages >= 2


def one(services: Services, table: Any) -> Any:
    with services.database.session() as session:
        return session.scalars(select(table)).one()


async def in_the_console(act: Callable[[AppTest], AppTest]) -> AppTest:
    """AppTest waits for its scripts, which wait for the server in this loop: a thread of its
    own."""

    def work() -> AppTest:
        at = act(fill_login(start(), "ada", PASSWORD))
        assert not at.exception
        return at

    return await asyncio.to_thread(work)


async def test_a_correction_reaches_the_record(server: Running, conversation: str) -> None:
    def correct(at: AppTest) -> AppTest:
        assert list(at.dataframe[0].value["First message"]) == ["Can I return a fern?"]
        at.query_params["conversation"] = conversation
        at = at.run()
        assert "Ferns cannot be returned." in texts(at)
        named(at.text_area, "What the bot should have said").input("Yes, within 30 days.")
        return named(at.button, "Save").click().run()

    at = await in_the_console(correct)
    assert "Yes, within 30 days." in texts(at)
    review = one(server.services, Review)
    assert (review.conversation_id, review.reviewer) == (conversation, "ada")
    assert (review.verdict, review.correction) == ("bad", "Yes, within 30 days.")


async def test_an_exclusion_reaches_the_record(server: Running, conversation: str) -> None:
    def exclude(at: AppTest) -> AppTest:
        at.query_params["conversation"] = conversation
        at = at.run()
        named(at.text_input, "Why keep it out?").input("a test")
        return named(at.button, "Exclude from training").click().run()

    await in_the_console(exclude)
    row = one(server.services, Conversation)
    assert (row.excluded, row.exclusion_reason) == (True, "a test")


async def test_every_page_opens_on_a_fresh_installation(server: Running) -> None:
    def visit(at: AppTest) -> AppTest:
        assert "There are no conversations yet." in texts(at)
        for page in ("models", "playground", "sites", "staff", "audit"):
            at = at.switch_page(f"views/{page}.py").run()
            assert not at.exception, page
            assert not at.error, page
        return at

    await in_the_console(visit)


async def test_a_person_is_added_and_the_audit_says_by_whom(server: Running) -> None:
    def add(at: AppTest) -> AppTest:
        at = at.switch_page("views/staff.py").run()
        at.text_input[0].input("kim")
        named(at.text_input, "First password").input("short")
        at = named(at.button, "Add").click().run()
        assert "at least 10 characters" in texts(at)
        named(at.text_input, "First password").input("long enough 1")
        at = named(at.button, "Add").click().run()
        return at.switch_page("views/audit.py").run()

    at = await in_the_console(add)
    assert at.dataframe[0].value["What"][0] == "staff.create"
    with server.services.database.session() as session:
        assert session.get(Staff, "kim") is not None
        assert session.scalars(select(Audit.actor).where(Audit.subject == "kim")).all() == ["ada"]


async def test_an_account_that_is_removed_is_logged_out(server: Running) -> None:
    from chatbot.server.staff import delete_staff

    create_staff(server.services.database, "test", "bea", PASSWORD, "admin")

    def work(at: AppTest) -> AppTest:
        delete_staff(server.services.database, "bea", "ada")
        return at.run()

    at = await in_the_console(work)
    assert "Your login has ended. Please log in again." in texts(at)
