"""Every exception of the product, in one tree, with its wire code and HTTP status.

::

    FrontdeskError
     ├── SettingsError           a setting is unknown or has a bad value
     ├── InputError              what a person or program sent is wrong
     │    ├── RequestRefused        out of range, does not fit, not allowed here
     │    │    └── PromptTooLong       leaves no room for a reply
     │    ├── ProtocolViolation     a frame that is malformed or out of order
     │    ├── MessageTooLong        longer than the limit of the site
     │    ├── ConversationFull      it has as many events as it may have
     │    └── TranscriptError       a transcript file that cannot be read
     ├── AccessError
     │    ├── NotAuthenticated      no, wrong or expired token
     │    ├── NotAllowed            known, but without the right
     │    └── OriginRefused         the page's origin is not on the site's list
     ├── NotFound
     │    └── Erased                the conversation was erased, as its person or a rule asked for
     ├── Conflict                the state changed under the request, or forbids it
     │    ├── PromotionRefused      the report does not pass the promotion rule
     │    ├── RunActive             a training run is queued or running already
     │    └── Held                  a legal hold forbids to delete it
     ├── Overloaded              carries ``retry_after`` (seconds)
     │    ├── EngineBusy
     │    └── RateLimited
     │         └── BudgetSpent       the tokens of this day are used up
     ├── ReplyLost               its worker went away after it had begun
     ├── StoreUnavailable        Redis or the database cannot be reached
     ├── StorageFull             the disk (or the store's memory) has no room
     ├── ModelError
     │    ├── BaseModelUnavailable
     │    ├── ReplyTooSlow          the engine wrote nothing in the time a reply may take
     │    ├── AdapterInvalid        not an adapter, or does not fit its base model
     │    └── VersionCorrupt        a file's sha256 differs from the manifest
     └── TrainingError           a run cannot start or go on
          └── RunInterrupted        stopped on request; can be resumed

``str(error)`` may be shown to the person who caused it: it names what is wrong and what to do,
and never holds a secret or another person's data.
"""

from typing import ClassVar


class FrontdeskError(Exception):
    """Root of the tree. ``code`` is the wire's ``error.code``, ``http_status`` the API's.
    ``data["limit"]`` is the setting whose limit was reached, where one was."""

    code: ClassVar[str] = "internal"
    http_status: ClassVar[int] = 500

    def __init__(self, message: str, **data: object) -> None:
        super().__init__(message)
        self.message = message
        self.data = data

    def __str__(self) -> str:
        return self.message


class SettingsError(FrontdeskError):
    code = "settings"


class InputError(FrontdeskError):
    code = "bad_request"
    http_status = 422


class RequestRefused(InputError):
    code = "refused"


class PromptTooLong(RequestRefused):
    code = "context_length_exceeded"
    http_status = 400


class ProtocolViolation(InputError):
    code = "protocol"
    http_status = 400


class MessageTooLong(InputError):
    code = "too_long"
    http_status = 413


class ConversationFull(InputError):
    code = "conversation_full"


class TranscriptError(InputError):
    code = "transcript"


class AccessError(FrontdeskError):
    code = "access"
    http_status = 403


class NotAuthenticated(AccessError):
    code = "not_authenticated"
    http_status = 401


class NotAllowed(AccessError):
    code = "not_allowed"


class OriginRefused(AccessError):
    code = "origin_refused"


class NotFound(FrontdeskError):
    code = "not_found"
    http_status = 404


class Erased(NotFound):
    code = "erased"
    http_status = 410


class Conflict(FrontdeskError):
    code = "conflict"
    http_status = 409


class PromotionRefused(Conflict):
    code = "promotion_refused"


class RunActive(Conflict):
    code = "run_active"


class Held(Conflict):
    code = "held"


class Overloaded(FrontdeskError):
    code = "busy"
    http_status = 503

    def __init__(self, message: str, retry_after: float = 1.0, **data: object) -> None:
        super().__init__(message, **data)
        self.retry_after = retry_after


class EngineBusy(Overloaded):
    pass


class RateLimited(Overloaded):
    code = "rate_limited"
    http_status = 429


class BudgetSpent(RateLimited):
    code = "budget_spent"


class ReplyLost(FrontdeskError):
    code = "reply_lost"
    http_status = 503


class StoreUnavailable(FrontdeskError):
    code = "store_unavailable"
    http_status = 503


class StorageFull(FrontdeskError):
    code = "storage_full"
    http_status = 507


class ModelError(FrontdeskError):
    code = "model"


class BaseModelUnavailable(ModelError):
    code = "base_model_unavailable"


class ReplyTooSlow(ModelError):
    code = "too_slow"


class AdapterInvalid(ModelError):
    code = "adapter_invalid"


class VersionCorrupt(ModelError):
    code = "version_corrupt"


class TrainingError(FrontdeskError):
    code = "training"


class RunInterrupted(TrainingError):
    code = "run_interrupted"
