"""One ASGI application over what is observed: metrics, signals, feedback, budgets, and a page to look at."""

from taskpilot_instrument.web.server import Server, serve

__all__ = ["Server", "serve"]
