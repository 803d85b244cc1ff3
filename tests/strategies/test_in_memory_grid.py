"""Coded rounds over Flower's own in-memory grid, one thread per node.

Messages pass by reference there; the nodes here rebuild theirs from the bytes that
would travel, so that what cannot be serialised is found.
"""

import threading
import time
from uuid import uuid4

import pytest
from flwr.app import Context, RecordDict
from flwr.common.constant import NOOP_ACCOUNT_NAME, NOOP_FLWR_AID
from flwr.proto.task_pb2 import Task
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.server.superlink.linkstate.in_memory_linkstate import RunRecord
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME
from flwr.supercore.message.message_serde import message_from_proto, message_to_proto
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.grid import InMemoryGrid
