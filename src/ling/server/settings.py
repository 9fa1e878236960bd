"""How the server runs: who may ask, how much, how long. How the engine runs is `EngineConfig`."""

import ipaddress
from dataclasses import dataclass

from ling.errors import ConfigError

MEBIBYTE = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Every limit of the server. Requests' own limits are in `schema/`."""

    served_names: tuple[str, ...]
    """What clients may call the model, beside "auto"; the first is what answers call it."""
    root: str = ""
    """What the model was opened by: a hub's name or a directory's last part."""
    host: str = "127.0.0.1"
    port: int = 8000
    """0: one that is free."""
    api_keys: tuple[str, ...] = ()
    """One of these must come with every request but `/health`; empty: none is needed."""
    allowed_origins: tuple[str, ...] = ()
    """Web pages that may ask, beside the server's own; "*": any."""
    allowed_hosts: tuple[str, ...] = ()
    """Further names by which a server on a loopback address is reached, such as a proxy's."""
    max_body_bytes: int = 8 * MEBIBYTE
    max_header_bytes: int = 16 * 1024
    """Of one request, all headers together."""
    max_headers: int = 64
    max_connections: int = 512
    read_seconds: float = 30.0
    """Within which a request must have arrived whole."""
    request_seconds: float = 3600.0
    """Within which a request is answered, waiting included; then it is aborted. 0: no limit."""
    shutdown_seconds: float = 10.0
    """How long running requests may go on after SIGTERM; then they are aborted."""
    stalled_seconds: float = 120.0
    """So long without a step while work waits, and `/health` says 503."""
    vllm_metrics: bool = False
    """Export the metrics under vLLM's names as well."""

    def __post_init__(self) -> None:
        if not self.served_names or not all(self.served_names):
            raise ConfigError("served_names needs at least one name, and none may be empty")
        if not self.host:
            raise ConfigError("host must not be empty; 0.0.0.0 listens at every address of this machine")
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port must lie between 0 and 65535, got {self.port}")
        for name in ("max_body_bytes", "max_header_bytes", "max_headers", "max_connections"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("request_seconds", "shutdown_seconds"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} must be a number of seconds, 0 or more, got {getattr(self, name)}")
        for key in self.api_keys:
            if not key.isascii() or not key.isprintable() or key != key.strip() or not key:
                raise ConfigError("an API key must be printable ASCII without blanks around it")

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
