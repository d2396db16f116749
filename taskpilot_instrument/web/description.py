"""The API as an OpenAPI document."""

from typing import Any, Final

from taskpilot_instrument.semconv import RUN_OUTCOMES

_PROBLEM: Final = {
    "description": "A problem (RFC 9457) with a hint",
    "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
}


def _get(summary: str, *parameters: dict[str, Any], content: str = "application/json") -> dict[str, Any]:
    return {
        "get": {
            "summary": summary,
            "parameters": list(parameters),
            "responses": {"200": {"description": "OK", "content": {content: {}}}, "default": _PROBLEM},
        }
    }


def _query(name: str, description: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": description, "schema": {"type": "string"}}


def _path(name: str, description: str) -> dict[str, Any]:
    return {**_query(name, description), "in": "path", "required": True}


_WINDOW: Final = _query("window", "how far back, such as 15m or 1h; since the start by default")

DESCRIPTION: Final[dict[str, Any]] = {
    "openapi": "3.1.0",
    "info": {"title": "taskpilot_instrument", "description": "What an agent workflow does.", "version": ""},
    "components": {
        "schemas": {
            "Problem": {
                "type": "object",
                "required": ["title", "status"],
                "properties": {
                    "type": {"type": "string"},
                    "title": {"type": "string"},
                    "status": {"type": "integer"},
                    "hint": {"type": "string"},
                },
            },
            "Vote": {
                "type": "object",
                "required": ["correct"],
                "additionalProperties": False,
                "properties": {
                    "correct": {"type": "boolean"},
                    "request_id": {"type": "string", "minLength": 1, "maxLength": 200},
                    "trace_id": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
                    "token": {"type": "string", "description": "of feedback_token(run), in place of the ids"},
                    "user": {"type": "string", "minLength": 1, "maxLength": 200},
                    "comment": {"type": "string"},
                    "score": {"type": "number"},
                    "id": {"type": "string", "minLength": 1, "maxLength": 200},
                },
            },
        },
        "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
    },
    "paths": {
        "/metrics": _get("Metrics for Prometheus", content="text/plain"),
        "/signals": _get(
            "The golden signals",
            _WINDOW,
            _query("workflow", "only this workflow's runs"),
            _query("agent", "only this agent's runs"),
            _query("model", "only this model's calls"),
        ),
        "/feedback": {
            "post": {
                "summary": "Record a user's verdict on a run",
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Vote"}}},
                },
                "responses": {
                    "201": {"description": "Recorded", "content": {"application/json": {}}},
                    "default": _PROBLEM,
                },
            }
        },
        "/budgets": _get("How every budget stands"),
        "/models": _get(
            "How the models stand beside each other: success, speed, cost and correctness, with 95 % intervals",
            _WINDOW,
            _query("agent", "only this agent's calls and runs"),
            _query("reprice", "models at whose prices the same tokens are told, too, such as gpt-4.1-mini,gpt-4o"),
        ),
        "/experiments": _get("The names of the experiments"),
        "/experiments/{name}": _get(
            "What the variants of an experiment came to, and whether they differ",
            _path("name", "of the experiment"),
            _query("window", "how far back, such as 1h; figures of a window are not judged"),
        ),
        "/runs": _get(
            "The latest 200 runs of each outcome, newest first, as span trees",
            _query("outcome", f"only those that ended so: one of {', '.join(RUN_OUTCOMES)}"),
        ),
        "/state": _get("All that the page shows", _WINDOW),
        "/healthz": _get("Whether the server lives"),
    },
}  # fmt: skip
