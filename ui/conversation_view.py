"""One conversation, read and reviewed.

Whatever visitors, agents and the model wrote goes through ``st.text``, which interprets neither
Markdown nor HTML (OWASP LLM Top 10, improper output handling).
"""

import streamlit as st

from ui import session
from ui.answers import ConversationDetail, ConversationHead, Event, Review
from ui.api import ApiError
from ui.event_words import line_of
from ui.review_form import show_review
from ui.show import STATUS_LABELS, escaped, plural, when
from ui.trail import Fetch, Trail


def show(conversation_id: str, trail: Trail, fetch: Fetch) -> str | None:
    """The conversation with its review controls. Returns the conversation to open next, "" for
    back to the list, None to stay."""
    target = _toolbar(conversation_id, trail, fetch)
    if target is not None:
        return target
    try:
        detail = session.api().conversation(conversation_id)
    except ApiError as error:
        session.end_if_logged_out(error)
        session.show_error(error)
        return None
    main, side = st.columns([2.6, 1], gap="large")
    with main:
        _events(conversation_id, detail)
    with side:
        _facts(detail)
        if session.may("reviewer"):
            _exclusion(conversation_id, detail.conversation)
    return None


def _toolbar(conversation_id: str, trail: Trail, fetch: Fetch) -> str | None:
    with st.container(horizontal=True, vertical_alignment="center"):
        back = st.button("List", icon=":material/arrow_back:", shortcut="L")
        before = st.button(
            "Previous", icon=":material/chevron_left:", shortcut="P",
            disabled=not trail.has_neighbour(conversation_id, forward=False),
        )  # fmt: skip
        after = st.button(
            "Next", icon=":material/chevron_right:", shortcut="N",
            disabled=not trail.has_neighbour(conversation_id, forward=True),
        )  # fmt: skip
    if back:
        return ""
    if before or after:
        with session.asking():
            return trail.neighbour(conversation_id, after, fetch)
    return None


def _facts(detail: ConversationDetail) -> None:
    head = detail.conversation
    versions = dict.fromkeys(e.text_of("version") for e in detail.events if e.text_of("version"))
    with st.container(border=True, gap="small"):
        st.subheader("Facts", anchor=False)
        st.badge(STATUS_LABELS.get(head.status, escaped(head.status)))
        if head.score:
            st.text(f"Rated {'★' * head.score}{'☆' * (5 - head.score)}")
        for label, value in {
            "Conversation": head.id,
            "Site": head.site,
            "Began": when(head.started_at),
            "Last activity": when(head.updated_at),
            "Written by": ", ".join(versions) or "no bot reply yet",
            "Reviewed": plural(len(detail.reviews), "reply", "replies"),
        }.items():
            with st.container(gap=None):
                st.caption(label)
                st.text(value)


def _exclusion(conversation_id: str, head: ConversationHead) -> None:
    with st.container(border=True):
        st.subheader("Training", anchor=False)
        if head.excluded:
            st.badge("Excluded", icon=":material/block:", color="orange")
            st.text(head.exclusion_reason or "no reason given")
            if st.button("Use it for training again", width="stretch"):
                _save_exclusion(conversation_id, False, "")
            return
        st.caption(
            "Corrected and good replies of this conversation are used by the next training run."
        )
        with st.form(f"exclude-{conversation_id}", border=False):
            reason = st.text_input("Why keep it out?", placeholder="e.g. a test, abuse, private")
            submitted = st.form_submit_button("Exclude from training", width="stretch")
        if submitted and not reason.strip():
            st.error("Give a reason: others will want to know why it is missing.")
        elif submitted:
            _save_exclusion(conversation_id, True, reason.strip())


def _save_exclusion(conversation_id: str, excluded: bool, reason: str) -> None:
    with session.asking():
        session.api().exclude(conversation_id, excluded, reason)
    st.toast("Excluded from training." if excluded else "Used for training again.")
    st.rerun()


def _events(conversation_id: str, detail: ConversationDetail) -> None:
    reviews = {review.offset: review for review in detail.reviews}
    if not detail.events:
        st.info("Nothing was written in this conversation yet.")
    for event in detail.events:
        _event(conversation_id, event, reviews.get(event.offset))


def _event(conversation_id: str, event: Event, review: Review | None) -> None:
    if event.type == "message.created":
        _message(event)
    elif event.type == "reply.completed":
        _reply(conversation_id, event, review)
    elif event.type == "reply.failed":
        _failed_reply(event)
    elif event.type == "note.created":
        _note(event)
    elif event.type == "rating.given":
        _rating(event)
    elif line := line_of(event):
        st.caption(f"{when(event.at)} · {escaped(line)}")


def _message(event: Event) -> None:
    visitor = event.text_of("role") == "visitor"
    name = "Visitor" if visitor else f"{event.text_of('author') or 'Agent'} (staff)"
    avatar = ":material/person:" if visitor else ":material/support_agent:"
    with st.chat_message("user" if visitor else "agent", avatar=avatar):
        st.caption(f"{escaped(name)} · {when(event.at)}")
        st.text(event.text_of("text"))


def _reply(conversation_id: str, event: Event, review: Review | None) -> None:
    with st.chat_message("assistant", avatar=":material/smart_toy:"):
        st.caption(_reply_line(event))
        st.text(event.text_of("text") or "(empty reply)")
        show_review(conversation_id, event, review)


def _reply_line(event: Event) -> str:
    """Who wrote the reply, when, how it ended, how sure the model was."""
    parts = ["Bot", escaped(event.text_of("version") or "unknown version"), when(event.at)]
    ends = {"length": "cut at the longest length", "stopped": "stopped", "handoff": "handed over"}
    if end := ends.get(event.text_of("finish_reason")):
        parts.append(end)
    if isinstance(seconds := event.value_of("seconds"), int | float):
        parts.append(f"{seconds:.1f} s")
    if isinstance(confidence := event.value_of("confidence"), int | float):
        parts.append(f"confidence {confidence:.0%}")
    return " · ".join(parts)


def _failed_reply(event: Event) -> None:
    with st.chat_message("assistant", avatar=":material/error:"):
        st.caption(f"Bot · {escaped(event.text_of('version'))} · {when(event.at)}")
        st.text(event.text_of("text") or "(nothing was shown)")
        st.badge("Reply failed", color="red")
        st.text(event.text_of("reason"))


def _note(event: Event) -> None:
    with st.container(border=True):
        st.caption(
            f":material/lock: Private note by {escaped(event.text_of('author'))} · {when(event.at)}"
        )
        st.text(event.text_of("text"))


def _rating(event: Event) -> None:
    score = int(event.value_of("score") or 0)
    st.caption(f"{when(event.at)} · the visitor rated {'★' * score}{'☆' * (5 - score)}")
    if comment := event.text_of("comment"):
        st.text(comment)
