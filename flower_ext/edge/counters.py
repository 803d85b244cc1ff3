"""What an edge counts, in Prometheus' form."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

__all__ = ["Counters"]


class Counters:
    """The counters of one edge, in a registry of its own.

    Attributes
    ----------
    registry : prometheus_client.CollectorRegistry
        Where they are; ``prometheus_client.start_http_server(port, registry=...)``
        serves them.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"flower_ext_edge_{name}", text, labels, registry=registry)

        self.opened = counter("sessions_opened", "Sessions opened.")
        self.resumed = counter("sessions_resumed", "Sessions taken up again.")
        self.evicted = counter("sessions_evicted", "Sessions dropped while idle.")
        self.caches_evicted = counter(
            "caches_evicted", "Caches dropped under the memory budget."
        )
        self.rounds = counter("rounds", "Drafts verified.")
        self.questions = counter("questions", "Questions answered.")
        self.scored = counter("texts_scored", "Texts scored.")
        self.drafted = counter("tokens_drafted", "Tokens in the drafts verified.")
        self.accepted = counter("tokens_accepted", "Of them, those accepted.")
        self.bytes_up = counter("uplink_bytes", "Bytes from devices.")
        self.bytes_down = counter("downlink_bytes", "Bytes to devices.")
        self.refusals = counter("refusals", "Messages not served.", "code")
        self.seconds = counter("verification_seconds", "Computation of the target.")
        # Of all tenants together: what one keeps is nobody else's business.
        self.blocks_sent = counter("segment_blocks_sent", "Blocks sent to devices.")
        self.blocks_unknown = counter(
            "segment_blocks_unknown", "Blocks that the text was asked for."
        )
        self.blocks_computed = counter(
            "segment_blocks_computed", "Blocks computed on demand."
        )
        self.segment_seconds = counter(
            "segment_seconds", "Looking for blocks and computing them."
        )
        self.open_sessions = Gauge(
            "flower_ext_edge_sessions_open", "Sessions open.", registry=registry
        )
        self.queue_length = Gauge(
            "flower_ext_edge_queue_length",
            "Messages that wait for the target.",
            registry=registry,
        )
        self.batch_size = Histogram(
            "flower_ext_edge_batch_size",
            "Drafts verified in one pass.",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=registry,
        )
