"""The command `adaptive serve`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ...contract.errors import WrongUsageError
from ...runtime.commands.options.common import PATH
from ..settings import Settings
from .values import parse_bytes, read_keys

if TYPE_CHECKING:
    from ..observe.logs import Format, Level

DEFAULTS = Settings()


@click.command(epilog="\b\nExample: adaptive serve --model demo --port 8000")
@click.option("--model", "models", multiple=True, metavar="MODEL",
              help="Folder of an exported model, or name of its run; repeat for several, the first is the default. "
                   "Left out: the newest under runs/.")  # fmt: skip
@click.option("--host", default=DEFAULTS.host, show_default=True, metavar="ADDRESS",
              help="Address to listen at; 0.0.0.0 for every one of this machine.")  # fmt: skip
@click.option("--port", type=click.IntRange(0, 65535), default=DEFAULTS.port, show_default=True,
              help="Port to listen at; 0 takes a free one.")  # fmt: skip
@click.option("--api-key-file", type=PATH, metavar="FILE",
              help="File of keys, one a line, with a name before each: `alice KEY`. Left out: everyone may use the "
                   "server.")  # fmt: skip
@click.option("--cors-origin", "cors_origins", multiple=True, metavar="ORIGIN",
              help="Origin whose pages may call the server, such as https://chat.example; repeat.")  # fmt: skip
@click.option("--allowed-host", "allowed_hosts", multiple=True, metavar="NAME",
              help="Name under which clients reach the server, such as chat.example behind a proxy; repeat. By default "
                   "localhost where --host is of this machine alone, else any.")  # fmt: skip
@click.option("--max-batch", type=click.IntRange(1, 1024), default=DEFAULTS.max_batch, show_default=True,
              help="Texts of one model to compute at a time.")  # fmt: skip
@click.option("--max-queue", type=click.IntRange(0, 100_000), default=DEFAULTS.max_queue, show_default=True,
              help="Requests that may wait, all models together; more get the status 429.")  # fmt: skip
@click.option("--kv-memory", type=parse_bytes, metavar="SIZE",
              help="Memory for keys, values and states of all models, such as 512M or 4G; by default half of what "
                   "is free.")  # fmt: skip
@click.option("--timeout", type=click.FloatRange(0, min_open=True), default=DEFAULTS.timeout, show_default=True,
              metavar="SECONDS", help="Most time of a request, from its arrival to its last token.")  # fmt: skip
@click.option("--shutdown-timeout", type=click.FloatRange(0), default=DEFAULTS.shutdown_timeout, show_default=True,
              metavar="SECONDS", help="Time for requests to end after SIGTERM or Ctrl-C.")  # fmt: skip
@click.option("--auto-compute", type=click.FloatRange(0, 1, min_open=True), metavar="LEAST",
              help="Lower the dial of requests that do not set it while the server is busy, to LEAST at most; for a "
                   "calibrated model.")  # fmt: skip
@click.option("--target-ms-per-token", type=click.FloatRange(0, min_open=True), metavar="MS",
              help="Lower it as the time between two tokens nears MS, too; by default only as the queue "
                   "grows.")  # fmt: skip
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True,
              help="auto takes CUDA if it works.")  # fmt: skip
@click.option("--target", type=click.Choice(["auto", "portable", "cpu", "cuda"]), default="auto", show_default=True,
              help="Graph of the models to run; auto takes the fastest that works here.")  # fmt: skip
@click.option("--threads", type=click.IntRange(1), metavar="N",
              help="Threads of one operator; by default one per core, or one for a small model.")  # fmt: skip
@click.option("--log-level", default="info", show_default=True,
              type=click.Choice(["debug", "info", "warning", "error"]),
              help="The least to log; debug logs the requests of probes too.")  # fmt: skip
@click.option("--log-format", type=click.Choice(["auto", "json", "plain"]), default="auto", show_default=True,
              help="auto takes plain lines on a terminal, else JSON.")  # fmt: skip
@click.option("--ray", is_flag=True,
              help="Run replicas on Ray Serve, on the cluster of RAY_ADDRESS or else here; extra [ray].")  # fmt: skip
@click.option("--replicas", default="1", show_default=True, metavar="LEAST[:MOST]",
              help="Replicas with --ray; Ray adds and removes them with the load.")  # fmt: skip
@click.pass_context
def serve(
    ctx: click.Context,
    /,
    models: tuple[str, ...],
    host: str,
    port: int,
    api_key_file: Path | None,
    cors_origins: tuple[str, ...],
    allowed_hosts: tuple[str, ...],
    max_batch: int,
    max_queue: int,
    kv_memory: int | None,
    timeout: float,
    shutdown_timeout: float,
    auto_compute: float | None,
    target_ms_per_token: float | None,
    device: str,
    target: str,
    threads: int | None,
    log_level: Level,
    log_format: Format,
    ray: bool,
    replicas: str,
) -> None:
    """Answer requests over HTTP: the API of OpenAI, parts of Anthropic's, and a web page at /.

    Every response says how much of the model it took; a request may set that with `compute`.

    The first SIGTERM or Ctrl-C lets requests end within --shutdown-timeout, a second one ends them at once.
    """
    keys = () if api_key_file is None else read_keys(api_key_file)
    if target_ms_per_token is not None and auto_compute is None:
        raise WrongUsageError(
            "found --target-ms-per-token without --auto-compute, expected both: it is the objective of the dial that "
            "--auto-compute lets the server move; add --auto-compute 0.3"
        )
    settings = Settings(
        models=models, host=host, port=port, device=device, target=target, threads=threads, api_keys=keys,
        cors_origins=cors_origins, allowed_hosts=allowed_hosts,
        max_queue=max_queue, max_batch=max_batch, kv_memory=kv_memory, timeout=timeout,
        shutdown_timeout=shutdown_timeout, auto_compute=auto_compute, target_ms_per_token=target_ms_per_token,
    )  # fmt: skip
    import asyncio

    from ..application.process import listen, run
    from ..observe.logs import configure_logs

    configure_logs(log_level, log_format)
    if ray:
        from ..replicas.amount import Replicas, parse_replicas

        least, most = parse_replicas(replicas)
        amount = Replicas(least=least, most=most, cpus=threads or 1, gpus=int(device == "cuda"))
        from ..replicas.run import run as run_on_ray

        ctx.exit(run_on_ray(settings, amount))
    if replicas != "1":
        raise WrongUsageError(f"found --replicas {replicas} without --ray, expected both; add --ray")
    with listen(host, port) as listener:
        ctx.exit(asyncio.run(run(settings, listener)))
