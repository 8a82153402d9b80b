"""The routes of the endpoint and how answers are written. The only file that imports fastapi.

Nothing is decided here: a request is read (asked), served (session, served_model) and written down (wire).
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Annotated, Any, Protocol

from fastapi import Body, FastAPI, Path, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from engines.types import EngineId, RequestId
from rollout import __version__
from rollout.serve import wire
from rollout.serve.asked import Asked, read_chat, read_completion
from rollout.serve.errors import ApiError
from rollout.serve.gate import OPEN_TO_ALL
from rollout.serve.metrics import CONTENT_TYPE, EndpointMetrics
from rollout.serve.served_model import OnText, Reply, ServedModel
from rollout.serve.sessions import Sessions
from rollout.serve.stream import events
from rollout.serve.writer import ChatWriter, CompletionWriter, Writer

_FIGURES_DEADLINE_S = 5.0
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": wire.ErrorAnswer} for status in (400, 401, 404, 409, 413, 429, 503, 504)
}
SessionId = Annotated[str, Path(pattern=wire.SESSION_ID)]


class Backend(Protocol):
    """What the endpoint asks of the backend itself."""

    @property
    def weights_version(self) -> int: ...

    async def metrics(self) -> Mapping[str, float]: ...

    async def failures(self) -> Mapping[EngineId, str]: ...


class Routes:
    """What each route does."""

    def __init__(
        self, backend: Backend, model: ServedModel, sessions: Sessions, metrics: EndpointMetrics
    ) -> None:
        self._backend = backend
        self._model = model
        self._sessions = sessions
        self._metrics = metrics
        self._created = int(time.time())
        self.num_running: Callable[[], int] = lambda: 0

    # -- models, health, metrics ---------------------------------------------------------------------

    async def models(self) -> wire.ModelList:
        """The model that is served."""
        return wire.ModelList(data=[self._card()])

    async def model(self, model: str) -> wire.ModelCard:
        """The model that is served, by its name."""
        self._require_model(model)
        return self._card()

    async def session_models(self, session_id: SessionId) -> wire.ModelList:
        """The model that is served."""
        return await self.models()

    async def health(self, response: Response) -> wire.Health:
        """Whether turns can be served: 503 when an engine is lost or the scheduler does not answer."""
        failures: Mapping[str, str]
        try:
            async with asyncio.timeout(_FIGURES_DEADLINE_S):
                failures = {str(engine): why for engine, why in (await self._backend.failures()).items()}
        except Exception as error:  # noqa: BLE001  whatever it is, health is where it is told
            failures = {"scheduler": f"{type(error).__name__}: {error}"}
        response.status_code = 503 if failures else 200
        return wire.Health(
            status="failed" if failures else "ok",
            weights_version=self._backend.weights_version,
            failures=dict(failures),
        )

    async def prometheus(self) -> Response:
        """Figures of the endpoint and of the backend, for Prometheus."""
        figures: Mapping[str, float] = {}
        try:
            async with asyncio.timeout(_FIGURES_DEADLINE_S):
                figures = await self._backend.metrics()
        except Exception as error:
            raise ApiError(503, f"the backend tells no figures: {error}", code="engines_failed") from error
        text = self._metrics.render(figures, num_running=self.num_running(), num_sessions=len(self._sessions))
        return Response(text, media_type=CONTENT_TYPE)

    # -- chat and completions ------------------------------------------------------------------------

    async def chat(self, request: wire.ChatRequest) -> Response:
        """A chat completion that is not recorded."""
        return await self._chat(request, None)

    async def session_chat(self, session_id: SessionId, request: wire.ChatRequest) -> Response:
        """A chat completion that is a turn of a session."""
        return await self._chat(request, session_id)

    async def completion(self, request: wire.CompletionRequest) -> Response:
        """A completion that is not recorded."""
        return await self._completion(request, None)

    async def session_completion(self, session_id: SessionId, request: wire.CompletionRequest) -> Response:
        """A completion that is a turn of a session."""
        return await self._completion(request, session_id)

    async def _chat(self, request: wire.ChatRequest, session_id: str | None) -> Response:
        self._require_model(request.model)
        asked = read_chat(request, self._model.sampling)
        return await self._answer(asked, session_id, ChatWriter(self._model, asked))

    async def _completion(self, request: wire.CompletionRequest, session_id: str | None) -> Response:
        self._require_model(request.model)
        asked = read_completion(request, self._model.sampling, self._model.encode, self._model.num_ids)
        return await self._answer(asked, session_id, CompletionWriter(self._model, asked))

    async def _answer(self, asked: Asked, session_id: str | None, writer: Writer) -> Response:
        if not asked.stream:
            whole = writer.whole(await self._reply(asked, session_id))
            return Response(whole.model_dump_json(), media_type="application/json")
        told = events(lambda on_text: self._reply(asked, session_id, on_text), writer)
        first = await anext(told)
        return StreamingResponse(_with_first(first, told), media_type="text/event-stream")

    async def _reply(self, asked: Asked, session_id: str | None, on_text: OnText | None = None) -> Reply:
        if session_id is not None:
            reply = await self._sessions.at(session_id).reply(asked, on_text)
        else:
            request_id = RequestId(f"request/{uuid.uuid4().hex}")
            reply = await self._model.reply(self._model.context(asked.told), asked, request_id, on_text)
        self._metrics.turn(reply)
        return reply

    # -- sessions ------------------------------------------------------------------------------------

    async def open_session(
        self, session_id: SessionId, spec: Annotated[wire.SessionSpec | None, Body()] = None
    ) -> wire.SessionCard:
        """Begin a session and say whose trajectory it is; one that is not opened so begins when it is
        used."""
        self._sessions.open(session_id, spec or wire.SessionSpec())
        return wire.SessionCard(session_id=session_id, base_url=f"/sessions/{session_id}/v1")

    async def session_so_far(self, session_id: SessionId) -> wire.TrajectoryAnswer:
        """A session's trajectory: as it ended, or as far as it is."""
        return wire.TrajectoryAnswer.of(self._sessions.so_far(session_id))

    async def end_session(
        self, session_id: SessionId, end: Annotated[wire.SessionEnd | None, Body()] = None
    ) -> wire.TrajectoryAnswer:
        """End a session; its whole trajectory. Asking again gives the same."""
        return wire.TrajectoryAnswer.of(self._sessions.end(session_id, end or wire.SessionEnd()))

    def _card(self) -> wire.ModelCard:
        return wire.ModelCard(
            id=self._model.name,
            created=self._created,
            owned_by="dualpath-rollout",
            max_model_len=self._model.max_context_tokens,
        )

    def _require_model(self, name: str) -> None:
        if name != self._model.name:
            raise ApiError(
                404,
                f"there is no model {name[:100]!r}; this endpoint serves {self._model.name!r}",
                code="model_not_found",
                param="model",
            )


