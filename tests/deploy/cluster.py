"""A cluster of the chart's, as processes: for tests that need one that runs."""

from contextlib import contextmanager

from kubelet import HOST, Place, StatefulSet

# What workers dial where there is no etcd: whichever coordinator there is.
COORDINATORS = "kvasir-coordinators.llm.svc:50051"


@contextmanager
def running(values, binary, model, moved=None):
    """Coordinators and workers of a set of values, ready. `moved` says where addresses and folders are, by role."""
    moved = moved or {}
    coordinators = StatefulSet(values, "kvasir-coordinators", _place("coordinator", binary, model, moved))
    workers = StatefulSet(values, "kvasir-workers", _place("worker", binary, model, moved))
    workers.place.moved[COORDINATORS] = f"{HOST}:{coordinators.pods[0].ports['grpc']}"
    try:
        coordinators.start()
        for pod in coordinators.pods:
            pod.await_live()
            assert not pod.probe("readinessProbe"), f"{pod.name} is ready, and no worker has joined"
        workers.start()
        workers.await_ready()
        coordinators.await_ready()
        yield coordinators, workers
    finally:
        # There is nothing to drain for any more.
        coordinators.kill()
        workers.kill()


def _place(role, binary, model, moved):
    place = Place(model, {role: binary})
    place.moved |= moved.get(role, {})
    return place
