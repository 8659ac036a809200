"""Everything that touches MLflow: the store, a run's way into it, and the way back out for reports.

Nothing else imports MLflow, and here it is imported inside functions, because that takes a second.
"""

from dgharness.rundir import DatasetInput
from dgharness.tracking.artifacts import Artifacts
from dgharness.tracking.fetch import fetch_run
from dgharness.tracking.groups import finish_group, group_texts, keep_result, start_group
from dgharness.tracking.records import finished_hashes, load_records
from dgharness.tracking.register import register_model
from dgharness.tracking.store import Store, open_store, prepare_store, public, tracking_uri
from dgharness.tracking.sync import Synced, deliver_into, sync
from dgharness.tracking.tracker import Tracker, provenance

__all__ = [
    "Artifacts",
    "DatasetInput",
    "Store",
    "Synced",
    "Tracker",
    "deliver_into",
    "fetch_run",
    "finish_group",
    "finished_hashes",
    "group_texts",
    "keep_result",
    "load_records",
    "open_store",
    "prepare_store",
    "provenance",
    "public",
    "register_model",
    "start_group",
    "sync",
    "tracking_uri",
]
