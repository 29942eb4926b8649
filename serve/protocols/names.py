"""Names of models in requests: the model's own, or with a dial, such as `demo@0.5`."""

from collections.abc import Sequence

from ..errors import NotFoundError, UnavailableError
from ..scheduler.job import ModelInfo


def find_model(models: Sequence[ModelInfo], name: str | None) -> tuple[ModelInfo, float | None]:
    """Return the model of that name and its dial; None takes the first model.

    Raises:
        NotFoundError: There is no such model, or it has no dial.
        UnavailableError: No model is loaded yet.
    """
    if not models:
        raise UnavailableError("no model is loaded yet; try again in a second", headers={"Retry-After": "1"})
    if name is None:
        return models[0], None
    for model in models:
        if model.name == name:
            return model, None
    stem, _, dial = name.rpartition("@")
    for model in models:
        if model.name == stem:
            return model, read_dial(model, dial)
    known = ", ".join(model.name for model in models[:10])
    raise NotFoundError(
        f"there is no model {name[:80]!r}, this server has {known}; GET /v1/models lists them",
        code="model_not_found",
        param="model",
    )


def read_dial(model: ModelInfo, text: str) -> float:
    """Return the number after the `@` of a name.

    Raises:
        NotFoundError: It is none, or the model has no dial.
    """
    try:
        dial = float(text)
    except ValueError:
        dial = 0.0
    if not 0 < dial <= 1:
        message = (
            f"found the dial {text[:20]!r} in the model's name, expected a number above 0 to 1, as in {model.name}@0.5"
        )
    elif model.manifest.curve is None:
        message = f"the model {model.name} is not calibrated, so it has no dial; ask for {model.name}"
    else:
        return dial
    raise NotFoundError(message, code="model_not_found", param="model")


def listed_names(model: ModelInfo) -> list[str]:
    """Return the names by which a model is listed: its own, and one for each named dial."""
    return [model.name, *(f"{model.name}@{dial:g}" for dial in model.dials)]
