"""Data: export conversations; find a person, hold or erase what they said."""

import uuid
from datetime import UTC, date, datetime, time, timedelta
from typing import Literal

import streamlit as st

from ui import session
from ui.address import server_url
from ui.answers import Export, Person, Receipt, Trained
from ui.show import escaped, plural, when

MOST_BYTES = 100_000_000  # this page holds a file in memory while it hands it on
Color = Literal["green", "blue", "gray", "red"]
STATE_COLORS: dict[str, Color] = {
    "ready": "green",
    "running": "blue",
    "queued": "gray",
    "failed": "red",
}
BY = {
    "visitor": "Visitor id",
    "customer": "Customer of a site",
    "conversation_id": "Conversation",
}


def page() -> None:
    st.title("Data", anchor=False)
    exports, people, receipts, holds = st.tabs(["Exports", "A person", "Receipts", "Legal holds"])
    with exports:
        _ask_for_export()
        _exports()
    with people:
        _find()
        _person()
    with receipts:
        _receipts()
    with holds:
        _holds()


# -- exports


def _ask_for_export() -> None:
    with session.asking():
        sites = [site.name for site in session.api().sites()]
    with st.form("export"):
        left, middle, right = st.columns(3)
        format_name = left.selectbox("Format", ["jsonl", "csv"], key="export_format")
        site = middle.selectbox("Site", ["", *sites], format_func=lambda name: name or "all sites")
        status = right.selectbox("Status", ["", "bot", "waiting", "human", "closed"],
                                 format_func=lambda name: name or "any")  # fmt: skip
        since = left.date_input("Last activity from", value=None)
        until = middle.date_input("up to and with", value=None)
        visitor = right.text_input("Visitor id", placeholder="everybody")
        redact = st.checkbox("Replace e-mail addresses, telephone and card numbers")
        submitted = st.form_submit_button("Make the export", type="primary")
    if not submitted:
        return
    last = until + timedelta(days=1) if isinstance(until, date) else None
    wanted = {
        "site": site,
        "visitor": visitor.strip(),
        "status": status or None,
        "since": _day(since) if isinstance(since, date) else None,
        "until": _day(last) if last else None,
    }
    with session.asking():
        session.api().start_export(uuid.uuid4().hex, format_name, redact, wanted)
    st.toast("It is being made.")


def _day(value: date) -> int:
    """The beginning of a day (UTC) in Unix ms."""
    return int(datetime.combine(value, time(), UTC).timestamp() * 1000)


@st.fragment(run_every="3s")
def _exports() -> None:
    with session.asking():
        exports = session.api().exports()
    if not exports:
        st.caption("No export yet. Files are kept for some hours and then deleted.")
    for export in exports[:20]:
        with st.container(border=True):
            _export(export)


def _export(export: Export) -> None:
    left, right = st.columns([3, 1])
    left.badge(export.state, color=STATE_COLORS.get(export.state, "orange"))
    left.text(
        f"{export.id}.{export.format}, {plural(export.conversations, 'conversation')}, "
        f"by {export.requested_by}, {when(export.created_at)}"
    )
    if export.error:
        left.caption(escaped(export.error))
    if export.state == "running":
        left.progress(min(1.0, export.conversations / max(1, export.total)))
    if export.state != "ready":
        return
    left.caption(f"{export.size:,} bytes; deleted on {when(export.expires_at)}")
    if export.size <= MOST_BYTES:
        right.download_button(
            "Download",
            lambda: session.api().export_file(export.id),
            f"{export.id}.{export.format}",
            key=f"file-{export.id}",
            on_click="ignore",
            width="stretch",
        )
    else:
        left.caption(
            f"Too large for this page: `curl -OJ -H 'Authorization: Bearer …' "
            f"{server_url()}/v1/admin/exports/{export.id}/file`"
        )
    if right.button("Delete", key=f"delete-{export.id}", width="stretch"):
        with session.asking():
            session.api().delete_export(export.id)
        st.rerun(scope="fragment")


# -- a person


def _find() -> None:
    by = st.segmented_control(
        "Find a person by", list(BY), format_func=lambda name: BY[name], default="visitor",
        key="find_by",
    )  # fmt: skip
    with st.form("find"):
        site = st.text_input("Site", placeholder="shop") if by == "customer" else ""
        label = {"customer": "Customer id (sub)"}.get(by or "", BY.get(by or "visitor", ""))
        value = st.text_input(label, key="person_value")
        submitted = st.form_submit_button("Find", type="primary")
    if not submitted:
        return
    if not value.strip() or (by == "customer" and not site.strip()):
        st.error("Say who it is.")
        return
    name = "subject" if by == "customer" else str(by)
    query = {name: value.strip()} | ({"site": site.strip()} if by == "customer" else {})
    st.session_state.pop("person", None)
    with session.asking():
        st.session_state["person"] = session.api().find_person(query)
        st.session_state["erase_request"] = uuid.uuid4().hex


