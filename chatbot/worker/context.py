"""What a reply needs to know from the record: the live version and the site's system prompt.

Read anew for every reply, so that a promotion or an edited prompt holds from the next reply on.
While the database is away the last known answer stands: chats go on, and the reply still names the
version that wrote it.
"""

import asyncio

import structlog

from chatbot.errors import StoreUnavailable
from chatbot.record.database import Database
from chatbot.record.tables import Site
from chatbot.versions import Versions

log = structlog.get_logger()


class ReplyContext:
    """One per worker."""

    def __init__(self, versions: Versions, database: Database, default_prompt: str) -> None:
        self._versions = versions
        self._database = database
        self._default_prompt = default_prompt
        self._live: str | None = None
        self._prompts: dict[str, str] = {}  # as many as there are sites

    async def live_version(self) -> str:
        """Id of the version that is live now.

        Raises:
            StoreUnavailable: the database is away, and was since this worker began.
            NotFound: no version is live.
        """
        try:
            self._live = (await asyncio.to_thread(self._versions.live)).id
        except StoreUnavailable as error:
            if self._live is None:
                raise
            log.warning("worker.record_away", error=str(error), going_on_with=self._live)
        return self._live

    async def system_prompt(self, site: str) -> str:
        """The site's own, or the installation's. Raises StoreUnavailable as above."""
        try:
            self._prompts[site] = await asyncio.to_thread(self._read_prompt, site)
        except StoreUnavailable:
            if site not in self._prompts:
                raise
        return self._prompts[site]

    def _read_prompt(self, site: str) -> str:
        with self._database.session() as session:
            row = session.get(Site, site)
            return row.system_prompt if row and row.system_prompt else self._default_prompt
