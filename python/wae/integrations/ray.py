"""Predictions by a cluster, on Ray Data: a classifier for ``map_batches``, and ``wae predict --ray``.

::

    files = ray.data.read_binary_files("s3://bucket/photos", include_paths=True)
    found = files.map_batches(
        Predictor, fn_constructor_kwargs={"weights": "model.safetensors"}, batch_size=256, num_cpus=1
    )
    found.write_parquet("s3://bucket/classes")

Ray Data divides the work, and does again what a lost machine was doing.
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
"""Cores of a worker, which has the network for itself. On more of them, its threads would all wait for the
one whose core Ray's own processes are using."""

_BATCHES = 4  # that a worker gets at once: while it computes one, it reads the next
_WORKERS_PER_WRITER = 128
_ANSWERS_WITHIN = 10.0  # seconds that a cluster's address has to accept a connection


class ClusterError(WaeError, RuntimeError):
    """A cluster that cannot be reached, or could not do the work. The message says why."""


class Predictor:
    """A classifier for Ray Data's ``map_batches``: each worker has one.

    Args:
        weights: a checkpoint of a classifier, where every worker can read it.
        top: classes of each image, at most.
        engine: of :func:`wae.deploy`; None runs the network as it is.
        batch: images that the network gets at once. A batch of Ray Data's may have more: its images are read
            while the network computes.
        invert: see :func:`wae.data.input.prepare`.
        max_pixels: an image of more is an error: see :func:`wae.data.images.read_image`.
        options: of :func:`wae.deploy`.

    Raises:
        CheckpointError: as :func:`wae.storage.checkpoint.load_classifier`; also where it scores pixels.
        ValueError: as :func:`wae.inference.predict.runner`.
        EngineError, DisagreementError: as there.
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
        """A row for each file, in order, with the entries of a line of ``wae predict``.

        Args:
            files: (N,) each: ``path``, str or bytes; the files' contents as ``bytes``, or none where the
                worker is to read the files; ``error``, where it is known already that a file cannot be read.

        Returns:
            (N,) each: ``path``, str; ``classes``, a list of dictionaries, or None; ``error``, str, or None.
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


def predict(
    found: Sequence[Found],
    weights: Path,
    folder: Path,
    address: str | None = None,
    force: bool = False,
    batch: int = prediction.BATCH,
    **options: Any,
) -> list[Failed]:
    """Classify files by a cluster, into ``folder`` of Parquet files: a row for each, in any order.

    Each worker has :data:`CPUS` cores, and a GPU where the cluster has any. The folder appears when all is
    done.

    Args:
        found: the files, where every worker can read them.
        weights: likewise.
        folder: to make, where every worker can write.
        address: of the cluster, as for ``ray.init``: None is ``RAY_ADDRESS``, a cluster that was started on
            this machine, or a new one of this machine's cores.
        force: replace a folder of Parquet files and nothing else.
        batch, options: of :class:`Predictor`.

    Returns:
        The files that could not be used, by their paths; they have a row too.

    Raises:
        ClusterError: there is no such cluster, it could not do the work, or a row is missing or there twice.
        FileExistsError: something is at ``folder`` that may not be replaced.
        CheckpointError: as :func:`wae.storage.checkpoint.describe_classifier`.
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
        # No core is set aside for writing: workers have them all, and there would be none. It is little work,
        # and each process that does it takes seconds of a core to start.
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
    """Within it Ray is connected; its errors become ours."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # which a new cluster would send to Ray's makers
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
    """Raise ConnectionError where nothing listens at ``address``: Ray itself would try for minutes.

    Ray knows where to look for an ``address`` without a port.
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
    """How many workers the cluster has room for, and the GPUs of each."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    room = sum(int(node.get("CPU", 0)) // CPUS for node in nodes)
    if not room:
        raise ClusterError("Ray: the cluster has no cores")
    return gpus or room, int(gpus > 0)


def _tables(found: Sequence[Found], rows: int) -> Iterable[pa.Table]:
    """``found``, a number of files at a time, as :class:`Predictor` takes it. Names need not be UTF-8."""
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
    """``path`` as Parquet can hold it: with escapes for bytes that are no UTF-8."""
    return os.fsencode(path).decode(errors="backslashreplace")


def _column(values: Iterable[object]) -> Any:
    """(N,) objects: NumPy would make more dimensions of lists by itself."""
    listed = list(values)
    column = np.empty(len(listed), object)
    for index, value in enumerate(listed):
        column[index] = value
    return column