def _person() -> None:
    person: Person | None = st.session_state.get("person")
    if person is None:
        return
    with st.container(border=True):
        st.text(person.visitor)
        kind = "a customer whom the site knows" if person.known else "an anonymous visitor"
        st.caption(
            f"{kind} of {escaped(person.site)}: {plural(len(person.conversations), 'conversation')}"
            f", {plural(person.messages, 'message')}"
            + (f", {when(person.first_at)} to {when(person.last_at)}" if person.last_at else "")
        )
        _versions(person.versions)
    if person.hold:
        st.warning(f"Legal hold by {escaped(person.hold.placed_by)}: nothing may be deleted.")
        st.text(person.hold.reason)
        return
    left, right = st.columns(2, gap="large")
    with left:
        _place_hold(person)
    with right:
        _erase(person)


def _versions(versions: list[Trained]) -> None:
    if not versions:
        st.caption("No model version was trained on what this person said.")
        return
    st.caption("Versions that were trained on what this person said")
    for version in versions:
        known = version.conversations
        much = "not known how much" if known is None else plural(known, "conversation")
        st.text(f"{version.version_id} ({version.state}): {much}")


def _place_hold(person: Person) -> None:
    st.subheader("Legal hold", anchor=False)
    with st.form("hold"):
        reason = st.text_input("Reason", placeholder="which matter")
        submitted = st.form_submit_button("Place the hold")
    if submitted:
        with session.asking():
            session.api().place_hold(person.site, person.visitor, reason)
            query = {"visitor": person.visitor}
            st.session_state["person"] = session.api().find_person(query)
        st.rerun()


def _erase(person: Person) -> None:
    st.subheader("Erase", anchor=False)
    st.caption("Conversations, reviews, training data and exports. It cannot be undone.")
    with st.form("erase"):
        reason = st.text_input("Reason", placeholder="who asked, when")
        typed = st.text_input(f"Type {escaped(person.visitor)} to confirm")
        submitted = st.form_submit_button("Erase this person", type="primary")
    if not submitted:
        return
    if typed.strip() != person.visitor:
        st.error("That is another id: nothing was erased.")
        return
    with session.asking():
        receipt = session.api().erase_person(
            st.session_state["erase_request"], person.site, person.visitor, reason
        )
    del st.session_state["person"]
    st.success("Erased.")
    _receipt(receipt, "now")


# -- receipts and holds


def _receipts() -> None:
    with session.asking():
        erasures = session.api().erasures()
    if not erasures:
        st.caption("Nobody was erased yet.")
        return
    names = [item.id for item in erasures]
    labels = {
        item.id: f"{when(item.requested_at)}, {item.visitor}, {item.state}" for item in erasures
    }
    chosen = st.selectbox("Receipt", names, format_func=lambda name: labels[name])
    with session.asking():
        _receipt(session.api().erasure(chosen), "list")


def _receipt(receipt: Receipt, place: str) -> None:
    with st.container(border=True):
        st.text(f"Receipt {receipt.id}: {receipt.state}")
        st.caption(
            f"{when(receipt.requested_at)} by {escaped(receipt.requested_by)}, of "
            f"{escaped(receipt.site)}: {escaped(receipt.reason)}"
        )
        st.text(
            f"{plural(len(receipt.conversations), 'conversation')}, "
            f"{plural(receipt.events, 'event')}, {plural(receipt.reviews, 'review')}, "
            f"{plural(receipt.dataset_dialogues, 'training dialogue')}, "
            f"{plural(len(receipt.exports), 'export')}"
        )
        if receipt.cancelled_runs:
            st.text("Training runs that were cancelled: " + ", ".join(receipt.cancelled_runs))
        _versions(receipt.versions)
        if receipt.versions:
            st.caption("Retrain them without this person, and roll back from the one that is live.")
        st.download_button(
            "Receipt as JSON",
            receipt.model_dump_json(indent=2),
            f"{receipt.id}.json",
            "application/json",
            key=f"receipt-{place}-{receipt.id}-{receipt.state}",
            on_click="ignore",
        )


def _holds() -> None:
    with session.asking():
        holds = session.api().holds()
    if not holds:
        st.caption("There is no hold. Find a person to place one.")
    for hold in holds:
        with st.container(border=True):
            st.text(f"{hold.visitor} of {hold.site}: {hold.reason}")
            st.caption(f"placed by {escaped(hold.placed_by)}, {when(hold.placed_at)}")
            if hold.lifted_at is not None:
                st.caption(
                    f"lifted by {escaped(hold.lifted_by)}, {when(hold.lifted_at)}: "
                    f"{escaped(hold.lift_reason)}"
                )
                continue
            reason = st.text_input("Why it is lifted", key=f"why-{hold.id}")
            if st.button("Lift", key=f"lift-{hold.id}") and reason.strip():
                with session.asking():
                    session.api().lift_hold(hold.id, reason)
                st.rerun()


if __name__ == "__main__":
    page()
