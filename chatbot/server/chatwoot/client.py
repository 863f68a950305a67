"""The calls of Chatwoot's API that the bot makes. Only the configured address is called, and no
redirect is followed, so that nothing that Chatwoot says can lead us elsewhere."""

from dataclasses import dataclass
from typing import Any

import httpx

from chatbot.errors import FrontdeskError
from chatbot.server.chatwoot.config import ChatwootSite

SECONDS = 10.0
AGAIN = (401, 403, 408, 425, 429)  # somebody may mend the settings, or it is too much now


class Unreached(FrontdeskError):
    """It was not done, and may be tried again."""


class Unsure(FrontdeskError):
    """It may have been done: the answer was lost."""


class Refused(FrontdeskError):
    """It will never be done, e.g. the conversation is gone."""


@dataclass(frozen=True, slots=True)
class Chatwoot:
    """One site's Chatwoot. Methods raise Unreached, Unsure or Refused."""

    http: httpx.AsyncClient
    config: ChatwootSite

    async def send(self, conversation: int, text: str) -> None:
        body = {"content": text, "message_type": "outgoing", "private": False}
        await self._post(f"conversations/{conversation}/messages", body)

    async def hand_over(self, conversation: int) -> None:
        """Give the conversation to people. Again is no harm."""
        await self._post(f"conversations/{conversation}/toggle_status", {"status": "open"})

    async def has(self, conversation: int, text: str, after: int) -> bool | None:
        """Whether a message of ours with this text came after message ``after``; None: it cannot be
        known, since an agent bot's token may not read everywhere."""
        answer = await self._get(f"conversations/{conversation}/messages")
        if answer is not None:
            return any(_ours(message, text, after) for message in answer.get("payload", []))
        answer = await self._get(f"conversations/{conversation}")  # with its last message
        last = (answer or {}).get("messages", [])
        if any(_ours(message, text, after) for message in last):
            return True
        return False if last and all(message["id"] <= after for message in last) else None

    async def _post(self, path: str, body: dict[str, Any]) -> None:
        try:
            answer = await self.http.post(self._url(path), json=body, headers=self._headers())
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise Unreached(f"Chatwoot cannot be reached: {error}") from error
        except httpx.HTTPError as error:
            raise Unsure(f"Chatwoot's answer was lost: {type(error).__name__}") from error
        if answer.status_code in AGAIN:
            raise Unreached(f"Chatwoot answered {answer.status_code}")
        if answer.status_code >= 500:
            raise Unsure(f"Chatwoot answered {answer.status_code}")
        if not answer.is_success:
            raise Refused(f"Chatwoot answered {answer.status_code}")

    async def _get(self, path: str) -> dict[str, Any] | None:
        """None: not allowed. Raises Unreached."""
        try:
            answer = await self.http.get(self._url(path), headers=self._headers())
            if answer.status_code in (401, 403):
                return None
            answer.raise_for_status()
            found: dict[str, Any] = answer.json()
        except (httpx.HTTPError, ValueError) as error:
            raise Unreached(f"Chatwoot cannot be asked: {type(error).__name__}") from error
        return found

    def _url(self, path: str) -> str:
        return f"{self.config.url}/api/v1/accounts/{self.config.account}/{path}"

    def _headers(self) -> dict[str, str]:
        return {"api_access_token": self.config.token}


def _ours(message: dict[str, Any], text: str, after: int) -> bool:
    outgoing = message.get("message_type") in (1, "outgoing")
    same = str(message.get("content") or "").strip() == text.strip()
    return outgoing and same and int(message["id"]) > after
