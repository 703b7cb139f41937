{{/* The words that refork is started with. The command line wins, so what stands here holds whatever an image says. */}}
{{- define "refork-app.args" -}}
- {{ printf "--bind=%s" .Values.bind | quote }}
{{- with .Values.workers }}
- --workers={{ int . }}
{{- end }}
{{- with .Values.workerClass }}
- {{ printf "--worker-class=%s" . | quote }}
{{- end }}
{{- with .Values.threads }}
- --threads={{ int . }}
{{- end }}
- --graceful-timeout={{ int .Values.gracefulTimeout }}
- --spawn-timeout={{ int .Values.spawnTimeout }}
- --metrics-bind=:9090
{{- if .Values.config }}
- --config=/etc/refork/gunicorn.conf.py
{{- end }}
{{- if include "refork-app.controlled" . }}
{{- include "refork-app.controlArgs" . | nindent 0 }}
{{- end }}
{{- range .Values.extraArgs }}
- {{ . | quote }}
{{- end }}
- {{ .Values.app | quote }}
{{- end }}

{{- define "refork-app.controlArgs" -}}
- --control-tcp=:9091
{{- with .Values.control }}
{{- if eq .auth "Token" }}
- --control-token-file=/etc/refork-control/token
{{- else }}
- --control-service-accounts=system:serviceaccount:{{ .operator.namespace }}:{{ .operator.serviceAccount }}
{{- if .keys.jwks }}
- {{ printf "--control-jwks=%s" .keys.jwks | quote }}
- {{ printf "--control-issuer=%s" .keys.issuer | quote }}
{{- end }}
{{- end }}
{{- if .tls.secretName }}
- --control-certfile=/etc/refork-tls/tls.crt
- --control-keyfile=/etc/refork-tls/tls.key
{{- else }}
- --control-plaintext
{{- end }}
{{- end }}
{{- end }}

{{/* The container of the application: served by refork, or by what serves it today. */}}
{{- define "refork-app.container" -}}
name: app
image: {{ include "refork-app.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- if .Values.exporter.enabled }}
{{- with .Values.exporter.app.command }}
command:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.exporter.app.args }}
args:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- else }}
command: [refork]
args:
  {{- include "refork-app.args" . | nindent 2 }}
{{- end }}
{{- with .Values.env }}
env:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.envFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
ports:
  - name: http
    containerPort: {{ include "refork-app.port" . }}
  {{- if not .Values.exporter.enabled }}
  - name: metrics
    containerPort: 9090
  {{- end }}
  {{- if include "refork-app.controlled" . }}
  - name: refork-control
    containerPort: 9091
  {{- end }}
{{- include "refork-app.probes" . | nindent 0 }}
lifecycle:
  # A pod is still sent requests for some seconds after it was told to stop: until every node has heard of it.
  preStop:
    sleep:
      seconds: {{ int .Values.preStopSeconds }}
{{- with .Values.resources }}
resources:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- toYaml .Values.securityContext | nindent 2 }}
volumeMounts:
  - name: tmp
    mountPath: /tmp
  {{- if include "refork-app.configured" . }}
  - name: config
    mountPath: /etc/refork
    readOnly: true
  {{- end }}
  {{- if include "refork-app.controlled" . }}
  {{- include "refork-app.controlMounts" . | nindent 2 }}
  {{- end }}
  {{- with .Values.volumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{- define "refork-app.controlMounts" -}}
{{- if eq .Values.control.auth "Token" }}
- name: control-token
  mountPath: /etc/refork-control
  readOnly: true
{{- end }}
{{- if include "refork-app.needsIdentity" . }}
- name: identity
  mountPath: /var/run/secrets/kubernetes.io/serviceaccount
  readOnly: true
{{- end }}
{{- if .Values.control.tls.secretName }}
- name: control-tls
  mountPath: /etc/refork-tls
  readOnly: true
{{- end }}
{{- end }}

{{/* Ready when as many workers serve as are wanted. Until then, loading and booting may take spawnTimeout each. */}}
{{- define "refork-app.probes" -}}
{{- if .Values.exporter.enabled -}}
{{- $ask := dict "tcpSocket" (dict "port" "http") -}}
{{- with .Values.exporter.app.readinessPath -}}
{{- $ask = dict "httpGet" (dict "path" . "port" "http") -}}
{{- end -}}
startupProbe:
  {{- toYaml $ask | nindent 2 }}
  {{- include "refork-app.startup" . | nindent 2 }}
readinessProbe:
  {{- toYaml (merge (deepCopy .Values.probes.readiness) $ask) | nindent 2 }}
{{- else -}}
startupProbe:
  httpGet: {path: /readyz, port: metrics}
  {{- include "refork-app.startup" . | nindent 2 }}
readinessProbe:
  httpGet: {path: /readyz, port: metrics}
  {{- toYaml .Values.probes.readiness | nindent 2 }}
livenessProbe:
  httpGet: {path: /healthz, port: metrics}
  {{- toYaml .Values.probes.liveness | nindent 2 }}
{{- end }}
{{- end }}

{{- define "refork-app.startup" -}}
periodSeconds: 2
timeoutSeconds: 2
failureThreshold: {{ add (int .Values.spawnTimeout) 5 }}
{{- end }}
