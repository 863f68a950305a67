"""Sites: the websites that may embed the widget, and what the bot is told there."""

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from ui import session
from ui.address import server_url
from ui.answers import RetentionOwn, Site
from ui.show import plural

NEW = "New site ..."


def page() -> None:
    st.title("Sites", anchor=False)
    with session.asking():
        sites = {site.name: site for site in session.api().sites()}
    if not sites:
        st.info("No site yet. Add the website on which the chat shall appear.")
    choice = st.selectbox("Site", [*sites, NEW], key="site_choice", width=320)
    site = sites.get(choice) or Site(name="", origins=[], title="", welcome="", system_prompt="")
    left, right = st.columns([1.6, 1], gap="large")
    with left:
        _form(site)
        if site.name:
            _retention(site.name)
    with right:
        _snippet(site)


def _form(site: Site) -> None:
    with st.form(f"site-{site.name}"):
        name = site.name or st.text_input(
            "Name", placeholder="shop", help="Letters, digits, dashes."
        )
        origins = st.text_area(
            "Origins that may embed the widget, one a line",
            "\n".join(site.origins),
            placeholder="https://shop.example.com",
        )
        title = st.text_input("Title of the chat window", site.title)
        welcome = st.text_area("Welcome message", site.welcome, height=80)
        prompt = st.text_area(
            "System prompt", site.system_prompt, height=120, placeholder="Empty: the server's own"
        )
        submitted = st.form_submit_button("Save", type="primary")
    if not submitted:
        return
    if not name.strip():
        st.error("Give the site a name.")
        return
    with session.asking():
        session.api().save_site(
            Site(
                name=name.strip(),
                origins=[line.strip() for line in origins.splitlines() if line.strip()],
                title=title.strip(),
                welcome=welcome.strip(),
                system_prompt=prompt.strip(),
            )
        )
    st.toast("Saved. New chats use it.")
    st.rerun()


def _retention(site: str) -> None:
    with session.asking():
        now = session.api().retention(site)
    st.subheader("How long conversations are kept", anchor=False)
    with st.form(f"retention-{site}"):
        idle, log, record = st.columns(3)
        own = RetentionOwn(
            idle_close_hours=_number(
                idle, "Close when idle, hours", now.own.idle_close_hours,
                now.effective.idle_close_hours, "0: never. A visitor who writes opens it again.",
            ),
            log_days=_number(
                log, "In Redis when closed, days", now.own.log_days, now.effective.log_days,
                "It still opens from the record afterwards.", least=1,
            ),
            record_days=_number(
                record, "Delete everywhere, days", now.own.record_days,
                now.effective.record_days, "After the last event. 0: never.",
            ),
        )  # fmt: skip
        submitted = st.form_submit_button("Save retention")
    st.caption("An empty field is as the installation says.")
    if now.due or now.held:
        st.caption(
            f"{plural(now.due, 'conversation')} will be deleted in the next minutes; "
            f"{now.held} more are kept by a legal hold."
        )
    if submitted:
        with session.asking():
            session.api().save_retention(site, own)
        st.toast("Saved. It holds from the next minute on.")
        st.rerun()


def _number(
    place: DeltaGenerator, label: str, own: int | None, holds: int, hint: str, least: int = 0
) -> int | None:
    """A whole number, or None for an empty field."""
    value = place.number_input(
        label, min_value=least, value=own, step=1, placeholder=f"now {holds}", help=hint
    )
    return None if value is None else int(value)


def _snippet(site: Site) -> None:
    if not site.name:
        return
    st.caption("Put this before the end of the page's body")
    st.code(
        f'<script src="{server_url()}/widget.js" data-site="{site.name}" async></script>',
        language="html",
        wrap_lines=True,
    )


if __name__ == "__main__":
    page()
