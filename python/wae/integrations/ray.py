"""Predictions on a cluster by Ray Data: a classifier for ``map_batches``, and ``wae predict --ray``.

::

    files = ray.data.read_binary_files("s3://bucket/photos", include_paths=True)
    found = files.map_batches(
        Predictor, fn_constructor_kwargs={"weights": "model.safetensors"}, batch_size=256, num_cpus=1
    )
    found.write_parquet("s3://bucket/classes")

Ray Data divides the work, and repeats what a lost machine was doing.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext
from ray.exceptions import RayError

from wae.data.images import MAX_PIXELS
from wae.data.walk import Found
from wae.errors import WaeError
from wae.inference import predict as prediction
from wae.storage.checkpoint import describe_classifier, load_classifier
from wae.storage.files import written_folder

CPUS = 1
"""Cores of a worker, which has its own copy of the network. With more cores, all threads of a worker would
wait for the one whose core Ray's own processes are using."""

_BATCHES = 4  # batches that a worker gets at once: while it computes one, it reads the next
_WORKERS_PER_WRITER = 128
_ANSWERS_WITHIN = 10.0  # seconds in which a cluster must accept a connection


class ClusterError(WaeError, RuntimeError):
    """A cluster cannot be reached, or could not do the work. The message says why."""


class Predictor:
    """A classifier for Ray Data's ``map_batches``; each worker has one.

    Args:
        weights: a checkpoint of a classifier, at a path where every worker can read it.
        top: the most classes for an image.
        engine: see :func:`wae.deploy`; None runs the network as it is.
        batch: the number of images in a call of the network. A batch from Ray Data may have more; its images
            are read while the network computes.
        invert: see :func:`wae.data.input.prepare`.
        max_pixels: an image with more pixels is an error: see :func:`wae.data.images.read_image`.
        options: further arguments of :func:`wae.deploy`.

    Raises:
        CheckpointError: see :func:`wae.storage.checkpoint.load_classifier`; or it is a segmentation network.
        ValueError, EngineError, DisagreementError: see :func:`wae.inference.predict.runner`.
    """

    def __init__(
        self,
        weights: Path | str,
        top: int = 3,
        engine: str | None = None,
        batch: int = prediction.BATCH,
        invert: bool = False,
        max_pixels: int = MAX_PIXELS,
        **options: Any,
    ) -> None:
        described = describe_classifier(Path(weights))
        model = load_classifier(Path(weights))
        self._predict = partial(
            prediction.predict,
            prediction.runner(model, described.input, engine, batch, **options),
            input=described.input,
            top=top,
            batch=batch,
            invert=invert,
            max_pixels=max_pixels,
        )
        self._form = prediction.JsonLines(described.labels)

    def __call__(self, files: Mapping[str, Any]) -> dict[str, Any]:
        """Predict a batch of files: a row for each, in order, with the entries that ``wae predict`` writes.

        Args:
            files: columns of N values: ``path``, str or bytes; optionally ``bytes``, the files' contents,
                which the worker otherwise reads; optionally ``error``, why a file is known to be unreadable.

        Returns:
            Columns of N values: ``path``, str; ``classes``, a list of dictionaries, or None; ``error``, str,
            or None.
        """
        paths = [Path(os.fsdecode(path)) for path in files["path"]]
        none = [None] * len(paths)
        contents, errors = files.get("bytes", none), files.get("error", none)
        columns = zip(paths, errors, contents, strict=True)
        predictions = list(
            self._predict(found=(Found(path, error or "", read) for path, error, read in columns))
        )
        return {
            "path": _column(_text(made.path) for made in predictions),
            "classes": _column(None if made.error else self._form.classes(made) for made in predictions),
            "error": _column(made.error or None for made in predictions),
        }


class Failed(NamedTuple):
    """A file that could not be used."""

    path: str
    error: str
    """Why, without the file's name."""


