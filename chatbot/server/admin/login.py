"""Logging in."""

import hashlib

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from pydantic import Field

from chatbot.conversation.store import store_errors
from chatbot.errors import NotAuthenticated, RateLimited
from chatbot.server.admin.common import Agent, Answer, Body, Stores
from chatbot.server.auth import signer_of
from chatbot.server.staff import Role, check_password
from chatbot.services import Services

router = APIRouter(tags=["login"])
ATTEMPTS = 5
WINDOW_SECONDS = 300
KEY = "fd:rate:login:{}"


class Credentials(Body):
    username: str = Field(min_length=1, max_length=64)
    password: str = Field(min_length=1, max_length=256)


class User(Answer):
    username: str
    role: Role


class Login(Answer):
    token: str
    expires_at: int
    user: User


@router.post("/login")
async def login(request: Request, body: Credentials, stores: Stores) -> Login:
    """Five attempts per five minutes for a name from an address; a success starts anew."""
    address = request.client.host if request.client else ""
    key = _key(body.username, address)
    await _count_attempt(stores, key)
    row = await run_in_threadpool(check_password, stores.database, body.username, body.password)
    if row is None:
        raise NotAuthenticated("the name or the password is wrong")
    with store_errors():
        await stores.redis.delete(key)
    token, expires = signer_of(stores).issue_staff(row.username, stores.settings.staff_token_hours)
    return Login(token=token, expires_at=int(expires * 1000), user=User.model_validate(row))


@router.get("/me")
def me(user: Agent) -> User:
    return User.model_validate(user)


def _key(username: str, address: str) -> str:
    return KEY.format(hashlib.sha256(f"{username}\n{address}".encode()).hexdigest()[:32])


async def _count_attempt(stores: Services, key: str) -> None:
    """Raises RateLimited. Counted before the password is looked at, so that attempts at once
    count too."""
    with store_errors():
        async with stores.redis.pipeline(transaction=True) as pipeline:
            pipeline.set(key, 0, ex=WINDOW_SECONDS, nx=True)
            pipeline.incr(key)
            pipeline.ttl(key)
            _, attempts, seconds = await pipeline.execute()
    if int(attempts) > ATTEMPTS:
        raise RateLimited(
            f"too many attempts to log in: wait {seconds} s", retry_after=float(max(seconds, 1))
        )
