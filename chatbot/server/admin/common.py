"""What the admin API's modules share: who asks, the opened stores, and bounded inputs."""

from typing import Annotated

from fastapi import Depends, Query
from pydantic import BaseModel, ConfigDict

from chatbot.server.auth import StaffClaims, require_role, services_of
from chatbot.services import Services

Agent = Annotated[StaffClaims, Depends(require_role("agent"))]
Reviewer = Annotated[StaffClaims, Depends(require_role("reviewer"))]
Admin = Annotated[StaffClaims, Depends(require_role("admin"))]
Stores = Annotated[Services, Depends(services_of)]
Limit = Annotated[int, Query(ge=1, le=200)]
Cursor = Annotated[str, Query(max_length=200)]
SAFE_INT = 2**53 - 1  # larger ones are not the same everywhere (RFC 8259, section 6)


class Body(BaseModel):
    """A request. A field that is not known is an error: a misspelt one must not do nothing."""

    model_config = ConfigDict(extra="forbid")


class Answer(BaseModel):
    """A response. Times are Unix milliseconds."""

    model_config = ConfigDict(from_attributes=True)
