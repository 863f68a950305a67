"""Models: the versions and their evidence; promote, roll back."""

import html

import pandas as pd
import streamlit as st

from ui import session
from ui.answers import Promotion, Version, VersionDetail, Versions
from ui.api import ApiError
from ui.metrics import METRICS, better, columns_of, shown, value_of
from ui.promotion_form import show_promotion, show_roll_back
from ui.show import VERSION_COLORS, browser_zone, escaped, when
from ui.tables import draw

REPORT_HEIGHT = 900  # pixels
OVERVIEW = [metric for metric in METRICS if metric.overview]  # a version's report has them all
WIDTHS = {"Version": 180, "State": 90, "Rule": 80, "Made": 135} | {m.label: 95 for m in OVERVIEW}
MARKS = {True: "▲ better", False: "▼ worse", None: ""}


def page() -> None:
    st.title("Models", anchor=False)
    with session.asking():
        versions = session.api().versions()
    if not versions.items:
        st.info(
            "There is no version yet. The server registers the base model when it starts; "
            "a training run adds the first version of your own (page *Training*)."
        )
        return
    _table(versions)
    chosen = _choose(versions)
    with session.asking():
        detail = session.api().version(chosen)
        live = session.api().version(versions.live) if versions.live else None
    _version(detail)
    st.subheader("Promotions", anchor=False)
    st.caption("Of this version and the live one. The page Audit lists all of them.")
    _history([*detail.history, *(live.history if live else [])])
    if session.may("admin") and versions.rollback_to:
        show_roll_back(versions.rollback_to)


def _table(versions: Versions) -> None:
    zone = browser_zone()
    rows = [
        {
            "Version": version.id,
            "State": version.state,
            "Rule": _verdict(version) if version.metrics else "",
            "Made": when(version.created_at, zone),
            **{m.label: shown(m, value_of(m, version.metrics)) for m in OVERVIEW},
        }
        for version in versions.items
    ]
    draw(rows, WIDTHS, "Version", alt="Versions and their numbers")


def _verdict(version: Version) -> str:
    return "passed" if version.decision.passed else "refused"


def _choose(versions: Versions) -> str:
    """The newest candidate first in line, else the live version."""
    ids = [version.id for version in versions.items]
    states = {version.id: version.state for version in versions.items}
    waiting = [name for name in ids if states[name] == "candidate"]
    default = waiting[0] if waiting else versions.live or ids[0]
    return str(
        st.selectbox(
            "Look at",
            ids,
            index=ids.index(default) if default in ids else 0,
            format_func=lambda name: f"{name} ({states[name]})",
            key="models_version",
            width=420,
        )
    )


def _version(detail: VersionDetail) -> None:
    left, right = st.columns([2.7, 1], gap="large")
    with left:
        _facts(detail)
        _comparison(detail)
    with right, st.container(border=True):
        _decision(detail)
        if session.may("admin"):
            show_promotion(detail)
    _report(detail)


def _facts(detail: VersionDetail) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        st.subheader(escaped(detail.id), anchor=False)
        st.badge(detail.state, color=VERSION_COLORS[detail.state])  # type: ignore[arg-type]
    data = detail.dataset_fingerprint
    parts = [f"base {escaped(detail.base_model)}", f"made {when(detail.created_at)}"]
    parts.append(f"data `{data[:12]}`" if data else "no data of yours in it")
    if detail.promoted_at:
        parts.append(f"promoted {when(detail.promoted_at)} by {escaped(detail.promoted_by)}")
    st.caption(" · ".join(parts))


def _comparison(detail: VersionDetail) -> None:
    """This version beside the live one and the base, on the same held-out dialogues."""
    columns = columns_of(detail)
    if not columns:
        if not detail.bare:
            st.info("This version has no report, so there are no numbers to compare.")
        return
    this, *others = columns
    rows, told = [], []
    for metric in METRICS:
        values = {name: value_of(metric, metrics) for name, metrics in columns.items()}
        if all(value is None for value in values.values()):
            continue
        row = {"Measure": metric.label}
        row |= {name: shown(metric, value) for name, value in values.items()}
        if others:
            mark = better(metric, values[this], values[others[0]])
            row[f"against {others[0]}"] = MARKS[mark]
        rows.append(row)
        told.append((metric.label, metric.help))
    st.dataframe(
        pd.DataFrame(rows),
        hide_index=True,
        height="content",
        alt="Numbers of this version, the live version and the base model",
    )
    with st.expander("What the measures say"):
        for label, says in told:
            st.caption(f"**{label}**: {says}")


def _decision(detail: VersionDetail) -> None:
    st.subheader("Promotion rule", anchor=False)
    if detail.bare:
        st.text("The base model has no report and needs none: every version begins with it.")
        return
    if detail.decision.passed:
        st.success("The report passes.", icon=":material/check_circle:")
    else:
        st.warning("The report does not pass.", icon=":material/block:")
    for reason in detail.decision.reasons:
        st.text(f"• {reason}")


def _report(detail: VersionDetail) -> None:
    if not detail.report:
        return
    if not st.toggle("Show the whole report", key=f"report-{detail.id}"):
        return
    try:
        page_html = session.api().report_html(detail.id)
    except ApiError as error:
        session.end_if_logged_out(error)
        session.show_error(error)
        return
    st.download_button(
        "Download the report",
        page_html,
        file_name=f"report-{detail.id}.html",
        mime="text/html",
        icon=":material/download:",
        on_click="ignore",
    )
    # The report holds model text: an inner frame with an empty sandbox runs no script, sends no
    # form and has an origin of its own (HTML standard, 4.8.5).
    frame = (
        '<iframe sandbox="" style="border:0;width:100%;height:100vh" '
        f'title="Report" srcdoc="{html.escape(page_html, quote=True)}"></iframe>'
    )
    st.iframe(
        f"<style>body{{margin:0}}</style>{frame}",
        height=REPORT_HEIGHT,
        alt=f"Report of {detail.id}",
    )


def _history(changes: list[Promotion]) -> None:
    """What is known of the shown and of the live version, each change once, the newest first."""
    history = sorted({(c.at, c.version_id): c for c in changes}.values(), key=lambda c: -c.at)
    if not history:
        st.info("Nothing was promoted yet.")
        return
    zone = browser_zone()
    rows = [
        {
            "When": when(change.at, zone),
            "Live since then": change.version_id,
            "Before": change.previous_id,
            "How": change.kind,
            "Who": change.actor,
            "Why": change.reason,
        }
        for change in history
    ]
    st.dataframe(
        pd.DataFrame(rows),
        hide_index=True,
        column_config={"Why": st.column_config.TextColumn(width="large")},
    )


if __name__ == "__main__":
    page()
