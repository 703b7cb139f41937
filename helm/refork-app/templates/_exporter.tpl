{{/*
The container that reports the memory of a pod that does not run refork. The kernel lets it look at the others without
a capability: it has the same user and group, which stand in the pod's security context, and no fewer capabilities.
*/}}
{{- define "refork-app.exporter" -}}
name: exporter
image: {{ include "refork-app.exporterImage" . | quote }}
imagePullPolicy: {{ .Values.exporter.image.pullPolicy }}
command: [refork-exporter]
args:
  - --bind=:9090
  {{- range .Values.exporter.extraArgs }}
  - {{ . | quote }}
  {{- end }}
ports:
  - name: metrics
    containerPort: 9090
# It has no readiness: what it does not know is no reason to send the application no requests.
livenessProbe:
  httpGet: {path: /healthz, port: metrics}
  failureThreshold: 6
{{- with .Values.exporter.resources }}
resources:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- toYaml .Values.securityContext | nindent 2 }}
{{- end }}
