"""Training: what the next run would use, start it, watch it, and what became of the others.

Everything shown of a run is read from the server, so a reload shows it going on.
"""

import secrets
import time
from typing import Any

import streamlit as st

from ui import counting, session
from ui.answers import Preview, Run
from ui.api import ApiError
from ui.counting import Count
from ui.run_view import follow
from ui.show import browser_zone, duration, number, when
from ui.tables import draw

REQUEST = "training_request_id"
NOTICE = "training_notice"
WAIT_SECONDS = 1  # between looks whether the count has ended
IDLE_SECONDS, ACTIVE_SECONDS = 10, 2
EXAMPLES = 5  # of redaction, shown at most
WIDTHS = {
    "State": 85, "Started": 130, "Took": 95, "By": 75, "Steps": 95, "Loss": 60,
    "Version": 145, "Error": 165, "Run": 150,
}  # fmt: skip
EPOCHS, LEARNING_RATE, RANK = 1.0, 1e-3, 16


def page() -> None:
    st.title("Training", anchor=False)
    if notice := st.session_state.pop(NOTICE, ""):
        st.info(notice)
    with session.asking():
        runs = session.api().runs()
    active = next((run for run in runs if run.active), None)
    _watch(active)
    # while a run needs the processor it is counted on demand only
    count = counting.current(begin=active is None)
    left, right = st.columns([1.6, 1], gap="large")
    with left:
        _next_run(count)
    with right:
        _start(active, count)
    _history(runs)


def _watch(active: Run | None) -> None:
    """The active run, refreshed by itself. Also notices a run that somebody else starts."""
    every = ACTIVE_SECONDS if active else IDLE_SECONDS
    st.fragment(_watch_once, run_every=every)(active, time.monotonic())


def _watch_once(active: Run | None, drawn_at: float) -> None:
    """``active`` is what the whole page was drawn with, ``drawn_at`` (seconds) when: the first
    call belongs to that drawing, later ones ask the server again."""
    run = active
    if time.monotonic() - drawn_at > 1.0:
        try:
            run = session.api().run(active.id) if active else session.api().overview().active_run
        except ApiError as error:
            session.end_if_logged_out(error)
            session.show_error(error)
            return
        if (run is not None and run.active) != (active is not None):
            counting.forget()  # it may have said that a run is active
            st.rerun(scope="app")  # it began or ended: the whole page looks different now
    if run is not None:
        follow(run)


def _next_run(count: Count | None) -> None:
    """What would be learned, as soon as it is counted."""
    with st.container(horizontal=True, vertical_alignment="center"):
        st.subheader("What the next run would learn from", anchor=False)
        pending = count is not None and count.pending
        fresh = st.button(
            "Count again", icon=":material/refresh:", type="tertiary", disabled=pending
        )
    if fresh:
        counting.again()
        st.rerun()
    if count is None:
        st.caption("Not counted while a run is going on. *Count again* does it all the same.")
    elif count.pending:
        st.fragment(_wait, run_every=WAIT_SECONDS)(count)
    elif count.error is not None:
        session.end_if_logged_out(count.error)
        session.show_error(count.error)
    elif count.preview is not None:
        _counts(count.preview)
        _redaction(count.preview)
        st.caption(f"Fingerprint of this data: `{count.preview.fingerprint[:16]}`")


def _wait(count: Count) -> None:
    if not count.pending:
        st.rerun(scope="app")
    st.info(
        "Reading the transcripts and reviews, "
        f"{duration(time.monotonic() - count.began)} so far. A run can start without this count."
    )


def _counts(preview: Preview) -> None:
    counts = {
        "Dialogues": preview.dialogues,
        "Tokens": preview.tokens,
        "Corrections": preview.corrections,
        "From the file": preview.from_file,
        "From reviews": preview.from_reviews,
        "Excluded": preview.excluded,
    }
    columns = [*st.columns(3), *st.columns(3)]
    for column, (label, count) in zip(columns, counts.items(), strict=True):
        column.metric(label, number(count), border=True)


