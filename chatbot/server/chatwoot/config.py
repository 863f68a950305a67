"""Which site belongs to which Chatwoot: the setting ``chatwoot``, read once at start."""

from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator

from chatbot.errors import SettingsError
from chatbot.settings import Settings


class ChatwootSite(BaseModel):
    """``url``: of the Chatwoot installation, the only address that is ever called for this site.
    ``token``: the agent bot's access token. ``secret``: what its webhooks are signed with."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    url: str
    account: int = Field(ge=1)
    token: str = Field(min_length=1)
    secret: str = Field(min_length=1)

    @field_validator("url")
    @classmethod
    def _address(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
            raise ValueError("give the address of the installation, e.g. https://chat.example")
        if parts.query or parts.fragment:
            raise ValueError("the address of the installation has no ? and no #")
        return url.rstrip("/")


_SITES: TypeAdapter[dict[str, ChatwootSite]] = TypeAdapter(dict[str, ChatwootSite])


def chatwoot_sites(settings: Settings) -> dict[str, ChatwootSite]:
    """By the name of our site.

    Raises:
        SettingsError: names what is wrong, and none of the secrets.
    """
    text = settings.chatwoot.get_secret_value()
    if not text:
        return {}
    try:
        return _SITES.validate_json(text)
    except ValidationError as error:
        problems = [
            f"{'.'.join(str(part) for part in item['loc']) or 'value'}: {item['msg']}"
            for item in error.errors(include_url=False, include_input=False)
        ]
        raise SettingsError(f"FRONTDESK_CHATWOOT: {'; '.join(problems)}") from None
