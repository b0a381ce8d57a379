"""Counters of the server in Prometheus' text format."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Of one server; several can exist in a process."""

    def __init__(self) -> None:
        self.all = CollectorRegistry()
        labels = ("method", "path", "status")
        self.requests = Counter("reid_requests", "Requests that were answered", labels, registry=self.all)
        self.seconds = Histogram("reid_request_seconds", "Duration of requests", ("path",), registry=self.all)
        self.running = Gauge("reid_running_requests", "Requests in progress", registry=self.all)
        self.batch = Histogram("reid_batch_images", "Images in one forward", buckets=SIZES, registry=self.all)

    def text(self) -> bytes:
        return generate_latest(self.all)
