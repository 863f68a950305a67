"""The console's pages, one script each; :mod:`ui.app` puts them into the navigation.

Not called ``pages``: beside a folder of that name Streamlit may run a page without the main script,
and so without the login.
"""
