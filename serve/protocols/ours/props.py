"""`GET /props`: the models and the load of a server."""

from typing import Literal

from ...scheduler.job import ModelInfo, Scheduler, Status
from ...settings import Settings
from ..body import Body


class ModelProps(Body):
    """What a model is and can do."""

    name: str
    context: int
    """The most tokens of prompt and text together."""
    layers: int
    experts: int
    """The most experts of a layer that chooses among them; 0: no layer does."""
    heads: int
    routes_heads: bool
    """Whether heads are chosen per token."""
    exit_layers: list[int]
    chat: bool
    """Whether it was trained on conversations."""
    calibrated: bool
    """Whether it has a dial."""
    dials: list[float]
    """Points of the dial with names of their own."""
    dial: float | None
    """The `compute` of a request that does not say; None: the thresholds of training, or that of the load."""


class LoadProps(Body):
    """How busy the server is."""

    running: int
    max_batch: int
    waiting: int
    max_queue: int
    tokens_per_second: float
    """New tokens of all requests, over the last seconds."""
    dial: float | None
    """The `compute` that "auto" gives now."""


class Props(Body):
    """The whole answer."""

    version: str
    status: Literal["loading", "ready", "draining", "failed"]
    models: list[ModelProps]
    auto: bool
    """Whether `compute: "auto"` is possible: a model is calibrated."""
    load: LoadProps


class Health(Body):
    """The status of a server."""

    status: Literal["live"] | Status


def model_props(info: ModelInfo) -> ModelProps:
    """Describe a model."""
    model = info.manifest.model
    routed = [layer.num_experts for layer in model.layers if layer.routing != "dense"]
    return ModelProps(
        name=info.name,
        context=model.context_length,
        layers=model.num_layers,
        experts=max(routed, default=0),
        heads=model.num_heads,
        routes_heads=model.routes_heads,
        exit_layers=[number for number, layer in enumerate(model.layers) if layer.exit],
        chat=info.manifest.chat_template is not None,
        calibrated=info.manifest.curve is not None,
        dials=list(info.dials),
        dial=None,
    )


def props(scheduler: Scheduler, settings: Settings, version: str) -> Props:
    """Describe the server; nothing of it is secret."""
    models, load = scheduler.models(), scheduler.load()
    return Props(
        version=version,
        status=scheduler.status,
        models=[model_props(one) for one in models],
        auto=any(one.manifest.curve is not None for one in models),
        load=LoadProps(
            running=load.running,
            max_batch=settings.max_batch * max(len(models), 1),
            waiting=load.waiting,
            max_queue=settings.max_queue,
            tokens_per_second=load.tokens_per_second,
            dial=load.dial,
        ),
    )
