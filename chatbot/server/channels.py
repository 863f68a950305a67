"""Conversations that live elsewhere: on the phone, in Chatwoot. Their ids say so, and are made from
what the other side calls them, so that asking twice finds the same one. No visitor's socket opens
them, and nobody can guess them."""

import hashlib
import hmac

from chatbot.conversation.events import ConversationId, VisitorId

CALL = "call-"
CHATWOOT = "cw-"


def is_call(name: str) -> bool:
    return name.startswith(CALL)


def lives_elsewhere(name: str) -> bool:
    return name.startswith((CALL, CHATWOOT))


def call_id(secret_key: str, site: str, call: str) -> ConversationId:
    """The conversation of a call that the telephony names ``call``."""
    return ConversationId(CALL + _digest(secret_key, "call", site, call))


def chatwoot_id(secret_key: str, site: str, account: int, conversation: int) -> ConversationId:
    return ConversationId(
        CHATWOOT + _digest(secret_key, "chatwoot", site, str(account), str(conversation))
    )


def nobody_of(name: ConversationId) -> VisitorId:
    """The visitor of a call whose customer nobody named: of this call alone."""
    return VisitorId(f"v-{name.removeprefix(CALL)}")


def _digest(secret_key: str, *parts: str) -> str:
    message = "".join(f"{len(part)}:{part}" for part in parts).encode()
    return hmac.new(secret_key.encode(), message, hashlib.sha256).hexdigest()[:40]
