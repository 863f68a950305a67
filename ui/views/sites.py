"""Sites: the websites that may embed the widget, and what the bot is told there."""

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from ui import session
from ui.address import server_url
from ui.answers import RetentionOwn, Site, SiteWidget
from ui.api import ApiError
from ui.show import plural
from ui.site_problems import in_words

NEW = "New site"
DAYS = {
    "mon": "Monday",
    "tue": "Tuesday",
    "wed": "Wednesday",
    "thu": "Thursday",
    "fri": "Friday",
    "sat": "Saturday",
    "sun": "Sunday",
}


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
        widget = _chat(site.widget)
        problems = st.container()  # above the button: who pressed it looks here
        submitted = st.form_submit_button("Save", type="primary")
    if not submitted:
        return
    changed = Site(
        name=name.strip(),
        origins=_lines(origins),
        title=title.strip(),
        welcome=welcome.strip(),
        system_prompt=prompt.strip(),
        widget=widget,
    )
    if not changed.name:
        _not_saved(problems, ["Name: give the site one, e.g. shop"])
        return
    _save(changed, problems)


def _save(site: Site, problems: DeltaGenerator) -> None:
    try:
        session.api().save_site(site)
    except ApiError as error:
        session.end_if_logged_out(error)
        if error.status not in (400, 422):
            session.show_error(error)  # nothing on the form is to blame
            return
        _not_saved(problems, in_words(error.message))
        return
    st.toast("Saved. New chats use it.")
    st.rerun()


def _not_saved(place: DeltaGenerator, lines: list[str]) -> None:
    place.error("Not saved.", icon=":material/error:")
    for line in lines:
        place.text(line)


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


def _chat(widget: SiteWidget) -> SiteWidget:
    """The fields of the chat's behaviour; gives what they hold now."""
    st.subheader("Chat", anchor=False)
    replies = st.text_area(
        "Quick replies, one a line",
        "\n".join(widget.quick_replies),
        help="Buttons under the welcome message, until the visitor writes. At most eight.",
    )
    links = st.text_area(
        "Hosts that links may lead to, one a line",
        "\n".join(widget.link_hosts),
        placeholder="Empty: any",
        help="With their subdomains. Other addresses are shown as text.",
    )
    st.subheader("People", anchor=False)
    zone = st.text_input("Time zone", widget.timezone, help="E.g. Europe/Berlin")
    st.caption("Hours in which people answer, e.g. 09:00-12:00, 13:00-17:30. All empty: always.")
    hours: dict[str, str] = {}
    for index, (day, name) in enumerate(DAYS.items()):
        if index % 2 == 0:  # a row for each pair, so that the tab key goes day by day
            row = st.columns(2)
        hours[day] = row[index % 2].text_input(name, ", ".join(widget.hours.get(day, [])))
    holidays = st.text_area(
        "Holidays, one a line", "\n".join(widget.holidays), placeholder="2026-12-25"
    )
    form = st.checkbox("Outside the hours, ask for an e-mail address", widget.offline_form)
    st.subheader("Privacy", anchor=False)
    consent = st.checkbox("Ask for consent before anything is stored or sent", widget.consent)
    privacy = st.text_input("Address of the privacy page", widget.privacy_url)
    return SiteWidget(
        quick_replies=_lines(replies),
        timezone=zone.strip() or "UTC",
        hours={day: spans for day, text in hours.items() if (spans := _spans(text))},
        holidays=_lines(holidays),
        link_hosts=_lines(links),
        consent=consent,
        privacy_url=privacy.strip(),
        offline_form=form,
    )


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _spans(text: str) -> list[str]:
    return [span.replace(" ", "") for span in text.split(",") if span.strip()]


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
