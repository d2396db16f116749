"""An OpenAI-compatible server on 127.0.0.1, for tests and for trying things out without a key.

    with EmbeddedServer() as server:
        server.script(Reply.error(429, headers={"retry-after-ms": "1"}), Reply("Hello"))
        client = openai.OpenAI(api_key="any", base_url=server.url)
        assert "Hello" == client.chat.completions.create(model="gpt-4o-mini", messages=[]).choices[0].message.content

Real clients talk to it over a real socket, so what a test sees is what the application will see:
retries, streams, connections that break, bodies that are no JSON. Answers hold no randomness; the same
request gets the same reply and the same token numbers.
"""

from taskpilot_instrument.embedded._reply import Received, Reply, ToolCall
from taskpilot_instrument.embedded._server import EmbeddedServer
from taskpilot_instrument.embedded._tokens import count_tokens

__all__ = ["EmbeddedServer", "Received", "Reply", "ToolCall", "count_tokens"]
