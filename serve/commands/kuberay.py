"""The application of `deploy/kubernetes/rayservice.yaml`: settings as the manifest gives them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...contract.errors import UserError


def application(args: Mapping[str, Any]) -> Any:
    """Return the application for Ray Serve.

    Args:
        args: Fields of `Settings`; `models` may be one folder; `api_key_file` and `replicas` are those of the command
            line; `cpus` and `gpus` are what Ray sets aside for a replica.

    Raises:
        UserError: There is no such setting, or a value is wrong.
    """
    import dataclasses

    from ..replicas.amount import Replicas, parse_replicas
    from ..replicas.deployment import deployment
    from ..settings import Settings
    from .values import read_keys

    values = dict(args)
    cpus, gpus = float(values.pop("cpus", 1)), float(values.pop("gpus", 0))
    least, most = parse_replicas(str(values.pop("replicas", "1")))
    if "api_key_file" in values:
        values["api_keys"] = read_keys(Path(values.pop("api_key_file")))
    if isinstance(values.get("models"), str):
        values["models"] = (values["models"],)
    names = [field.name for field in dataclasses.fields(Settings)]
    unknown = sorted(set(values) - set(names))
    if unknown:
        raise UserError(
            f"found the setting {unknown[0]!r}, expected cpus, gpus, replicas, api_key_file or one of "
            f"{', '.join(names)}"
        )
    values["models"] = tuple(values.get("models", ()))
    return deployment(Settings(**values), Replicas(least=least, most=most, cpus=cpus, gpus=gpus))
