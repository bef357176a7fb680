{{/* What the schema cannot say: values that contradict each other. Each message says what to do. */}}
{{- define "kvasir.checks" -}}
{{- $values := .Values -}}
{{- if and (gt (int $values.coordinators.replicas) 1) (eq $values.etcd.mode "none") -}}
{{- fail (printf "coordinators.replicas is %d and etcd.mode is none: several coordinators need etcd to elect the one that leads; set etcd.mode to bundled or external, or coordinators.replicas to 1" (int $values.coordinators.replicas)) -}}
{{- end -}}
{{- if and (eq $values.etcd.mode "external") (not $values.etcd.external.endpoints) -}}
{{- fail "etcd.mode is external and etcd.external.endpoints is empty: list etcd's URLs, for example http://etcd.example.com:2379" -}}
{{- end -}}
{{- if and (eq $values.etcd.mode "bundled") (eq (mod (int $values.etcd.bundled.replicas) 2) 0) -}}
{{- fail (printf "etcd.bundled.replicas is %d: an even number survives no more losses than one less; use 1, 3 or 5" (int $values.etcd.bundled.replicas)) -}}
{{- end -}}
{{- if and (eq $values.model.source "repository") (not $values.model.repository.id) -}}
{{- fail "model.source is repository and model.repository.id is empty: say ORGANIZATION/NAME or ORGANIZATION/NAME/FILE.gguf" -}}
{{- end -}}
{{- if and (eq $values.model.source "url") (not (and $values.model.url.url $values.model.url.sha256)) -}}
{{- fail "model.source is url: give model.url.url and model.url.sha256, so that what is fetched is what was meant" -}}
{{- end -}}
{{- if and (eq $values.model.source "claim") (not $values.model.claim.name) -}}
{{- fail "model.source is claim and model.claim.name is empty: name the PersistentVolumeClaim that holds the model" -}}
{{- end -}}
{{- if and (ne $values.model.source "claim") (eq $values.model.cache.kind "claim") (not $values.model.cache.claim) -}}
{{- fail "model.cache.kind is claim and model.cache.claim is empty: name the PersistentVolumeClaim that fetched models go to" -}}
{{- end -}}
{{- if and (eq $values.workers.kind "LeaderWorkerSet") (ne $values.model.source "claim") (eq $values.model.cache.kind "volume") -}}
{{- fail "model.cache.kind is volume, which workers.kind LeaderWorkerSet does not have: use pod, or claim with a volume that all pods share" -}}
{{- end -}}
{{- if and $values.tls.enabled (eq $values.tls.source "secrets") -}}
{{- if not (and $values.tls.secrets.coordinators $values.tls.secrets.workers) -}}
{{- fail "tls.source is secrets: name tls.secrets.coordinators and tls.secrets.workers; docs/operate.md makes them from `kvasir certs`" -}}
{{- end -}}
{{- if and (eq $values.etcd.mode "bundled") (not (and $values.etcd.bundled.serverSecret $values.etcd.bundled.clientSecret)) -}}
{{- fail "tls.source is secrets and etcd.mode is bundled: name etcd.bundled.serverSecret and etcd.bundled.clientSecret, or let cert-manager make them (tls.source certManager)" -}}
{{- end -}}
{{- end -}}
{{- if and $values.gateway.enabled $values.tls.enabled (eq $values.tls.source "secrets") (not (and $values.tls.secrets.gateway $values.tls.secrets.gatewayClient)) -}}
{{- fail "tls.source is secrets and gateway.enabled is true: name tls.secrets.gateway (what it shows to clients) and tls.secrets.gatewayClient (what it shows to coordinators, kvasir://client/NAME)" -}}
{{- end -}}
{{- if and $values.gateway.enabled (not $values.tls.enabled) $values.apiKeys.secretName (not $values.gateway.keySecret.name) -}}
{{- fail "apiKeys.secretName is set, and the gateway has no key to show to coordinators: name gateway.keySecret.name, or set tls.enabled, so that it has a certificate" -}}
{{- end -}}
{{- if and $values.tls.enabled (eq $values.tls.source "certManager") (not $values.tls.certManager.issuer.name) -}}
{{- fail "tls.source is certManager and tls.certManager.issuer.name is empty: name an Issuer or ClusterIssuer that has an authority of its own (its secrets hold ca.crt)" -}}
{{- end -}}
{{- if and $values.autoscaling.enabled (lt (int $values.autoscaling.maxReplicas) (int $values.autoscaling.minReplicas)) -}}
{{- fail (printf "autoscaling.maxReplicas is %d, less than autoscaling.minReplicas, which is %d" (int $values.autoscaling.maxReplicas) (int $values.autoscaling.minReplicas)) -}}
{{- end -}}
{{- if and (eq $values.model.source "url") (not (regexMatch "^[0-9a-f]{64}$" $values.model.url.sha256)) -}}
{{- fail (printf "model.url.sha256 is %q: 64 digits from 0 to f are meant, as sha256sum prints them" $values.model.url.sha256) -}}
{{- end -}}
{{- if not (regexMatch "^[0-9]+([.][0-9]+)?([kKmMgGtT]([iI]?[bB])?|[bB])?$" $values.workers.kvMemory) -}}
{{- fail (printf "workers.kvMemory is %q, which is no size; write for example 512MiB or 32GiB" $values.workers.kvMemory) -}}
{{- end -}}
{{- $group := "[1-9][0-9]*(:(both|prefill|decode))?" -}}
{{- if not (regexMatch (printf "^%s(,%s)*$" $group $group) (include "kvasir.groups" .)) -}}
{{- fail (printf "groups is %q: say how many groups, as in \"2\", or the workers of each, as in \"1,4\" or \"1:prefill,4:decode\"" (include "kvasir.groups" .)) -}}
{{- end -}}
{{- if lt (int (include "kvasir.wanted" .)) 1 -}}
{{- fail (printf "workers.spares is %d, and no worker is left to compute: set workers.replicas higher" (int $values.workers.spares)) -}}
{{- end -}}
{{- if regexMatch "^[0-9]+$" (include "kvasir.groups" .) -}}
{{- if gt (int (include "kvasir.groups" .)) (int (include "kvasir.wanted" .)) -}}
{{- fail (printf "groups is %s, and there are %s workers for them: a group needs one at least" (include "kvasir.groups" .) (include "kvasir.wanted" .)) -}}
{{- end -}}
{{- else -}}
{{- $sum := 0 -}}
{{- range $group := splitList "," (include "kvasir.groups" .) -}}
{{- $sum = add $sum (int (first (splitList ":" $group))) -}}
{{- end -}}
{{- if ne (int $sum) (int (include "kvasir.wanted" .)) -}}
{{- fail (printf "groups is %s, %d workers in all, and there are %s: set workers.replicas (and workers.spares) so that they agree" (include "kvasir.groups" .) (int $sum) (include "kvasir.wanted" .)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
