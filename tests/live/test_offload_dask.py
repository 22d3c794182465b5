"""The same function on other machines: an executor of a Dask cluster."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import apps.heavy_tasks as tasks
from lowmem_wsgi import offload

distributed: Any = pytest.importorskip("distributed", reason="dask[distributed] is not installed")


# Dask's own: it leaves sockets and loops to the collector, and warns of what it needs itself.
@pytest.mark.filterwarnings("default")
def test_a_cluster_makes_the_calls(tmp_path: Path) -> None:
    import dask

    with (
        dask.config.set(temporary_directory=str(tmp_path)),
        distributed.LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            host="127.0.0.1",
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        there = offload(tasks.plain, executor=client.get_executor())
        pid, number = there(41)
        assert (number, pid == os.getpid()) == (42, False)
        assert [future.result(60)[1] for future in map(there.submit, range(5))] == [1, 2, 3, 4, 5]
        with pytest.raises(ZeroDivisionError):
            offload(tasks.divide, executor=client.get_executor)(0)
