"""Staff accounts."""

from typing import Annotated

from fastapi import APIRouter, Path, Response, status
from pydantic import Field

from chatbot.server.admin.common import Admin, Answer, Body, Stores
from chatbot.server.staff import Role, create_staff, delete_staff, list_staff

router = APIRouter(prefix="/staff", tags=["staff"])
USERNAME = r"^[a-z0-9][a-z0-9._-]{0,62}$"  # one way to write a name: "Ada" is not another "ada"


class StaffBody(Body):
    username: str = Field(pattern=USERNAME)
    password: str = Field(max_length=256)
    role: Role


class StaffAnswer(Answer):
    username: str
    role: Role
    created_at: int


class StaffList(Answer):
    items: list[StaffAnswer]


@router.get("")
def everybody(_: Admin, stores: Stores) -> StaffList:
    return StaffList(items=[StaffAnswer.model_validate(row) for row in list_staff(stores.database)])


@router.post("", status_code=status.HTTP_201_CREATED)
def create(user: Admin, stores: Stores, body: StaffBody) -> StaffAnswer:
    row = create_staff(stores.database, user.username, body.username, body.password, body.role)
    return StaffAnswer.model_validate(row)


@router.delete("/{username}", status_code=status.HTTP_204_NO_CONTENT)
def remove(user: Admin, stores: Stores, username: Annotated[str, Path(max_length=64)]) -> Response:
    """The account's logins end with it."""
    delete_staff(stores.database, user.username, username)
    return Response(status_code=status.HTTP_204_NO_CONTENT)
