"""Values that must be refused, by the schema where it can and else by the chart, and what the refusal says."""

import pytest

import chart
from tools import Failed

# Flags of `helm template`, and what the message has to name.
REFUSED = [
    ("workers.replica=3", ["/workers", "replica"]),
    ("worker.replicas=3", ["worker"]),
    ("workers.replicas=0", ["/workers/replicas", "minimum"]),
    ("workers.replicas=two", ["/workers/replicas", "integer"]),
    ("workers.kind=Deployment", ["/workers/kind", "StatefulSet", "LeaderWorkerSet"]),
    ("workers.gpu.mode=quick", ["/workers/gpu/mode", "exact", "fast"]),
    ("engine.blockSize=48", ["/engine/blockSize", "64"]),
    ("engine.kvDtype=fp8", ["/engine/kvDtype", "q8_0"]),
    ("model.source=disk", ["/model/source", "claim"]),
    ("model.claim.path=/models/x.gguf", ["/model/claim/path"]),
    ("tls.source=letsencrypt", ["/tls/source", "certManager"]),
    ("etcd.mode=embedded", ["/etcd/mode", "bundled", "external"]),
    ("monitoring.otlp.traceRatio=2", ["/monitoring/otlp/traceRatio", "maximum"]),
    ("monitoring.otlp.endpoint=collector:4317", ["/monitoring/otlp/endpoint"]),
    ("service.grpcPort=70000", ["/service/grpcPort"]),
    ("coordinators.extraArgs={queue}", ["/coordinators/extraArgs/0"]),
    ("coordinators.replicas=3", ["etcd.mode", "bundled", "coordinators.replicas to 1"]),
    ("etcd.mode=external", ["etcd.external.endpoints"]),
    ("etcd.mode=bundled,etcd.bundled.replicas=2", ["etcd.bundled.replicas", "1, 3 or 5"]),
    ("model.source=url", ["model.url.sha256"]),
    ("model.source=url,model.url.url=https://x/y.gguf,model.url.sha256=ab12", ["model.url.sha256", "64 digits"]),
    ("model.source=claim", ["model.claim.name"]),
    ("model.cache.kind=claim", ["model.cache.claim"]),
    ("workers.kind=LeaderWorkerSet,model.cache.kind=volume", ["model.cache.kind", "LeaderWorkerSet"]),
    ("workers.kvMemory=lots", ["workers.kvMemory", "512MiB"]),
    ("workers.spares=2", ["workers.spares", "workers.replicas"]),
    ("groups=two", ["groups", "1:prefill,4:decode"]),
    ("groups=3", ["groups is 3", "2 workers"]),
    (r"groups=2\,2", ["groups is 2,2", "4 workers", "there are 2"]),
    ("tls.enabled=true", ["tls.secrets.coordinators", "docs/operate.md"]),
    ("tls.enabled=true,tls.source=certManager", ["tls.certManager.issuer.name"]),
    (
        "tls.enabled=true,tls.secrets.coordinators=a,tls.secrets.workers=b,etcd.mode=bundled",
        ["etcd.bundled.serverSecret"],
    ),
    (
        "gateway.enabled=true,tls.enabled=true,tls.secrets.coordinators=a,tls.secrets.workers=b",
        ["tls.secrets.gateway", "kvasir://client/NAME"],
    ),
    ("gateway.enabled=true,apiKeys.secretName=a", ["gateway.keySecret.name", "tls.enabled"]),
    ("autoscaling.enabled=true,autoscaling.maxReplicas=1", ["autoscaling.maxReplicas", "minReplicas"]),
]


@pytest.mark.parametrize(("values", "said"), REFUSED, ids=[values for values, _ in REFUSED])
def test_it_is_refused_by_name(values, said):
    with pytest.raises(Failed) as caught:
        chart.rendered("--set", values)
    for part in said:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "values", ["groups=2", r"groups=1\,1", r"groups=1:prefill\,1:decode", "workers.kvMemory=1.5GB"]
)
def test_what_is_close_to_it_is_taken(values):
    chart.rendered("--set", values)
