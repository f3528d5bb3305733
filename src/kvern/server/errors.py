"""Errors as HTTP answers: one body shape, the status by the class of the error."""

from __future__ import annotations

import logging
import math

import msgspec
from starlette.responses import Response

from kvern.core.errors import EngineDead, InvalidRequest, KvernError, Overloaded

logger = logging.getLogger("kvern.server")

_STATUS_OF_CODE = {
    "model_not_found": 404,
    "not_found": 404,
    "body_too_large": 413,
    "body_timeout": 408,
    "unsupported_media_type": 415,
}
_TYPE_OF_STATUS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    431: "invalid_request_error",
    503: "overloaded",
}


class GenerationFailed(KvernError):
    """The engine gave one sequence up; others are not affected."""


class ErrorDetail(msgspec.Struct):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(msgspec.Struct):
    error: ErrorDetail


class Failure(msgspec.Struct, frozen=True):
    """What the client is told: the status, the body, and when to come back."""

    status: int
    detail: ErrorDetail
    retry_after_s: float | None = None

    def body(self) -> bytes:
        return msgspec.json.encode(ErrorBody(self.detail))


def failure(status: int, message: str, *, param: str | None = None, code: str | None = None) -> Failure:
    return Failure(status, ErrorDetail(message, _TYPE_OF_STATUS.get(status, "internal_error"), param, code))


def failure_of(error: BaseException) -> Failure:
    """Map an exception to what the client is told. Unknown ones are logged and shown without any detail."""
    if isinstance(error, InvalidRequest):
        status = _STATUS_OF_CODE.get(error.code or "", 400)
        return failure(status, str(error), param=error.field, code=error.code)
    if isinstance(error, Overloaded):
        told = failure(503, str(error), code="overloaded")
        return Failure(told.status, told.detail, error.retry_after_s)
    if isinstance(error, EngineDead):
        return failure(503, "the engine is not running; it may come back", code="engine_unavailable")
    if isinstance(error, GenerationFailed):
        logger.warning("a sequence failed: %s", error)
        return failure(500, str(error), code="generation_failed")
    logger.error("a request failed", exc_info=error)
    return failure(500, "internal error; the server's log has the details", code="internal_error")


def error_response(told: Failure) -> Response:
    headers = {}
    if told.retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(told.retry_after_s)))
    if told.status == 401:
        headers["www-authenticate"] = "Bearer"
    return Response(told.body(), told.status, headers, "application/json")
