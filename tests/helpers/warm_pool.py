"""A pool of Beam workers that have imported everything beforehand: ``python -m tests.helpers.warm_pool PORT COUNT``.

Beam's own pool starts Python when a worker is asked for, and Prism gives it a minute: too little for several workers on
a busy machine. Each worker is a process; it takes its name and the address of its job from its standard input.
"""

from __future__ import annotations

import subprocess
import sys
import zlib
from concurrent import futures

import grpc
from apache_beam.portability.api import beam_fn_api_pb2, beam_fn_api_pb2_grpc


class _Pool(beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolServicer):
    def __init__(self, count: int):
        command = [sys.executable, "-m", "tests.helpers.warm_pool"]
        pipe = subprocess.PIPE
        self._idle = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(count)]
        self._busy: dict[str, subprocess.Popen] = {}
        for worker in self._idle:
            assert worker.stdout is not None and worker.stdout.readline().strip() == "ready"

    def StartWorker(self, request, context):  # noqa: N802 - gRPC's name
        if not self._idle:
            return beam_fn_api_pb2.StartWorkerResponse(error="all workers of the pool are taken")
        worker = self._busy[request.worker_id] = self._idle.pop()
        assert worker.stdin is not None
        worker.stdin.write(f"{request.worker_id}\n{request.control_endpoint.url}\n")
        worker.stdin.flush()
        return beam_fn_api_pb2.StartWorkerResponse()

    def StopWorker(self, request, context):  # noqa: N802 - gRPC's name
        if request.worker_id in self._busy:
            self._busy.pop(request.worker_id).kill()
        return beam_fn_api_pb2.StopWorkerResponse()


def serve(port: int, count: int) -> None:
    """Serves a pool of ``count`` workers until it is killed; listens when all are ready."""
    pool = _Pool(count)
    server = grpc.server(futures.ThreadPoolExecutor())
    beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(pool, server)
    server.add_insecure_port(f"localhost:{port}")
    server.start()
    server.wait_for_termination()


def work() -> None:
    """Is a worker.

    Prism 2.61 keeps the short names of metrics, which each worker counts up from 1, in one table for all workers of a
    job, and then reads one's counter as another's distribution: here each counts from a number of its own.
    """
    from apache_beam.runners.worker import sdk_worker

    import quantizer_core.beam  # noqa: F401 - TensorFlow with it

    print("ready", flush=True)
    name, endpoint = (sys.stdin.readline().strip() for _ in range(2))
    sdk_worker.SHORT_ID_CACHE._last_short_id = zlib.crc32(name.encode()) << 16
    sdk_worker.SdkHarness(endpoint, worker_id=name, data_buffer_time_limit_ms=-1).run()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        serve(*map(int, sys.argv[1:]))
    else:
        work()
