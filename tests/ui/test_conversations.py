"""Finding, reading and reviewing conversations."""

import pytest
from streamlit.testing.v1 import AppTest

from tests.ui.conftest import Console, named, texts
from tests.ui.fake_api import SCRIPT, World, add_conversation


def titles(at: AppTest) -> list[str]:
    return list(at.dataframe[0].value["First message"])


def test_the_list_is_paged(console: Console) -> None:
    at = console()
    assert len(at.dataframe[0].value) == 25
    assert named(at.button, "Newer").disabled
    at = named(at.button, "Older").click().run()
    assert not at.exception
    assert len(at.dataframe[0].value) == 5
    assert named(at.button, "Older").disabled
    at = named(at.button, "Newer").click().run()
    assert len(at.dataframe[0].value) == 25


def test_every_filter_reaches_the_server(console: Console, world: World) -> None:
    at = console()
    assert at.text_input(key="filter_site").placeholder == "Any"
    at.text_input(key="filter_search").input("fern")
    at.text_input(key="filter_site").input("demo")
    at.selectbox(key="filter_status").select("closed")
    at.selectbox(key="filter_version").select("v2")
    at.selectbox(key="filter_rating").select(5)
    at.segmented_control(key="filter_reviewed").set_value("To review")
    at = at.run()
    assert not at.exception
    asked = world.called("GET", "/conversations")[-1]
    assert asked == {
        "q": "fern", "site": "demo", "status": "closed", "version": "v2", "rating": "5",
        "reviewed": "false", "limit": "25",
    }  # fmt: skip
    assert set(titles(at)) == {"Can I return a fern?"}


def test_a_filter_without_a_hit_and_an_empty_house_say_what_to_do(
    console: Console, world: World
) -> None:
    at = console()
    at = at.text_input(key="filter_search").input("no such words").run()
    assert "No conversation matches." in texts(at)
    world.conversations.clear()
    at = at.text_input(key="filter_search").input("").run()
    assert "There are no conversations yet." in texts(at)
    assert not at.exception


def test_a_row_opens_its_conversation(console: Console) -> None:
    at = console()
    at.session_state["conversations-0"] = {"selection": {"rows": [0], "columns": [], "cells": []}}
    at = at.run()
    assert not at.exception
    assert at.query_params["conversation"] == "c-000"
    assert "It should have come on Monday." in texts(at)


def test_a_conversation_shows_all_that_happened(console: Console) -> None:
    said = texts(console(conversation="c-000"))
    for part in (
        "Where is my order",
        "Your parcel left our house today.",
        "v2",
        "confidence 83%",
        "the visitor asked for a person",
        "Private note by guy",
        "Carrier says it is lost.\nSent a new one.",
        "I am sorry! A new parcel leaves today.",
        "the worker was lost three times",
        "★★★★☆",
        "Quick!",
    ):
        assert part in said, part


def test_next_and_previous_walk_the_list_over_its_pages(console: Console) -> None:
    at = console(conversation="c-024")  # a reload on the last one of a page
    at = named(at.button, "Next").click().run()
    assert at.query_params["conversation"] == "c-025"
    at = named(at.button, "Previous").click().run()
    assert at.query_params["conversation"] == "c-024"
    at = named(at.button, "Previous").click().run()
    assert at.query_params["conversation"] == "c-023"
    at = named(at.button, "List").click().run()
    assert not at.exception
    assert "conversation" not in at.query_params
    assert len(at.dataframe[0].value) == 25


def test_a_verdict_is_saved_with_one_click_and_can_be_taken_back(
    console: Console, world: World
) -> None:
    at = console(user="rae", conversation="c-001")
    at = at.feedback[0].set_value(1).run()
    assert not at.exception
    assert world.reviews["c-001"][0]["verdict"] == "good"
    assert "Reviewed by rae" in texts(at)
    at = at.feedback[0].set_value(None).run()
    assert not at.exception
    assert not world.reviews["c-001"]
    assert "Reviewed by rae" not in texts(at)


def correct(at: AppTest, text: str) -> AppTest:
    named(at.text_area, "What the bot should have said").input(text)
    return named(at.button, "Save").click().run()


def test_a_correction_is_saved_shown_and_removed(console: Console, world: World) -> None:
    at = console(user="rae", conversation="c-001")
    area = named(at.text_area, "What the bot should have said")
    assert area.value == "Your parcel left our house today."
    at = correct(at, "Ferns can be returned within 30 days.")
    assert not at.exception
    [review] = world.reviews["c-001"]
    assert (review["offset"], review["verdict"]) == (2, "bad")
    assert review["correction"] == "Ferns can be returned within 30 days."
    assert "Ferns can be returned within 30 days." in [text.value for text in at.text]
    at = named(at.button, "Remove the correction").click().run()
    assert not at.exception
    assert world.reviews["c-001"][0]["correction"] is None


def test_saving_only_a_comment_makes_no_correction(console: Console, world: World) -> None:
    at = console(user="rae", conversation="c-001")
    named(at.text_input, "Comment for colleagues").input("too curt")
    at = named(at.button, "Save").click().run()
    [review] = world.reviews["c-001"]
    assert review["correction"] is None
    assert review["verdict"] is None
    assert review["comment"] == "too curt"
    assert "too curt" in texts(at)


def test_an_empty_correction_is_refused(console: Console, world: World) -> None:
    at = correct(console(user="rae", conversation="c-001"), "  ")
    assert "A correction cannot be empty." in texts(at)
    assert not world.reviews["c-001"]


def test_a_conversation_is_kept_out_of_training_with_a_reason(
    console: Console, world: World
) -> None:
    at = console(user="rae", conversation="c-001")
    at = named(at.button, "Exclude from training").click().run()
    assert "Give a reason" in texts(at)
    assert not world.conversations[1]["excluded"]
    named(at.text_input, "Why keep it out?").input("a test of ours")
    at = named(at.button, "Exclude from training").click().run()
    assert not at.exception
    assert world.conversations[1]["excluded"]
    assert "a test of ours" in texts(at)
    at = named(at.button, "Use it for training again").click().run()
    assert not world.conversations[1]["excluded"]


def test_an_agent_reads_but_does_not_review(console: Console) -> None:
    at = console(user="guy", conversation="c-001")
    assert "Your parcel left our house today." in texts(at)
    assert not at.feedback
    assert not at.text_area
    assert "Exclude from training" not in [button.label for button in at.button]


def test_an_unknown_conversation_is_said_to_be_unknown(console: Console) -> None:
    at = console(conversation="c-999")
    assert "no conversation c-999" in texts(at)
    assert named(at.button, "List").click().run().query_params == {}


@pytest.mark.parametrize("author", ["visitor", "model"])
def test_what_people_and_models_write_is_shown_as_text(
    console: Console, world: World, author: str
) -> None:
    """Scripts and Markdown of a chat reach the page only in elements that interpret neither."""
    says, replies = (SCRIPT, "fine") if author == "visitor" else ("hello", SCRIPT)
    add_conversation(world, "evil", says, reply=replies, status=SCRIPT, site=SCRIPT)
    at = console(conversation="evil")
    assert SCRIPT in [text.value for text in at.text]
    for element in [*at.markdown, *at.caption, *at.html, *at.title, *at.subheader]:
        assert "<script>window" not in str(element.value)
        assert "**bold**" not in str(element.value)
    assert not at.exception