def make_app(routes: Routes) -> FastAPI:
    """The application of these routes; clients pass the Gate before it."""
    app = FastAPI(
        title="dualpath-rollout", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    app.add_exception_handler(ApiError, _told)
    app.add_exception_handler(RequestValidationError, _told_invalid)
    app.add_exception_handler(HTTPException, _told_http)
    app.add_exception_handler(Exception, _told_unforeseen)
    get, post = {"methods": ["GET"]}, {"methods": ["POST"]}
    stream: dict[str, Any] = {"content": {"text/event-stream": {}}}
    chat = {"response_model": wire.ChatAnswer, "responses": {**_ERRORS, 200: stream}, **post}
    completion = {"response_model": wire.CompletionAnswer, "responses": {**_ERRORS, 200: stream}, **post}
    prometheus = {"content": {"text/plain": {"schema": {"type": "string"}}}}
    table: list[tuple[str, Callable[..., Awaitable[object]], dict[str, Any]]] = [
        (OPEN_TO_ALL, routes.health, {**get, "responses": {503: {"model": wire.Health}}}),
        (
            "/metrics",
            routes.prometheus,
            {**get, "response_class": Response, "responses": {**_ERRORS, 200: prometheus}},
        ),
        ("/v1/models", routes.models, {**get, "responses": _ERRORS}),
        ("/v1/models/{model:path}", routes.model, {**get, "responses": _ERRORS}),
        ("/v1/chat/completions", routes.chat, chat),
        ("/v1/completions", routes.completion, completion),
        ("/sessions/{session_id}", routes.open_session, {"methods": ["PUT"], "responses": _ERRORS}),
        ("/sessions/{session_id}", routes.session_so_far, {**get, "responses": _ERRORS}),
        ("/sessions/{session_id}/end", routes.end_session, {**post, "responses": _ERRORS}),
        ("/sessions/{session_id}/v1/models", routes.session_models, {**get, "responses": _ERRORS}),
        ("/sessions/{session_id}/v1/chat/completions", routes.session_chat, chat),
        ("/sessions/{session_id}/v1/completions", routes.session_completion, completion),
    ]
    for path, endpoint, options in table:
        app.add_api_route(path, endpoint, **options)
    return app


# -- errors --------------------------------------------------------------------------------------------


async def _told(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body(), error.status, error.headers)


async def _told_invalid(request: Request, error: Exception) -> Response:
    """The first of what is wrong with a request's form."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:])
    message = f"{where}: {first['msg']}" if where else str(first["msg"])
    return await _told(
        request, ApiError(400, " ".join(message.split()), code="invalid_request", param=where or None)
    )


async def _told_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    told = ApiError(error.status_code, str(error.detail), code="http")
    return JSONResponse(told.body(), told.status, error.headers)


async def _told_unforeseen(request: Request, error: Exception) -> Response:
    """The server logs it."""
    return await _told(
        request, ApiError(500, f"an error of the endpoint's own ({type(error).__name__}); see its log")
    )


async def _with_first(first: bytes, told: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for event in told:
        yield event
