"""Sites: the websites that may embed the widget, and what the bot is told there."""

import streamlit as st

from ui import session
from ui.address import server_url
from ui.answers import Site

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
