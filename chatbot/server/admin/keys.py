"""Keys of the OpenAI-compatible API and of calls."""

from typing import Annotated

from fastapi import APIRouter, Path, Response, status
from pydantic import Field

from chatbot.server.admin.common import Admin, Answer, Body, Stores
from chatbot.server.api_keys import create_key, list_keys, revoke_key

router = APIRouter(prefix="/keys", tags=["keys"])


class KeyBody(Body):
    name: str = Field(min_length=1, max_length=64, description="What the key is for.")
    site: str = Field("", max_length=64, description="Whose calls it may assist; empty: none.")


class KeyAnswer(Answer):
    id: str
    name: str
    hint: str
    site: str
    created_by: str
    created_at: int
    revoked_at: int | None


class NewKey(KeyAnswer):
    key: str


class KeyList(Answer):
    items: list[KeyAnswer]


@router.get("")
def everything(_: Admin, stores: Stores) -> KeyList:
    return KeyList(items=[KeyAnswer.model_validate(row) for row in list_keys(stores.database)])


@router.post("", status_code=status.HTTP_201_CREATED)
def create(user: Admin, stores: Stores, body: KeyBody) -> NewKey:
    """``key`` is shown this once."""
    row, key = create_key(stores.database, user.username, body.name, body.site)
    return NewKey(**KeyAnswer.model_validate(row).model_dump(), key=key)


@router.delete("/{key_id}", status_code=status.HTTP_204_NO_CONTENT)
def revoke(user: Admin, stores: Stores, key_id: Annotated[str, Path(max_length=64)]) -> Response:
    """The key lets nobody in from the next request on; its row stays."""
    revoke_key(stores.database, user.username, key_id)
    return Response(status_code=status.HTTP_204_NO_CONTENT)
