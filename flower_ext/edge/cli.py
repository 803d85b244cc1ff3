"""The command ``flower-ext edge``."""

from __future__ import annotations

import argparse
import hashlib
import signal
import threading
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

import torch
from prometheus_client import start_http_server
from transformers import PreTrainedModel

from flower_ext.edge.server import EdgeServer
from flower_ext.edge.tenants import load_tenant_secret
from flower_ext.edge.tls import server_credentials
from flower_ext.edge.tokens import load_tokens
from flower_ext.edgeprompt.service import SegmentService
from flower_ext.edgeprompt.store import KVStore
from flower_ext.errors import InvalidInputError
from flower_ext.models import DEFAULT, load_model, tokenizer_fingerprint

__all__ = ["add_arguments", "run"]

_SEGMENT_MEMORY = 256 * 2**20
_SEGMENT_DISK = 4 * 2**30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    add = parser.add_argument
    add("--model", default=DEFAULT, help="folder, Hugging Face id or 'default'")
    add(
        "--dtype",
        default="float32",
        choices=("float32", "bfloat16", "float16"),
        help="precision that the model is loaded in",
    )
    add("--fetch", action="store_true", help="download a model that is not here")
    add("--device", default="cpu", help="where the model computes (default: cpu)")
    add("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1)")
    add("--port", type=int, default=50061, help="0 takes a free one (default: 50061)")
    add("--tls-cert", help="PEM file of the certificate")
    add("--tls-key", help="PEM file of its private key")
    add("--plaintext", action="store_true", help="do without encryption")
    add("--token-file", help="name:token, or a token, in every line")
    add(
        "--vocab-size",
        type=int,
        help="ids that are verified (default: those of the tokenizer)",
    )
    add("--memory-budget", type=int, help="bytes of all sessions (default: no limit)")
    add("--max-sessions", type=int, default=256, help="sessions open (default: 256)")
    add("--max-queue", type=int, default=128, help="messages waiting (default: 128)")
    add("--max-batch", type=int, default=16, help="drafts per pass (default: 16)")
    add(
        "--segments",
        action="store_true",
        help="also compute, keep and send the KV of prompts' shared segments",
    )
    add("--segment-dir", help="folder that segments are kept in (default: none)")
    add(
        "--segment-memory",
        type=int,
        default=_SEGMENT_MEMORY,
        help="bytes of segments in memory: of all public ones, and as many of each "
        f"client's own (default: {_SEGMENT_MEMORY})",
    )
    add(
        "--segment-disk",
        type=int,
        default=_SEGMENT_DISK,
        help=f"bytes in the folder, counted in the same way (default: {_SEGMENT_DISK})",
    )
    add(
        "--tenant-secret-file",
        help="what clients' keys are made from, made if there is none (default: keys "
        "last as long as the process)",
    )
    add("--metrics-port", type=int, help="serve Prometheus counters at this port")


def run(options: argparse.Namespace) -> int:
    """Serve until a signal comes."""
    tokens = None if options.token_file is None else load_tokens(options.token_file)
    # Told before the model is loaded, which takes long.
    server_credentials(options.tls_cert, options.tls_key, options.plaintext)
    secret = _tenant_secret(options)
    model, tokenizer = load_model(
        options.model,
        fetch=options.fetch,
        dtype=getattr(torch, options.dtype),
        device=options.device,
    )
    vocab_size = options.vocab_size
    if vocab_size is None:
        vocab_size = max(tokenizer.get_vocab().values()) + 1
    server = EdgeServer(
        model,
        tokenizer_fingerprint(tokenizer),
        host=options.host,
        port=options.port,
        vocab_size=vocab_size,
        tls_cert=options.tls_cert,
        tls_key=options.tls_key,
        tokens=tokens,
        plaintext=options.plaintext,
        memory_budget=options.memory_budget,
        max_sessions=options.max_sessions,
        max_queue=options.max_queue,
        max_batch=options.max_batch,
        segments=_segments(options, model) if options.segments else None,
        tenant_secret=secret,
    )
    over = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        del number, frame
        over.set()

    with ExitStack() as stack:
        for number in (signal.SIGINT, signal.SIGTERM):
            stack.callback(signal.signal, number, signal.signal(number, end))
        ready = [
            "plaintext" if options.plaintext else "TLS",
            "no tokens" if tokens is None else f"{len(tokens)} tokens",
        ]
        if options.segments:
            ready.append("segments")
        if options.metrics_port is not None:
            ready.append(
                _serve_counters(server, options.metrics_port, options.host, stack)
            )
        stack.enter_context(server)
        print(
            f"flower-ext edge: {options.model} ({vocab_size} ids) at {server.address}, "
            + ", ".join(ready),
            flush=True,
        )
        over.wait()
    return 0


def _tenant_secret(options: argparse.Namespace) -> bytes | None:
    """Return what clients' keys are made from, if it is in a file."""
    if not options.segments:
        for name in ("segment_dir", "tenant_secret_file"):
            if getattr(options, name) is not None:
                shown = name.replace("_", "-")
                raise InvalidInputError(f"--{shown} needs --segments.")
        return None
    if options.tenant_secret_file is None:
        return None
    return load_tenant_secret(options.tenant_secret_file)


def _segments(options: argparse.Namespace, model: PreTrainedModel) -> SegmentService:
    """Return what computes segments, and keeps each client's own apart."""
    folder = None if options.segment_dir is None else Path(options.segment_dir)

    def store(*place: str) -> KVStore:
        return KVStore(
            None if folder is None else folder.joinpath(*place),
            memory_bytes=options.segment_memory,
            disk_bytes=options.segment_disk,
        )

    def tenant_store(name: str) -> KVStore:
        # A name may have any characters, and a folder may not.
        return store("clients", hashlib.sha256(name.encode()).hexdigest()[:32])

    return SegmentService(model, store("public"), tenant_store=tenant_store)


def _serve_counters(server: EdgeServer, port: int, host: str, stack: ExitStack) -> str:
    """Serve the counters until the stack is closed, and return where."""
    try:
        http, thread = start_http_server(port, addr=host, registry=server.registry)
    except OSError as error:
        raise InvalidInputError(
            f"--metrics-port {port} cannot be listened at: {error}."
        ) from error
    stack.callback(thread.join)
    stack.callback(http.server_close)
    stack.callback(http.shutdown)
    return f"counters at http://{host}:{http.server_port}/metrics"
