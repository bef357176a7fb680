{{/* What the pods of all roles have in common. */}}

{{- define "kvasir.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- define "kvasir.env" -}}
- name: POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: POD_IP
  valueFrom:
    fieldRef:
      fieldPath: status.podIP
- name: KVASIR_LOG
  value: {{ .Values.logFilter | quote }}
{{- include "kvasir.modelEnv" . }}
{{- if and (eq .Values.etcd.mode "external") .Values.etcd.external.authSecret.name }}
{{- with .Values.etcd.external.authSecret }}
- name: KVASIR_ETCD_USER
  valueFrom:
    secretKeyRef:
      name: {{ .name }}
      key: {{ .userKey }}
- name: KVASIR_ETCD_PASSWORD
  valueFrom:
    secretKeyRef:
      name: {{ .name }}
      key: {{ .passwordKey }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Of coordinators and workers, after what each has for itself. */}}
{{- define "kvasir.commonArgs" -}}
{{- if ne .Values.etcd.mode "none" }}
- {{ printf "--etcd=%s" (include "kvasir.etcdEndpoints" .) | quote }}
- {{ printf "--etcd-prefix=%s" (default (printf "%s-%s" .Release.Namespace (include "kvasir.name" .)) .Values.etcd.prefix) | quote }}
{{- if include "kvasir.etcdClientSecret" . }}
- "--etcd-ca=/etc/kvasir/etcd/ca.crt"
{{- if or (eq .Values.etcd.mode "bundled") .Values.etcd.external.clientCertificate }}
- "--etcd-cert=/etc/kvasir/etcd/tls.crt"
- "--etcd-key=/etc/kvasir/etcd/tls.key"
{{- end }}
{{- end }}
{{- end }}
{{ include "kvasir.doorArgs" . }}
{{- end -}}

{{/* Of all roles: how they are watched, and whether strangers are let in. */}}
{{- define "kvasir.doorArgs" -}}
- "--metrics=0.0.0.0:9090"
{{- with .Values.monitoring.otlp }}
{{- if .endpoint }}
- {{ printf "--otlp=%s" .endpoint | quote }}
- {{ printf "--otlp-protocol=%s" .protocol | quote }}
- {{ printf "--trace-ratio=%v" .traceRatio | quote }}
{{- end }}
{{- end }}
- "--log-format=json"
{{- if not .Values.tls.enabled }}
- "--insecure"
{{- end }}
{{- end -}}

{{- define "kvasir.etcdEndpoints" -}}
{{- if eq .Values.etcd.mode "external" -}}
{{- join "," .Values.etcd.external.endpoints -}}
{{- else -}}
{{- $name := include "kvasir.componentName" (list . "etcd") -}}
{{- $urls := list -}}
{{- range $ordinal := until (int .Values.etcd.bundled.replicas) -}}
{{- $urls = append $urls (printf "%s://%s-%d.%s.%s.svc:2379" (include "kvasir.scheme" $) $name $ordinal $name $.Release.Namespace) -}}
{{- end -}}
{{- join "," $urls -}}
{{- end -}}
{{- end -}}

{{/* What Kvasir shows to etcd and believes of it. Empty without. */}}
{{- define "kvasir.etcdClientSecret" -}}
{{- if eq .Values.etcd.mode "external" -}}
{{- .Values.etcd.external.tlsSecret -}}
{{- else if and (eq .Values.etcd.mode "bundled") .Values.tls.enabled -}}
{{- ternary (printf "%s-client-tls" (include "kvasir.componentName" (list . "etcd"))) .Values.etcd.bundled.clientSecret (eq .Values.tls.source "certManager") -}}
{{- end -}}
{{- end -}}

{{- define "kvasir.etcdMount" -}}
{{- if include "kvasir.etcdClientSecret" . }}
- name: etcd-tls
  mountPath: /etc/kvasir/etcd
  readOnly: true
{{- end }}
{{- end -}}

{{- define "kvasir.etcdVolume" -}}
{{- with include "kvasir.etcdClientSecret" . }}
- name: etcd-tls
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
{{- end -}}

{{- define "kvasir.podBasics" -}}
serviceAccountName: {{ include "kvasir.serviceAccount" . }}
# Kvasir asks Kubernetes nothing.
automountServiceAccountToken: false
# Variables of services would look like settings of Kvasir.
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- end -}}

{{/* Called with (list $ component values). */}}
{{- define "kvasir.placement" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- $values := index . 2 -}}
{{- if $values.topologySpread.enabled }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: {{ $values.topologySpread.topologyKey }}
    whenUnsatisfiable: {{ $values.topologySpread.whenUnsatisfiable }}
    labelSelector:
      matchLabels:
        {{- include "kvasir.selector" (list $root $component) | nindent 8 }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}
