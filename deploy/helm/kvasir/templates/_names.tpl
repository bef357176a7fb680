{{/* What things are called, and how they are found. */}}

{{/* Short enough for what is appended, and for a worker's id: the name of its pod. */}}
{{- define "kvasir.name" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Where the pods of a component are. Called with (list $ component). */}}
{{- define "kvasir.componentName" -}}
{{- printf "%s-%s" (include "kvasir.name" (index . 0)) (index . 1) -}}
{{- end -}}

{{/* Called with (list $ component). */}}
{{- define "kvasir.selector" -}}
app.kubernetes.io/name: {{ (index . 0).Chart.Name }}
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- define "kvasir.labels" -}}
{{- $root := index . 0 -}}
{{ include "kvasir.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version }}
{{- end -}}

{{- define "kvasir.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "kvasir.name" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "kvasir.image" -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}

{{- define "kvasir.workerImage" -}}
{{- if .Values.workers.gpu.enabled -}}
{{- $image := .Values.workers.gpu.image -}}
{{- printf "%s:%s" $image.repository (default (printf "%s-cuda" .Chart.AppVersion) $image.tag) -}}
{{- else -}}
{{- include "kvasir.image" . -}}
{{- end -}}
{{- end -}}

{{- define "kvasir.scheme" -}}
{{- ternary "https" "http" .Values.tls.enabled -}}
{{- end -}}

{{/* Reaches coordinators also while no group serves, as workers must. */}}
{{- define "kvasir.coordinatorsHost" -}}
{{- printf "%s.%s.svc" (include "kvasir.componentName" (list . "coordinators")) .Release.Namespace -}}
{{- end -}}

{{/* The names of a coordinator's certificate, as a YAML list. */}}
{{- define "kvasir.coordinatorHosts" -}}
{{- $service := include "kvasir.name" . -}}
{{- $pods := include "kvasir.componentName" (list . "coordinators") -}}
{{- range $name := list $service $pods }}
- {{ $name }}
- {{ printf "%s.%s" $name $.Release.Namespace }}
- {{ printf "%s.%s.svc" $name $.Release.Namespace }}
{{- end }}
{{- range $ordinal := until (int .Values.coordinators.replicas) }}
- {{ printf "%s-%d.%s" $pods $ordinal (include "kvasir.coordinatorsHost" $) }}
{{- end }}
- localhost
{{- range .Values.tls.certManager.hosts }}
- {{ . }}
{{- end }}
{{- end -}}

{{/* Workers that there can be, as JSON: their ids are the names of their pods. */}}
{{- define "kvasir.workerIds" -}}
{{- $name := include "kvasir.componentName" (list . "workers") -}}
{{- $replicas := int (ternary .Values.autoscaling.maxReplicas .Values.workers.replicas .Values.autoscaling.enabled) -}}
{{- $ids := list -}}
{{- range $replica := until $replicas -}}
{{- $ids = append $ids (printf "%s-%d" $name $replica) -}}
{{- if eq $.Values.workers.kind "LeaderWorkerSet" -}}
{{- range $index := untilStep 1 (int $.Values.workers.leaderWorkerSet.size) 1 -}}
{{- $ids = append $ids (printf "%s-%d-%d" $name $replica $index) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toJson $ids -}}
{{- end -}}

{{/* Ranks that the groups want from the beginning. */}}
{{- define "kvasir.wanted" -}}
{{- $replicas := int (ternary .Values.autoscaling.minReplicas .Values.workers.replicas .Values.autoscaling.enabled) -}}
{{- $each := int (ternary .Values.workers.leaderWorkerSet.size 1 (eq .Values.workers.kind "LeaderWorkerSet")) -}}
{{- sub (mul $replicas $each) (int .Values.workers.spares) -}}
{{- end -}}

{{/* A number is taken as well as a text. */}}
{{- define "kvasir.groups" -}}
{{- .Values.groups | toString -}}
{{- end -}}
