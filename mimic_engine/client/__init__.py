"""Client of the service: :class:`Client`, and :class:`AsyncClient` for asyncio."""

from mimic_engine.client.client import (
    AsyncClient,
    Client,
    LinkAnswer,
    Options,
    Retries,
    ServiceError,
    UnreachableError,
)

__all__ = ["AsyncClient", "Client", "LinkAnswer", "Options", "Retries", "ServiceError", "UnreachableError"]
