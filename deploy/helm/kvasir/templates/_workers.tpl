{{/* The pod of a worker, the same in a StatefulSet and in a LeaderWorkerSet. */}}
{{- define "kvasir.workerPod" -}}
{{- $workers := .Values.workers -}}
metadata:
  labels:
    {{- include "kvasir.labels" (list . "worker") | nindent 4 }}
  {{- with $workers.podAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  {{- include "kvasir.podBasics" . | nindent 2 }}
  {{- with $workers.gpu.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  # The worker drains by itself when it gets SIGTERM. There is no preStop: `kvasir drain` would need an administrator's
  # certificate in every worker.
  terminationGracePeriodSeconds: {{ add (int $workers.graceSeconds) 10 }}
  {{- with include "kvasir.modelInit" . }}
  initContainers:
    {{- . | trim | nindent 4 }}
  {{- end }}
  containers:
    - name: worker
      image: {{ include "kvasir.workerImage" . }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      args:
        - worker
        {{- include "kvasir.engineArgs" . | nindent 8 }}
        - {{ printf "--threads=%d" (int $workers.threads) | quote }}
        - {{ printf "--kv-memory=%s" $workers.kvMemory | quote }}
        - "--id=$(POD_NAME)"
        - "--advertise=$(POD_IP)"
        - {{ printf "--grace=%d" (int $workers.graceSeconds) | quote }}
        {{- if eq .Values.etcd.mode "none" }}
        - {{ printf "--coordinator=%s://%s:50051" (include "kvasir.scheme" .) (include "kvasir.coordinatorsHost" .) | quote }}
        {{- end }}
        {{- if .Values.tls.enabled }}
        {{- if and (eq .Values.tls.source "certManager") (eq .Values.tls.certManager.workers "csi") }}
        - "--tls-cert=/etc/kvasir/tls/tls.crt"
        - "--tls-key=/etc/kvasir/tls/tls.key"
        {{- else }}
        - "--tls-cert=/etc/kvasir/tls/$(POD_NAME).crt"
        - "--tls-key=/etc/kvasir/tls/$(POD_NAME).key"
        {{- end }}
        - "--tls-ca=/etc/kvasir/tls/ca.crt"
        {{- end }}
        {{- include "kvasir.commonArgs" . | trim | nindent 8 }}
        {{- range $workers.extraArgs }}
        - {{ . | quote }}
        {{- end }}
      env:
        {{- include "kvasir.env" . | nindent 8 }}
      ports:
        - name: metrics
          containerPort: 9090
      startupProbe:
        httpGet:
          path: /live
          port: metrics
        periodSeconds: 5
        failureThreshold: {{ div (add (int $workers.startupSeconds) 4) 5 }}
      livenessProbe:
        httpGet:
          path: /live
          port: metrics
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 6
      # Gates no traffic: it is what a rolling update waits for before it takes the next one.
      readinessProbe:
        httpGet:
          path: /health
          port: metrics
        periodSeconds: 2
        timeoutSeconds: 2
        failureThreshold: 3
      resources:
        {{- $resources := deepCopy $workers.resources }}
        {{- if $workers.gpu.enabled }}
        {{- $limits := default dict $resources.limits }}
        {{- $_ := set $limits $workers.gpu.resource 1 }}
        {{- $_ := set $resources "limits" $limits }}
        {{- end }}
        {{- toYaml $resources | nindent 8 }}
      securityContext:
        {{- include "kvasir.containerSecurity" . | nindent 8 }}
      volumeMounts:
        {{- include "kvasir.modelMount" . | nindent 8 }}
        {{- if .Values.tls.enabled }}
        - name: tls
          mountPath: /etc/kvasir/tls
          readOnly: true
        {{- end }}
        {{- with include "kvasir.etcdMount" . }}
        {{- . | trim | nindent 8 }}
        {{- end }}
  {{- with include "kvasir.placement" (list . "worker" $workers) }}
  {{- . | trim | nindent 2 }}
  {{- end }}
  {{- with include "kvasir.workerVolumes" . }}
  volumes:
    {{- . | trim | nindent 4 }}
  {{- end }}
{{- end -}}

{{- define "kvasir.workerVolumes" -}}
{{- include "kvasir.modelVolume" . }}
{{- include "kvasir.workerTlsVolume" . }}
{{- include "kvasir.etcdVolume" . }}
{{- end -}}

{{- define "kvasir.workerTlsVolume" -}}
{{- $tls := .Values.tls -}}
{{- $name := include "kvasir.componentName" (list . "workers") -}}
{{- if $tls.enabled }}
{{- if eq $tls.source "secrets" }}
- name: tls
  secret:
    secretName: {{ $tls.secrets.workers }}
    defaultMode: 0440
{{- else if eq $tls.certManager.workers "csi" }}
- name: tls
  csi:
    driver: csi.cert-manager.io
    readOnly: true
    volumeAttributes:
      csi.cert-manager.io/issuer-name: {{ $tls.certManager.issuer.name }}
      csi.cert-manager.io/issuer-kind: {{ $tls.certManager.issuer.kind }}
      csi.cert-manager.io/issuer-group: {{ $tls.certManager.issuer.group }}
      csi.cert-manager.io/common-name: "${POD_NAME}"
      csi.cert-manager.io/uri-sans: "kvasir://worker/${POD_NAME}"
      csi.cert-manager.io/key-usages: "digital signature,server auth,client auth"
      csi.cert-manager.io/key-encoding: PKCS8
      csi.cert-manager.io/duration: {{ $tls.certManager.duration }}
      csi.cert-manager.io/renew-before: {{ $tls.certManager.renewBefore }}
      csi.cert-manager.io/fs-group: {{ .Values.podSecurityContext.fsGroup | quote }}
{{- else }}
- name: tls
  projected:
    defaultMode: 0440
    sources:
      {{- range $index, $id := include "kvasir.workerIds" . | fromJsonArray }}
      - secret:
          name: {{ printf "%s-tls" $id }}
          items:
            - key: tls.crt
              path: {{ printf "%s.crt" $id }}
            - key: tls.key
              path: {{ printf "%s.key" $id }}
            {{- if eq $index 0 }}
            - key: ca.crt
              path: ca.crt
            {{- end }}
      {{- end }}
{{- end }}
{{- end }}
{{- end -}}
