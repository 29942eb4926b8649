"""Settings of a server."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All that can be set for a server, whatever starts it."""

    models: tuple[str, ...] = ()
    """Folders or names of runs; () takes the newest export."""
    host: str = "127.0.0.1"
    port: int = 8000
    device: str = "auto"
    target: str = "auto"
    threads: int | None = None
    """Threads of one operator; None takes one per core, or one for a small model."""
    api_keys: tuple[tuple[str, str], ...] = ()
    """(name, key); () lets everybody in."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may call the server."""
    allowed_hosts: tuple[str, ...] = ()
    """Names that requests may give as Host; () takes those of this machine on its loopback address, else any."""
    max_queue: int = 64
    """Requests that may wait for a slot, all models together."""
    max_batch: int = 8
    """Slots of each model."""
    kv_memory: int | None = None
    """Bytes for keys, values and states of all models; None takes a share of the free memory."""
    max_body: int = 2 * 2**20
    """Bytes of a request's body."""
    timeout: float = 600.0
    """Seconds from a request to its last token."""
    shutdown_timeout: float = 30.0
    """Seconds that requests have to end after SIGTERM."""
    auto_compute: float | None = None
    """The lowest dial for requests that do not say; None keeps the dial of each request."""
    target_ms_per_token: float | None = None
    """The objective of the dial under load, in milliseconds between two tokens of a text."""
