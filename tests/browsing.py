"""What tests of the page share: a page that notes complaints, and an agent whose calls it shows."""

from typing import Any

import openai

import taskpilot_instrument as tp


class Page:
    """A page that notes what the browser complains about."""

    def __init__(self, browser: Any, url: str, **context: Any) -> None:
        self.complaints: list[str] = []
        self._context = browser.new_context(**context)
        self.page = self._context.new_page()
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(url)
        self.page.wait_for_selector("#signals li")

    def close(self) -> list[str]:
        """Close it; return the complaints."""
        self._context.close()
        return self.complaints


@tp.observed_agent
class PlannerAgent:
    """Asks a model."""

    def run(self, client: openai.OpenAI, model: str = "gpt-4o-mini") -> None:
        """Run."""
        client.chat.completions.create(model=model, messages=[{"role": "user", "content": "x"}])
