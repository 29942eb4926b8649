"""The endpoints about the server: its models, its state, its health."""

from importlib.metadata import version

from starlette.requests import Request
from starlette.responses import Response

from ..protocols.names import find_model
from ..protocols.openai.models import describe, model_list
from ..protocols.ours.props import Health, props
from .requests import json_answer, scheduler_of, settings_of


async def models(request: Request) -> Response:
    """List the models and their named dials."""
    return json_answer(model_list(scheduler_of(request).models()))


async def one_model(request: Request) -> Response:
    """Describe one model."""
    name = request.path_params["name"]
    model, _ = find_model(scheduler_of(request).models(), name)
    return json_answer(describe(model, name))


async def properties(request: Request) -> Response:
    """Describe the server, its models and its load."""
    return json_answer(props(scheduler_of(request), settings_of(request), version("adaptive-lm")))


async def live(_: Request) -> Response:
    """Say that the process answers."""
    return json_answer(Health(status="live"))


async def ready(request: Request) -> Response:
    """Say whether requests are accepted: 200, or 503 while models load, the server drains, or an engine has failed."""
    status = scheduler_of(request).status
    return json_answer(Health(status=status), status=200 if status == "ready" else 503)
