"""A training run that is going on: bar, numbers, curve, cancel."""

from dataclasses import dataclass, field

import altair as alt
import pandas as pd
import streamlit as st

from ui import session
from ui.answers import ProgressItem, Run
from ui.api import ApiError
from ui.run_words import doing, share_of, steps_of
from ui.show import ACCENT, RUN_COLORS, duration, escaped, number, when

WHOLE = alt.Axis(format="d", tickMinStep=1)  # there is no half step
CURVE_POINTS = 400  # drawn at most; a longer curve is thinned out evenly


@dataclass
class Curve:
    """The progress lines of a run that were fetched so far."""

    run_id: str
    last: int = 0
    points: list[tuple[int, float]] = field(default_factory=list)  # (step, loss)
    message: str = ""

    def add(self, items: list[ProgressItem]) -> None:
        for item in items:
            if item.loss is not None and item.phase == "train":
                self.points.append((item.step, item.loss))
            self.message = item.message  # what the run says now, not what it said before


def follow(run: Run) -> None:
    """Draw the run as the server has it now."""
    curve = st.session_state.get("training_curve")
    if curve is None or curve.run_id != run.id:
        curve = st.session_state["training_curve"] = Curve(run.id)
    _fetch_new(run, curve)
    with st.container(border=True):
        _headline(run)
        share = share_of(run)
        done = f" · {share:.0%}" if run.total_steps else ""
        st.progress(share, text=f"{escaped(steps_of(run))}{done}")
        _numbers(run)
        _draw(curve)
        if curve.message:
            st.text(curve.message)


def _fetch_new(run: Run, curve: Curve) -> None:
    """All lines after the last one that we have; all of them after a reload."""
    try:
        while True:
            progress = session.api().run_progress(run.id, curve.last)
            curve.add(progress.items)
            if not progress.items or progress.last <= curve.last:
                return
            curve.last = progress.last
    except ApiError as error:
        session.end_if_logged_out(error)
        session.show_error(error)


def _headline(run: Run) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        st.subheader("A training run is going on", anchor=False)
        st.badge(run.state, color=RUN_COLORS[run.state])  # type: ignore[arg-type]
        if run.cancel_requested:
            st.badge("cancelling", color="orange")
        elif session.may("admin"):
            with st.popover("Cancel", icon=":material/stop_circle:"):
                _cancel(run)
    st.caption(
        f"{escaped(doing(run))} · started by {escaped(run.requested_by)} · "
        f"{when(run.started_at or run.created_at)}"
    )


def _cancel(run: Run) -> None:
    st.text("Stop this run? It ends after the current step and makes no version.")
    if not st.button("Yes, cancel the run", type="primary", key=f"cancel-{run.id}"):
        return
    try:
        session.api().cancel_run(run.id)
    except ApiError as error:
        session.end_if_logged_out(error)
        session.show_error(error)
        return
    st.toast("Cancelling: the run ends after its current step.")
    st.rerun(scope="app")


def _numbers(run: Run) -> None:
    with st.container(horizontal=True):
        st.metric("Loss", number(run.loss, 3))
        st.metric("Tokens per second", number(run.tokens_per_s, 0))
        st.metric("Time left", duration(run.seconds_left))


def _draw(curve: Curve) -> None:
    if len(curve.points) < 2:
        st.caption("The loss curve appears after the first steps.")
        return
    thin = max(1, len(curve.points) // CURVE_POINTS)
    frame = pd.DataFrame(curve.points[::thin], columns=["step", "loss"])
    frame["smooth"] = frame["loss"].ewm(span=8).mean()
    base = alt.Chart(frame).encode(x=alt.X("step:Q", title="Step", axis=WHOLE))
    scale = alt.Scale(zero=False)
    raw = base.mark_line(opacity=0.3, color=ACCENT).encode(
        y=alt.Y("loss:Q", title="Loss", scale=scale), tooltip=["step", "loss"]
    )
    smooth = base.mark_line(color=ACCENT, strokeWidth=2.5).encode(y=alt.Y("smooth:Q", title="Loss"))
    st.altair_chart(
        (raw + smooth).properties(height=240), key="training_loss", alt="Loss by training step"
    )
