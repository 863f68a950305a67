"""Playground: the same messages to two versions, side by side, streaming."""

from collections.abc import Mapping

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from ui import session
from ui.answers import Versions
from ui.show import number
from ui.side_by_side import Reply, Turn, fill, messages_for

TURNS = "playground_turns"
SIDES = ("left", "right")


def page() -> None:
    st.title("Playground", anchor=False)
    st.caption("Nothing written here reaches a visitor or the training data.")
    with session.asking():
        versions = session.api().versions()
    if not versions.items:
        st.info("There is no version to talk to yet. Start the server once, then come back.")
        return
    turns: list[Turn] = st.session_state.setdefault(TURNS, [])
    prompt = _system_prompt(turns)
    chosen = _choose(versions)
    for turn in turns:
        _show(turn)
    if not turns:
        st.info("Write a message below: both versions answer it, each in its own conversation.")
    text = st.chat_input("Message to both versions")
    if text:
        _send(text, chosen, prompt, turns)


def _system_prompt(turns: list[Turn]) -> str:
    with st.container(horizontal=True, vertical_alignment="bottom"):
        prompt = st.text_area(
            "System prompt",
            placeholder="Empty: the server's own",
            key="playground_prompt",
            height=80,
            persist_state="session",
        )
        if st.button("Start over", icon=":material/restart_alt:", disabled=not turns):
            turns.clear()
            st.rerun()
    return (prompt or "").strip()


def _choose(versions: Versions) -> dict[str, str]:
    """A version for each side: the live one, and the newest that is not."""
    ids = [version.id for version in versions.items]
    states = {version.id: version.state for version in versions.items}
    live = versions.live if versions.live in ids else ids[0]
    other = next((name for name in ids if name != live), live)
    chosen = {}
    for side, column, default in zip(SIDES, st.columns(2), (live, other), strict=True):
        with column:
            chosen[side] = st.selectbox(
                f"Version on the {side}",
                ids,
                index=ids.index(default),
                key=f"playground_{side}",
                format_func=lambda name: f"{name} ({states[name]})",
                persist_state="session",
            )
    return chosen


def _send(text: str, chosen: Mapping[str, str], prompt: str, turns: list[Turn]) -> None:
    """Stream both replies into the page. They are kept as they grow, so that leaving the page
    in the middle keeps what was written."""
    turn = Turn(text, {side: Reply(chosen[side]) for side in SIDES})
    streams = {
        side: session.api().playground(
            chosen[side], [*messages_for(turns, side), {"role": "user", "content": text}], prompt
        )
        for side in SIDES
    }
    turns.append(turn)
    places = _show(turn)
    for side in fill(turn.replies, streams):
        places[side].text(turn.replies[side].text + " ▌")
    for reply in turn.replies.values():
        if not reply.ended:
            reply.error = "The stream ended before the reply did."
    st.rerun()


def _show(turn: Turn) -> dict[str, DeltaGenerator]:
    """Draw a turn; returns where the text of each side stands. All text is shown as text."""
    with st.chat_message("user", avatar=":material/person:"):
        st.text(turn.text)
    places = {}
    for side, column in zip(SIDES, st.columns(2), strict=True):
        with column, st.chat_message("assistant", avatar=":material/smart_toy:"):
            places[side] = _show_reply(turn.replies[side])
    return places


def _show_reply(reply: Reply) -> DeltaGenerator:
    st.caption(reply.version)
    place = st.empty()
    if reply.text:
        place.text(reply.text)
    if reply.error:
        st.error("No complete reply.", icon=":material/error:")
        st.text(reply.error)
    elif reply.ended:
        st.caption(_figures(reply))
    return place


def _figures(reply: Reply) -> str:
    """Time and tokens of a reply that has ended."""
    usage = reply.usage or {}
    parts = []
    if reply.first_text_seconds is not None:
        parts.append(f"first words after {number(reply.first_text_seconds)} s")
    if reply.seconds is not None:
        parts.append(f"{number(reply.seconds)} s in all")
    if completion := usage.get("completion_tokens"):
        parts.append(f"{completion} tokens")
        if reply.seconds:
            parts.append(f"{number(completion / reply.seconds, 0)} tokens/s")
    if prompt := usage.get("prompt_tokens"):
        parts.append(f"prompt {prompt}, {usage.get('cached_tokens', 0)} of it cached")
    if reply.finish_reason == "length":
        parts.append("cut at the longest length")
    return " · ".join(parts) or "ended"


if __name__ == "__main__":
    page()
