"""A real collector, somebody else's: what it received is what it prints."""

import os
import re
from dataclasses import dataclass, field

import rotel

from cluster import free_address
from processes import Process
from waiting import until

UNITS = {"s": "_seconds", "By": "_bytes"}
VALUE = re.compile(r"^(\w+)\((.*)\)$", re.DOTALL)


@dataclass
class Span:
    service: str
    pid: int
    trace: str = ""
    parent: str = ""
    id: str = ""
    name: str = ""
    kind: str = ""
    status: str = ""
    start: int = 0
    end: int = 0
    attributes: dict = field(default_factory=dict)
    links: list = field(default_factory=list)


class Collector:
    def __init__(self, folder, what, name="collector", grpc=None, http=None):
        """`what`: traces or metrics."""
        agent = os.path.join(os.path.dirname(rotel.__file__), "rotel-agent")
        grpc, http = grpc or free_address(), http or free_address()
        self.grpc, self.http = f"http://{grpc}", f"http://{http}"
        command = [agent, "start", "--otlp-grpc-endpoint", grpc, "--otlp-http-endpoint", http]
        command += ["--exporter", "blackhole", "--debug-log", what, "--debug-log-verbosity", "detailed"]
        command += ["--pid-file", folder / f"{name}.pid", "--log-file", folder / f"{name}.agent"]
        self._process = Process(command, folder, name)
        self._read, self._rest = 0, []
        self.spans, self.points, self.types = [], {}, {}
        until(lambda: "Starting Rotel" in self._process.output_path.read_text(), "the collector listens")

    def stop(self):
        return self._process.stop()

    def receive(self):
        """Reads on. What is printed is read when what follows it has come, or when nothing follows it."""
        with open(self._process.output_path, errors="replace") as printed:
            printed.seek(self._read)
            text = printed.read()
        whole, newline, _ = text.rpartition("\n")
        if not newline:
            return self
        self._read += len((whole + newline).encode())
        lines = self._rest + whole.split("\n")
        starts = [at for at, line in enumerate(lines) if line.startswith(("ResourceSpans #", "ResourceMetrics #"))]
        if not starts:
            self._rest = lines
            return self
        for begin, end in zip(starts, starts[1:]):
            self._take(lines[begin:end])
        self._rest = lines[starts[-1] :]
        return self

    def flush(self):
        """The last message is whole when the collector has ended."""
        self.receive()
        if self._rest:
            self._take(self._rest)
            self._rest = []
        return self

    def await_spans(self, trace, holds, what):
        """The spans of a trace, once they are as they should be."""

        def found():
            spans = self.peek(trace)
            return spans if holds(spans) else None

        return until(found, lambda: f"{what}; there are {[(span.name, span.service) for span in self.peek(trace)]}")

    def peek(self, trace):
        self.receive()
        # Also those of the message that is still to be followed by another: a span printed in part has no times.
        last = [span for span in _spans(self._rest) if span.end]
        return [span for span in self.spans + last if span.trace == trace]

    def traces(self):
        self.receive()
        return {span.trace for span in [*self.spans, *_spans(self._rest)]}

    def _take(self, lines):
        if lines[0].startswith("ResourceSpans"):
            self.spans += _spans(lines)
        else:
            self._take_metrics(lines)

    def samples(self, service, pid):
        """The last values, by the names that Prometheus would give them."""
        self.receive()
        found = self.points.items()
        return {key: number for (of, by, key), (_, number) in found if (of, by) == (service, pid)}

    def _take_metrics(self, lines):
        resource = _resource(lines)
        service, pid = resource.get("service.name"), resource.get("process.pid")
        for metric in _split(lines, "Metric #"):
            fields = dict(_fields(metric[:9]))
            name, unit, kind = fields["Name"], fields["Unit"], fields["DataType"]
            if kind == "Sum":
                assert fields["IsMonotonic"] == "true" and fields["AggregationTemporality"].endswith("CUMULATIVE")
            self.types[service, name] = (kind, unit)
            for point in [*_split(metric, "NumberDataPoints #"), *_split(metric, "HistogramDataPoints #")]:
                self._take_point(service, pid, prometheus_name(name, unit, kind), kind, point)

    def _take_point(self, service, pid, name, kind, lines):
        labels = tuple(sorted((label.replace(".", "_"), str(told)) for label, told in _attributes(lines)))
        time = int(_after(lines, "Timestamp: "))
        values = (
            {"": float(_after(lines, "Value: "))}
            if kind != "Histogram"
            else {
                "_count": float(_after(lines, "Count: ")),
                "_sum": float(_after(lines, "Sum: ")),
            }
        )
        for part, number in values.items():
            place = service, pid, (name + part, labels)
            if self.points.get(place, (0, 0))[0] <= time:
                self.points[place] = time, number


def prometheus_name(name, unit, kind):
    """By the rules of OpenTelemetry's own exporter."""
    name = name.replace(".", "_")
    suffix = UNITS.get(unit, "_ratio" if unit == "1" and kind == "Gauge" else "")
    name += "" if name.endswith(suffix) else suffix
    return f"{name}_total" if kind == "Sum" else name


def _spans(lines):
    resource = _resource(lines)
    spans = []
    for part in _split(lines, "Span #"):
        span = Span(resource.get("service.name"), resource.get("process.pid"))
        text = {}
        for line in part:
            name, colon, told = line.partition(":")
            if colon and not line.lstrip().startswith("->"):
                text.setdefault(name.strip(), told.strip())
        span.trace, span.parent, span.id = text.get("Trace ID", ""), text.get("Parent ID", ""), text.get("ID", "")
        span.name, span.kind = text.get("Name", ""), text.get("Kind", "").removeprefix("SPAN_KIND_")
        span.status = text.get("Status code", "").removeprefix("STATUS_CODE_")
        span.start, span.end = int(text.get("Start time", 0)), int(text.get("End time", 0))
        links = part.index("Links:") if "Links:" in part else len(part)
        span.attributes = dict(_attributes(part[:links]))
        span.links = [(_after(link, "-> Trace ID: "), _after(link, "-> ID: ")) for link in _split(part, "SpanLink #")]
        spans.append(span)
    return spans


def _resource(lines):
    ends = [at for at, line in enumerate(lines) if line.startswith("Scope")]
    return dict(_attributes(lines[: ends[0] if ends else len(lines)]))


def _split(lines, mark):
    starts = [at for at, line in enumerate(lines) if line.startswith(mark)]
    return [lines[begin:end] for begin, end in zip(starts, [*starts[1:], len(lines)])]


def _attributes(lines):
    for line in lines:
        name, colon, told = line.strip().removeprefix("-> ").partition(": ")
        typed = VALUE.match(told)
        if colon and line.strip().startswith("-> ") and typed:
            kind, text = typed.groups()
            yield name, int(text) if kind == "Int" else float(text) if kind == "Double" else text


def _fields(lines):
    for line in lines:
        name, colon, told = line.strip().removeprefix("-> ").partition(":")
        if colon:
            yield name, told.strip()


def _after(lines, mark):
    for line in lines:
        if line.strip().startswith(mark):
            return line.strip().removeprefix(mark)
    raise AssertionError(f"no `{mark}` in {lines}")
