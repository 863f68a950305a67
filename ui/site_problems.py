"""Why a site was not saved, in the words that stand on the form. Pure."""

FIELDS = {
    "name": "Name",
    "origins": "Origins",
    "title": "Title of the chat window",
    "welcome": "Welcome message",
    "system_prompt": "System prompt",
    "widget.quick_replies": "Quick replies",
    "widget.link_hosts": "Hosts that links may lead to",
    "widget.timezone": "Time zone",
    "widget.hours.mon": "Monday",
    "widget.hours.tue": "Tuesday",
    "widget.hours.wed": "Wednesday",
    "widget.hours.thu": "Thursday",
    "widget.hours.fri": "Friday",
    "widget.hours.sat": "Saturday",
    "widget.hours.sun": "Sunday",
    "widget.hours": "Hours",
    "widget.holidays": "Holidays",
    "widget.privacy_url": "Address of the privacy page",
}
NAME_RULE = "lower-case letters, digits and dashes, a letter or digit first, at most 63"


def in_words(message: str) -> list[str]:
    """The server's message, e.g. ``name: String should ...; widget.timezone: Value error, 'x' is
    no time zone``, as a line for each field, with the field's label."""
    return [_line(part) for part in message.split("; ")]


def _line(part: str) -> str:
    place, colon, said = part.partition(": ")
    field = next((name for name in FIELDS if f"{place}.".startswith(f"{name}.")), "")
    if not colon or not field:
        return part
    if field == "name":
        return f"{FIELDS[field]}: {NAME_RULE}"
    return f"{FIELDS[field]}: {said.removeprefix('Value error, ')}"
