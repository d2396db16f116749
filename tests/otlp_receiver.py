"""An OTLP receiver on 127.0.0.1, over HTTP and over gRPC: it decodes what a backend would get."""

import gzip
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import grpc  # type: ignore[import-untyped]  # ships no types
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status


@dataclass(frozen=True)
class Event:
    """One event of a span."""

    name: str
    tags: dict[str, Any]


@dataclass(frozen=True)
class ReceivedSpan:
    """One span as it came over the wire, with the resource and the scope that it came under.

    :param parent_id: empty for the root of a trace.
    :param status: ``UNSET``, ``OK`` or ``ERROR``.
    """

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    tags: dict[str, Any]
    status: str
    message: str
    events: tuple[Event, ...]
    start_ns: int
    end_ns: int
    resource: dict[str, Any]
    scope: tuple[str, str]


@dataclass(frozen=True)
class ReceivedExport:
    """One export.

    :param path: of the URL; the method's full name over gRPC.
    :param headers: names in lower case.
    """

    path: str
    headers: dict[str, str]
    body: ExportTraceServiceRequest


class Receiver:
    """Keep every export; base of both kinds.

    :param answer: False refuses every export for good.
    """

    protocol = ""

    def __init__(self, *, answer: bool = True) -> None:
        self.answer = answer
        self.exports: list[ReceivedExport] = []
        #: Cleared, it holds every export back until it is set again.
        self.may_answer = threading.Event()
        self.may_answer.set()

    @property
    def origin(self) -> str:
        """What ``OTEL_EXPORTER_OTLP_ENDPOINT`` takes."""
        raise NotImplementedError

    def start(self) -> Self:
        """Begin to listen."""
        raise NotImplementedError

    def stop(self) -> None:
        """Stop listening; what was received stays."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.may_answer.set()
        self.stop()

    @property
    def spans(self) -> list[ReceivedSpan]:
        """Every span received, in the order of arrival."""
        return [
            _span(span, _tags(resource.resource.attributes), (scope.scope.name, scope.scope.version))
            for export in self.exports
            for resource in export.body.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def span(self, name: str) -> ReceivedSpan:
        """Return the one span of that name."""
        (found,) = [span for span in self.spans if span.name == name]
        return found

    def tree(self) -> list[str]:
        """Return the spans as indented lines, by their parent ids alone; an unknown parent is a failure."""
        spans = sorted(self.spans, key=lambda span: span.start_ns)
        assert {span.parent_id for span in spans} <= {"", *(span.span_id for span in spans)}

        def below(parent: str, depth: int) -> list[str]:
            lines = []
            for span in spans:
                if span.parent_id == parent:
                    lines += ["  " * depth + span.name, *below(span.span_id, depth + 1)]
            return lines

        return below("", 0)


class HttpReceiver(Receiver):
    """Receive OTLP as protobuf over HTTP, plain or gzipped."""

    protocol = "http/protobuf"

    def __init__(self, *, answer: bool = True) -> None:
        super().__init__(answer=answer)
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                body = self.rfile.read(int(headers["content-length"]))
                if headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                receiver.may_answer.wait(10)
                answer = ExportTraceServiceResponse().SerializeToString() if receiver.answer else b"no"
                if receiver.answer:
                    receiver.exports.append(
                        ReceivedExport(self.path, headers, ExportTraceServiceRequest.FromString(body))
                    )
                self.send_response(200 if receiver.answer else 400)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    @property
    def origin(self) -> str:
        """The base URL, without a path."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def start(self) -> Self:
        """Begin to serve."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Close the socket."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class GrpcReceiver(Receiver):
    """Receive OTLP over gRPC."""

    protocol = "grpc"

    def __init__(self, *, answer: bool = True) -> None:
        super().__init__(answer=answer)
        receiver = self

        class Service(trace_service_pb2_grpc.TraceServiceServicer):
            def Export(  # noqa: N802 - the protocol's name
                self, request: ExportTraceServiceRequest, context: Any
            ) -> ExportTraceServiceResponse:
                receiver.may_answer.wait(10)
                if not receiver.answer:
                    context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no")
                headers = {str(name): str(value) for name, value in context.invocation_metadata()}
                receiver.exports.append(ReceivedExport("TraceService/Export", headers, request))
                return ExportTraceServiceResponse()

        self._pool = ThreadPoolExecutor(2)
        self._server = grpc.server(self._pool)
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Service(), self._server)  # type: ignore[no-untyped-call]
        self._port = self._server.add_insecure_port("127.0.0.1:0")

    @property
    def origin(self) -> str:
        """The base URL."""
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> Self:
        """Begin to serve."""
        self._server.start()
        return self

    def stop(self) -> None:
        """Close the socket."""
        self._server.stop(grace=None).wait()
        self._pool.shutdown()


def _span(span: Span, resource: dict[str, Any], scope: tuple[str, str]) -> ReceivedSpan:
    return ReceivedSpan(
        name=span.name,
        kind=Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        tags=_tags(span.attributes),
        status=Status.StatusCode.Name(span.status.code).removeprefix("STATUS_CODE_"),
        message=span.status.message,
        events=tuple(Event(event.name, _tags(event.attributes)) for event in span.events),
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        resource=resource,
        scope=scope,
    )


def _tags(attributes: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in attributes}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(each) for each in value.array_value.values]
    return getattr(value, str(kind))
