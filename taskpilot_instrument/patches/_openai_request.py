"""Read an OpenAI request: what it asks for, what it may cost, and where it goes."""

import weakref
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from taskpilot_instrument._records import LLMCall
from taskpilot_instrument.patches._openai_surfaces import Surface


def body_of(options: Any) -> dict[str, Any]:
    """Return the JSON members of a request, with those that the caller added by ``extra_body``."""
    data = options.json_data
    body = data if isinstance(data, dict) else {}
    extra = options.extra_json
    return {**body, **extra} if extra and isinstance(extra, Mapping) else body


# --- where it goes ------------------------------------------------------------------------------

#: ``gen_ai.provider.name`` by host: the well-known values of the GenAI conventions.
_PROVIDERS: Final = (
    ("openai.azure.com", "azure.ai.openai"),
    ("cognitiveservices.azure.com", "azure.ai.openai"),
    ("services.ai.azure.com", "azure.ai.inference"),
    ("api.deepseek.com", "deepseek"),
    ("api.groq.com", "groq"),
    ("api.mistral.ai", "mistral_ai"),
    ("api.perplexity.ai", "perplexity"),
    ("api.x.ai", "x_ai"),
    ("api.anthropic.com", "anthropic"),
    ("api.cohere.ai", "cohere"),
    ("generativelanguage.googleapis.com", "gcp.gemini"),
    ("aiplatform.googleapis.com", "gcp.vertex_ai"),
    ("openrouter.ai", "openrouter"),
)


class Server(NamedTuple):
    """Where a client sends its requests."""

    address: str | None
    port: int | None
    base_url: str
    provider: str


#: By the client's id: a look-up that costs a third of a WeakKeyDictionary's. Entries go with their clients.
_servers: dict[int, tuple["weakref.ref[Any]", Any, Server]] = {}


def server_of(client: Any) -> Server:
    """Return where a client sends its requests; looked up once per client and base URL."""
    url, key = client._base_url, id(client)  # noqa: SLF001 - the property makes a new object each time
    known = _servers.get(key)
    if known is not None and known[0]() is client and known[1] is url:
        return known[2]
    server = _look_up_server(client, url)
    _servers[key] = (weakref.ref(client, lambda _: _servers.pop(key, None)), url, server)
    return server


def _look_up_server(client: Any, url: Any) -> Server:
    from openai import AsyncAzureOpenAI, AzureOpenAI

    host = str(url.host) or None
    port = url.port or {"https": 443, "http": 80}.get(url.scheme)
    is_azure = isinstance(client, AzureOpenAI | AsyncAzureOpenAI)
    return Server(host, port, str(url), provider_at(host, is_azure=is_azure))


def provider_at(host: str | None, *, is_azure: bool) -> str:
    """Return the provider behind a host.

    :param is_azure: what it is taken for where the host is not known.
    """
    provider = "azure.ai.openai" if is_azure else "openai"
    for suffix, name in _PROVIDERS:
        if host is not None and (host == suffix or host.endswith(f".{suffix}")):
            provider = name
    return provider


def llm_call(surface: Surface, body: dict[str, Any], server: Server, *, streamed: bool) -> LLMCall:
    """Return the record that the answer will be read into."""
    model = body.get("model")
    return LLMCall(
        surface.operation,
        model if isinstance(model, str) and model else None,
        provider=server.provider,
        server_address=server.address,
        server_port=server.port,
        base_url=server.base_url,
        streamed=streamed,
    )
