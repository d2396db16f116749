"""Read an OpenAI request: is it billable, which operation is it, what does it ask for."""

import re
import weakref
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from taskpilot_instrument import semconv
from taskpilot_instrument._records import LLMCall


class Surface(NamedTuple):
    """One billable endpoint.

    :param operation: ``gen_ai.operation.name``.
    :param events: True where its streams are typed events with a response inside, not chunks.
    :param is_free: True where the provider bills nothing.
    """

    operation: str
    events: bool
    is_free: bool = False


_SURFACES: Final[dict[str, Surface]] = {
    "/chat/completions": Surface(semconv.OPERATION_CHAT, events=False),
    "/completions": Surface(semconv.OPERATION_COMPLETION, events=False),
    "/responses": Surface(semconv.OPERATION_CHAT, events=True),
    "/responses/compact": Surface(semconv.OPERATION_CHAT, events=True),
    "/embeddings": Surface(semconv.OPERATION_EMBEDDINGS, events=False),
    "/images/generations": Surface(semconv.OPERATION_IMAGE, events=True),
    "/images/edits": Surface(semconv.OPERATION_IMAGE, events=True),
    "/images/variations": Surface(semconv.OPERATION_IMAGE, events=True),
    "/audio/transcriptions": Surface(semconv.OPERATION_AUDIO, events=True),
    "/audio/translations": Surface(semconv.OPERATION_AUDIO, events=True),
    "/audio/speech": Surface(semconv.OPERATION_AUDIO, events=True),
    "/moderations": Surface(semconv.OPERATION_MODERATION, events=False, is_free=True),
}
#: What was started before is asked for here, and its usage told: a response (or its cancellation), a batch.
_LATE: Final = re.compile(r"/(responses|batches)/([\w-]+)(?:/cancel)?$")
#: What may stand before the endpoint where the path is given whole: host, version, Azure deployment.
_PREFIX: Final = re.compile(r"^(?:https?://[^/]+)?(?:/openai)?(?:/v\d+)?(?:/deployments/[^/]+)?(?=/)")


def surface_of(method: str, url: str) -> Surface | None:
    """Return the billable endpoint that a request goes to, None for any other request."""
    if method.lower() != "post":
        return None
    found = _SURFACES.get(url)
    if found is not None:
        return found
    path = url.partition("?")[0].rstrip("/")
    return _SURFACES.get(_PREFIX.sub("", path if path.startswith(("/", "http")) else f"/{path}"))


def late_surface_of(method: str, url: str) -> Surface | None:
    """Return the endpoint at which something that runs in the background tells its usage, None for any other."""
    path = url.partition("?")[0].rstrip("/")
    found = _LATE.search(path)
    if found is None or method.lower() not in {"get", "post"} or path.endswith("/responses/compact"):
        return None
    return _BATCH if found[1] == "batches" else _SURFACES["/responses"]


_BATCH: Final = Surface(semconv.OPERATION_BATCH, events=False)


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
    provider = "azure.ai.openai" if isinstance(client, AzureOpenAI | AsyncAzureOpenAI) else "openai"
    for suffix, name in _PROVIDERS:
        if host is not None and (host == suffix or host.endswith(f".{suffix}")):
            provider = name
    return Server(host, port, str(url), provider)


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
