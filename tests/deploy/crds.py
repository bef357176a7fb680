"""What is needed of objects that Kubernetes itself does not know: by hand, from the documentation of those who do.

Fields that are not here are not refused: these schemas say what must be there, and what type it has.
"""

TEXT = {"type": "string", "minLength": 1}
COUNT = {"type": "integer", "minimum": 0}
LABELS = {"type": "object", "additionalProperties": TEXT}
SELECTOR = {"type": "object", "required": ["matchLabels"], "properties": {"matchLabels": LABELS}}
DURATION = {"type": "string", "pattern": "^([0-9]+(h|m|s))+$"}


def _object(required, **optional):
    """Of these fields and no others."""
    return {
        "type": "object",
        "required": sorted(required),
        "properties": required | optional,
        "additionalProperties": False,
    }


def _list(of, least=1):
    return {"type": "array", "items": of, "minItems": least}


_CERTIFICATE = _object(
    {
        "secretName": TEXT,
        "issuerRef": _object({"name": TEXT, "kind": {"enum": ["Issuer", "ClusterIssuer"]}, "group": TEXT}),
    },
    commonName={"type": "string", "maxLength": 64},
    dnsNames=_list(TEXT),
    uris=_list({"type": "string", "pattern": "^kvasir://(coordinator|(worker|client|admin)/[-_.A-Za-z0-9]{1,64})$"}),
    ipAddresses=_list(TEXT),
    duration=DURATION,
    renewBefore=DURATION,
    usages=_list({"enum": ["digital signature", "server auth", "client auth"]}),
    privateKey=_object(
        {"algorithm": {"enum": ["RSA", "ECDSA", "Ed25519"]}, "encoding": {"enum": ["PKCS1", "PKCS8"]}},
        size=COUNT,
        rotationPolicy={"enum": ["Never", "Always"]},
    ),
) | {"anyOf": [{"required": [name]} for name in ("commonName", "dnsNames", "uris", "ipAddresses")]}

_RELABELING = _object({"targetLabel": TEXT, "replacement": TEXT})
_ENDPOINT = _object({"port": TEXT, "interval": DURATION, "relabelings": _list(_RELABELING)})

_RULE = _object(
    {"alert": TEXT, "expr": TEXT, "labels": LABELS, "annotations": LABELS},
    **{"for": {"type": "string", "pattern": "^[0-9]+(s|m|h)$"}},
)

_LEADER_WORKER_SET = _object(
    {
        "leaderWorkerTemplate": _object(
            {
                "size": {"type": "integer", "minimum": 1},
                # Any other restarts the whole set for one lost rank.
                "restartPolicy": {"const": "None"},
                # Held against Kubernetes' own schema elsewhere.
                "workerTemplate": {"type": "object", "required": ["metadata", "spec"]},
            }
        ),
        "startupPolicy": {"enum": ["LeaderCreated", "LeaderReady"]},
        "rolloutStrategy": _object(
            {"type": {"const": "RollingUpdate"}},
            rollingUpdateConfiguration=_object({"maxUnavailable": COUNT, "maxSurge": COUNT}),
        ),
    },
    replicas=COUNT,
)

_SCALED_OBJECT = _object(
    {
        "scaleTargetRef": _object({"name": TEXT}, apiVersion=TEXT, kind=TEXT),
        "triggers": _list(
            _object(
                {
                    "type": {"const": "prometheus"},
                    "metadata": _object({"serverAddress": TEXT, "query": TEXT, "threshold": TEXT}),
                },
                metricType={"enum": ["AverageValue", "Value"]},
            )
        ),
    },
    minReplicaCount=COUNT,
    maxReplicaCount=COUNT,
    pollingInterval=COUNT,
    advanced=_object({"horizontalPodAutoscalerConfig": _object({"behavior": {"type": "object"}})}),
)

# By API version and kind: the schema of `spec`.
SPECS = {
    ("cert-manager.io/v1", "Certificate"): _CERTIFICATE,
    ("monitoring.coreos.com/v1", "ServiceMonitor"): _object({"selector": SELECTOR, "endpoints": _list(_ENDPOINT)}),
    ("monitoring.coreos.com/v1", "PodMonitor"): _object(
        {"selector": SELECTOR, "podMetricsEndpoints": _list(_ENDPOINT)}
    ),
    ("monitoring.coreos.com/v1", "PrometheusRule"): _object(
        {"groups": _list(_object({"name": TEXT, "rules": _list(_RULE)}))}
    ),
    ("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet"): _LEADER_WORKER_SET,
    ("keda.sh/v1alpha1", "ScaledObject"): _SCALED_OBJECT,
}
