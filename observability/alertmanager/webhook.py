"""Print what Alertmanager delivers, one line for each alert: the simplest receiver there is.

python webhook.py [ADDRESS] [PORT]
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Webhook(BaseHTTPRequestHandler):
    """Take notifications of Alertmanager's webhook version 4."""

    def do_POST(self) -> None:
        """Print each alert of a notification, and say that it arrived."""
        length = int(self.headers.get("Content-Length", 0))
        for alert in json.loads(self.rfile.read(length))["alerts"]:
            labels, annotations = alert["labels"], alert["annotations"]
            print(
                f"{alert['startsAt']} {alert['status']} {labels.get('severity')} {labels['alertname']}: "
                f"{annotations.get('summary')} – {annotations.get('description')} ({annotations.get('runbook_url')})",
                flush=True,
            )
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Print nothing but alerts."""


def main(address: str = "127.0.0.1", port: str = "8080") -> None:
    """Serve until interrupted; port 0 picks a free one, and the first line printed says which."""
    server = ThreadingHTTPServer((address, int(port)), Webhook)
    print(f"listening on http://{address}:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
