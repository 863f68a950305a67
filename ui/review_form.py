"""Rating, correcting and commenting one bot reply."""

import streamlit as st

from ui import session
from ui.answers import Event, Review
from ui.show import escaped, when

VERDICTS: tuple[str, str] = ("bad", "good")  # as st.feedback("thumbs") counts: 0 down, 1 up


def show_review(conversation_id: str, event: Event, review: Review | None) -> None:
    """The review of the reply at ``event.offset``, with the controls to change it if the role
    allows it."""
    if review is not None:
        _outcome(review)
    if not session.may("reviewer"):
        return
    # The key changes with every saved review, so that the widgets show what the server has.
    key = f"{conversation_id}-{event.offset}-{review.updated_at if review else 0}"
    _verdict(conversation_id, event, review, key)
    with st.expander("Correct or comment", icon=":material/edit:", key=f"edit-{key}"):
        _correction(conversation_id, event, review, key)


def _outcome(review: Review) -> None:
    if review.correction is not None:
        with st.container(border=True):
            st.caption(":material/check: Corrected: the bot should have said")
            st.text(review.correction)
    if review.comment:
        st.caption("Comment")
        st.text(review.comment)
    st.caption(f"Reviewed by {escaped(review.reviewer)} · {when(review.updated_at)}")


def _verdict(conversation_id: str, event: Event, review: Review | None, key: str) -> None:
    stored = review.verdict if review else None
    default = VERDICTS.index(stored) if stored else None
    thumb = st.feedback("thumbs", default=default, key=f"verdict-{key}")
    chosen = None if thumb is None else VERDICTS[thumb]
    if chosen == stored:
        return
    with session.asking():
        session.api().review(
            conversation_id,
            event.offset,
            verdict=chosen,
            correction=review.correction if review else None,
            comment=review.comment if review else "",
        )
    st.rerun()


def _correction(conversation_id: str, event: Event, review: Review | None, key: str) -> None:
    original = event.text_of("text")
    corrected = review.correction if review else None
    with st.form(f"correct-{key}", border=False):
        text = st.text_area(
            "What the bot should have said",
            value=original if corrected is None else corrected,
            height="content",
            key=f"text-{key}",
            help="The next training run learns this text in the place of the bot's.",
        )
        comment = st.text_input(
            "Comment for colleagues", value=review.comment if review else "", key=f"note-{key}"
        )
        with st.container(horizontal=True):
            saved = st.form_submit_button("Save", type="primary")
            removed = st.form_submit_button("Remove the correction", disabled=corrected is None)
    if saved and not (text or "").strip():
        st.error("A correction cannot be empty. Write what the bot should have said.")
    elif saved or removed:
        new = None if removed or text == original else text
        _save(conversation_id, event, review, new, (comment or "").strip())


def _save(
    conversation_id: str, event: Event, review: Review | None, correction: str | None, comment: str
) -> None:
    """A reply that needed a correction counts as bad unless somebody judged it already."""
    verdict = review.verdict if review else None
    if correction is not None and verdict is None:
        verdict = "bad"
    with session.asking():
        session.api().review(
            conversation_id,
            event.offset,
            verdict=verdict,
            correction=correction,
            comment=comment,
        )
    st.toast("Saved.", icon=":material/check:")
    st.rerun()