def _redaction(preview: Preview) -> None:
    found = {kind: n for kind, n in preview.redaction.counts.items() if n}
    if not found:
        st.caption("No personal data was found in it.")
        return
    st.caption("Personal data that is replaced before anything is learned")
    with st.container(horizontal=True):
        for kind, count in sorted(found.items(), key=lambda pair: -pair[1]):
            st.badge(f"{kind} {count:,}", color="orange")
    for example in preview.redaction.examples[:EXAMPLES]:
        with st.container(border=True):
            before, after = st.columns(2)
            before.caption("Before")
            before.text(example.before)
            after.caption("What is learned")
            after.text(example.after)


def _start(active: Run | None, count: Count | None) -> None:
    st.subheader("Start a run", anchor=False)
    if not session.may("admin"):
        st.info("Administrators start training runs. Your corrections are part of the next one.")
        return
    if active is not None:
        st.info("A run is going on (see above). The next one can start when it has ended.")
        return
    if count is not None and count.error is not None:
        st.warning("A run can start once its data can be read (see the error beside this).")
        return
    preview = count.preview if count is not None else None  # None: whoever hurries may start
    if preview is not None and not preview.can_start:
        st.warning("A run cannot start now.")
        st.text(preview.reason or "The server gave no reason.")
        return
    # One id per view of this form. The form's key holds it, so that a second click, which was
    # meant for a form that is gone, starts nothing; the server makes one run of one id.
    request_id = st.session_state.setdefault(REQUEST, secrets.token_urlsafe(16))
    settings = _form(request_id)
    if settings is not None:
        _send(request_id, settings)


def _form(request_id: str) -> dict[str, Any] | None:
    """The settings, once they are submitted."""
    with st.form(f"start-{request_id}"):
        epochs = st.number_input("Epochs", 0.1, 20.0, EPOCHS, 0.5, help="Passes over the data.")
        promote = st.checkbox(
            "Promote by itself if the report passes the promotion rule",
            help="Otherwise the version waits as a candidate on the page Models.",
        )
        with st.expander("More settings"):
            rate = st.number_input("Learning rate", 1e-6, 1e-1, LEARNING_RATE, 1e-4, format="%.6f")
            rank = st.number_input("LoRA rank", 1, 256, RANK, help="Size of the adapter.")
            limit = st.number_input(
                "Most dialogues", 1, None, None, placeholder="all", help="For a quick trial."
            )
            steps = st.number_input(
                "Most steps", 1, None, None, placeholder="no limit", help="For a quick trial."
            )
        submitted = st.form_submit_button(
            "Start training", type="primary", icon=":material/play_arrow:", width="stretch"
        )
    if not submitted:
        return None
    return {
        "epochs": epochs,
        "learning_rate": rate,
        "rank": int(rank),
        "limit": limit,
        "max_steps": steps,
        "auto_promote": promote,
    }


def _send(request_id: str, settings: dict[str, Any]) -> None:
    try:
        session.api().start_run(request_id, settings)
    except ApiError as error:
        session.end_if_logged_out(error)
        if error.code != "run_active":
            session.show_error(error)
            return
        st.session_state[NOTICE] = "A run was going on already; no second one was started."
    st.session_state.pop(REQUEST, None)
    counting.forget()
    st.rerun()


def _history(runs: list[Run]) -> None:
    st.subheader("Runs so far", anchor=False)
    ended = [run for run in runs if not run.active]
    if not ended:
        st.info("No run has ended yet. When one has, its outcome is listed here.")
        return
    zone = browser_zone()
    rows = [
        {
            "State": run.state,
            "Started": when(run.started_at or run.created_at, zone),
            "Took": duration((run.ended_at - run.started_at) / 1000)
            if run.ended_at and run.started_at
            else "–",
            "By": run.requested_by,
            "Steps": f"{run.step} of {run.total_steps}" if run.total_steps else "–",
            "Loss": number(run.loss, 3),
            "Version": run.version_id,
            "Error": run.error,
            "Run": run.id,
        }
        for run in ended
    ]
    draw(rows, WIDTHS, "Error", alt="Runs that have ended, the newest first")
    failed = next((run for run in ended if run.state == "failed"), None)
    if failed is not None and failed is ended[0]:
        st.error("The last run failed.")
        st.text(failed.error or "The server gave no reason; the trainer's log says more.")


if __name__ == "__main__":
    page()
