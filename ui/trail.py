"""Walking through a filtered, paged list of conversations one by one."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ui.answers import ConversationItem, Page

Fetch = Callable[[str | None], Page[ConversationItem]]


@dataclass
class Trail:
    """Where somebody is in a list: the cursors of the pages up to this one, and its ids."""

    filters: dict[str, Any] = field(default_factory=dict)
    cursors: list[str | None] = field(default_factory=lambda: [None])
    ids: list[str] = field(default_factory=list)
    next_cursor: str | None = None
    loaded: bool = False

    def load(self, fetch: Fetch) -> Page[ConversationItem]:
        """Fetch the page we are on."""
        page = fetch(self.cursors[-1])
        self.ids = [item.id for item in page.items]
        self.next_cursor = page.next_cursor
        self.loaded = True
        return page

    def start_over(self, filters: dict[str, Any]) -> None:
        self.filters, self.cursors, self.loaded = filters, [None], False

    @property
    def has_previous_page(self) -> bool:
        return len(self.cursors) > 1

    @property
    def has_next_page(self) -> bool:
        return self.next_cursor is not None

    def turn(self, forward: bool) -> None:
        """Go to the next page or the one before; :meth:`load` fetches it."""
        if forward and self.has_next_page:
            self.cursors.append(self.next_cursor)
        elif not forward and self.has_previous_page:
            self.cursors.pop()

    def has_neighbour(self, conversation_id: str, forward: bool) -> bool:
        edge = self.has_next_page if forward else self.has_previous_page
        if conversation_id not in self.ids:
            return forward and bool(self.ids)
        at_edge = conversation_id == self.ids[-1 if forward else 0]
        return not at_edge or edge

    def neighbour(self, conversation_id: str, forward: bool, fetch: Fetch) -> str | None:
        """The conversation after (or before) this one; turns the page at its edge. One that is
        not on the page (it may have left the filter by being reviewed) is followed by the
        page's first."""
        if conversation_id not in self.ids:
            return self.ids[0] if self.ids else None
        index = self.ids.index(conversation_id) + (1 if forward else -1)
        if 0 <= index < len(self.ids):
            return self.ids[index]
        if not self.has_neighbour(conversation_id, forward):
            return None
        self.turn(forward)
        self.load(fetch)
        return self.ids[0 if forward else -1] if self.ids else None
