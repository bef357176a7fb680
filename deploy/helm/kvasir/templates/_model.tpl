{{/* Where the model is, how it gets there, and the flags that coordinators and workers share. */}}

{{/* What --model says. */}}
{{- define "kvasir.model" -}}
{{- if eq .Values.model.source "claim" -}}
{{- printf "/models/%s" .Values.model.claim.path -}}
{{- else if eq .Values.model.source "url" -}}
{{- printf "/models/%s" .Values.model.url.file -}}
{{- else -}}
{{- .Values.model.repository.id -}}
{{- end -}}
{{- end -}}

{{- define "kvasir.modelArgs" -}}
- {{ printf "--model=%s" (include "kvasir.model" .) | quote }}
{{- if eq .Values.model.source "repository" }}
- {{ printf "--revision=%s" .Values.model.repository.revision | quote }}
{{- end }}
{{- end -}}

{{- define "kvasir.engineArgs" -}}
{{ include "kvasir.modelArgs" . }}
- {{ printf "--kv-dtype=%s" .Values.engine.kvDtype | quote }}
- {{ printf "--weights-dtype=%s" .Values.engine.weightsDtype | quote }}
- {{ printf "--block-size=%d" (int .Values.engine.blockSize) | quote }}
{{- if .Values.workers.gpu.enabled }}
- "--device=cuda:0"
- {{ printf "--gpu-mode=%s" .Values.workers.gpu.mode | quote }}
{{- end }}
{{- end -}}

{{- define "kvasir.modelVolume" -}}
{{- $model := .Values.model -}}
{{- if eq $model.source "claim" }}
- name: model
  persistentVolumeClaim:
    claimName: {{ $model.claim.name }}
    readOnly: true
{{- else if eq $model.cache.kind "claim" }}
- name: model
  persistentVolumeClaim:
    claimName: {{ $model.cache.claim }}
{{- else if eq $model.cache.kind "pod" }}
- name: model
  emptyDir:
    sizeLimit: {{ $model.cache.size }}
{{- end }}
{{- end -}}

{{/* Of a StatefulSet, where each pod keeps its own. */}}
{{- define "kvasir.modelClaimTemplates" -}}
{{- if and (ne .Values.model.source "claim") (eq .Values.model.cache.kind "volume") }}
persistentVolumeClaimRetentionPolicy:
  whenDeleted: Delete
  whenScaled: Delete
volumeClaimTemplates:
  - apiVersion: v1
    kind: PersistentVolumeClaim
    metadata:
      name: model
    spec:
      accessModes: [ReadWriteOnce]
      {{- with .Values.model.cache.storageClass }}
      storageClassName: {{ . }}
      {{- end }}
      resources:
        requests:
          storage: {{ .Values.model.cache.size }}
{{- end }}
{{- end -}}

{{/* The main container reads what the init container fetched, and asks no hub. */}}
{{- define "kvasir.modelMount" -}}
- name: model
  mountPath: {{ ternary "/cache" "/models" (eq .Values.model.source "repository") }}
  readOnly: true
{{- end -}}

{{- define "kvasir.modelEnv" -}}
{{- if eq .Values.model.source "repository" }}
- name: HF_HOME
  value: /cache
- name: HF_HUB_OFFLINE
  value: "1"
{{- end }}
{{- end -}}

{{/* `plan` fetches what it plans, and prints it to the log: a model that is not supported fails here, with the reason. It
computes nothing, so the ordinary image does on nodes with GPUs as well. */}}
{{- define "kvasir.modelInit" -}}
{{- $model := .Values.model -}}
{{- if eq $model.source "repository" }}
- name: fetch-model
  image: {{ include "kvasir.image" . }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  args:
    - plan
    {{- include "kvasir.modelArgs" . | nindent 4 }}
  env:
    - name: HF_HOME
      value: /cache
    {{- with $model.repository.endpoint }}
    - name: HF_ENDPOINT
      value: {{ . | quote }}
    {{- end }}
    {{- with $model.repository.tokenSecret }}
    {{- if .name }}
    - name: HF_TOKEN
      valueFrom:
        secretKeyRef:
          name: {{ .name }}
          key: {{ .key }}
    {{- end }}
    {{- end }}
  securityContext:
    {{- include "kvasir.containerSecurity" . | nindent 4 }}
  volumeMounts:
    - name: model
      mountPath: /cache
{{- else if eq $model.source "url" }}
- name: fetch-model
  image: {{ .Values.curlImage }}
  command:
    - /bin/sh
    - -euc
    - |
      sum() { echo "$SHA256  $1" | sha256sum -c -; }
      if [ -f "$FILE" ] && sum "$FILE"; then exit 0; fi
      curl --fail --location --retry 5 --retry-connrefused --output "$FILE.$HOSTNAME" "$URL"
      sum "$FILE.$HOSTNAME"
      mv "$FILE.$HOSTNAME" "$FILE"
  env:
    - name: URL
      value: {{ $model.url.url | quote }}
    - name: SHA256
      value: {{ $model.url.sha256 | quote }}
    - name: FILE
      value: {{ include "kvasir.model" . | quote }}
  securityContext:
    {{- include "kvasir.containerSecurity" . | nindent 4 }}
  volumeMounts:
    - name: model
      mountPath: /models
{{- end }}
{{- end -}}