def predict(
    found: Sequence[Found],
    weights: Path,
    folder: Path,
    address: str | None = None,
    force: bool = False,
    batch: int = prediction.BATCH,
    **options: Any,
) -> list[Failed]:
    """Classify files on a cluster, and write Parquet files with a row for each file, in any order.

    Each worker has :data:`CPUS` cores, and a GPU if the cluster has any. The folder appears when all work is
    done.

    Args:
        found: the files, at paths where every worker can read them.
        weights: a checkpoint of a classifier, at such a path.
        folder: the folder to make, where every worker can write.
        address: the address of the cluster, as for ``ray.init``. None stands for ``RAY_ADDRESS``, or else a
            cluster that was started on this machine, or else a new one of this machine's cores.
        force: replace a folder that holds only Parquet files.
        batch, options: see :class:`Predictor`.

    Returns:
        The files that could not be used, sorted by path. They have a row too.

    Raises:
        ClusterError: there is no such cluster, it could not do the work, or rows are missing or duplicated.
        FileExistsError: something is at ``folder`` that may not be replaced.
        CheckpointError: see :func:`wae.storage.checkpoint.describe_classifier`.
    """
    if force and folder.is_dir() and any(path.suffix != ".parquet" for path in folder.iterdir()):
        raise FileExistsError(f"{folder} holds more than Parquet files: it is not replaced")
    labelled = describe_classifier(weights).labels is not None
    with written_folder(folder.absolute(), force, "*.parquet") as new, _cluster(address):
        count, gpus = _workers()
        files = ray.data.from_arrow(list(_tables(found, _BATCHES * batch)))
        rows = files.map_batches(
            Predictor,
            fn_constructor_kwargs={"weights": weights.absolute(), "batch": batch, **options},
            batch_size=None,  # a table at a time
            compute=ActorPoolStrategy(min_size=1, max_size=count, initial_size=count),
            num_cpus=CPUS,
            num_gpus=gpus,
        )
        # Writing reserves no core, because the workers have them all and it would never get one. It is little
        # work, but each process that does it takes seconds of a core to start, so there are few.
        rows.write_parquet(
            str(new),
            ray_remote_args={"num_cpus": 0},
            concurrency=1 + count // _WORKERS_PER_WRITER,
            schema=_schema(labelled),
        )
        written = pyarrow.dataset.dataset(new, format="parquet")
        paths = written.to_table(columns=["path"])["path"].to_pylist()
        if sorted(paths) != sorted(_text(file.path) for file in found):
            wrong = f"the rows written ({len(paths):,}) are not those of the images ({len(found):,})"
            raise ClusterError(wrong)
        failed = written.to_table(filter=~pyarrow.dataset.field("error").is_null())
    return sorted(Failed(row["path"], row["error"]) for row in failed.select(["path", "error"]).to_pylist())


@contextmanager
def _cluster(address: str | None) -> Iterator[None]:
    """Connect Ray for the block, and turn its errors into ClusterErrors."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a new cluster would send them to Ray's makers
    own = not ray.is_initialized()
    try:
        if own:
            _check_reachable(address)
            ray.init(address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        DataContext.get_current().enable_progress_bars = sys.stderr.isatty()
        yield
    except (RayError, ConnectionError) as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise ClusterError(f"Ray: {lines[-1].strip() if lines else type(error).__name__}") from error
    finally:
        if own:
            ray.shutdown()


def _check_reachable(address: str | None) -> None:
    """Raise ConnectionError if nothing listens at ``address``, which Ray itself would try for minutes.

    An ``address`` without a port is left to Ray.
    """
    source = ""
    if address is None or address == "auto":
        address, source = os.environ.get("RAY_ADDRESS", ""), "RAY_ADDRESS: "
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        if parts.hostname and parts.port:
            socket.create_connection((parts.hostname, parts.port), _ANSWERS_WITHIN).close()
    except OSError as error:
        raise ConnectionError(f"{source}nothing answers at {address}: {error.strerror or error}") from None
    except ValueError as error:
        raise ConnectionError(f"{source}{address} is no address: {error}") from None


def _workers() -> tuple[int, int]:
    """The number of workers for which the cluster has room, and the number of GPUs of each."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    room = sum(int(node.get("CPU", 0)) // CPUS for node in nodes)
    if not room:
        raise ClusterError("Ray: the cluster has no cores")
    return gpus or room, int(gpus > 0)


def _tables(found: Sequence[Found], rows: int) -> Iterable[pa.Table]:
    """``found`` in tables of up to ``rows`` files, for :class:`Predictor`. Names need not be UTF-8."""
    for first in range(0, len(found), rows):
        some = found[first : first + rows]
        columns = [
            pa.array([os.fsencode(file.path) for file in some], pa.binary()),
            pa.array([file.error for file in some], pa.string()),
        ]
        yield pa.table(columns, names=["path", "error"])


def _schema(labelled: bool) -> pa.Schema:
    label = [("label", pa.string())] if labelled else []
    entry = pa.struct([("class", pa.int64()), *label, ("probability", pa.float64())])
    return pa.schema([("path", pa.string()), ("classes", pa.list_(entry)), ("error", pa.string())])


def _text(path: Path) -> str:
    """``path`` as text for Parquet, with escapes for bytes that are no UTF-8."""
    return os.fsencode(path).decode(errors="backslashreplace")


def _column(values: Iterable[object]) -> Any:
    """``values`` as an object array, (N,). From lists NumPy would make an array of more dimensions."""
    listed = list(values)
    column = np.empty(len(listed), object)
    for index, value in enumerate(listed):
        column[index] = value
    return column
