{{/*
The labels of the pods, and what selects them. A Deployment's selector cannot change, so neither can this. The chart's
version is not among them: a new chart that makes the same pods of the same values leaves them alone.
*/}}
{{- define "refork-app.selector" -}}
app.kubernetes.io/name: refork-app
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "refork-app.labels" -}}
{{ include "refork-app.selector" . }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: refork
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* Labels or annotations in YAML: the user's, which win, and ours. Takes a list of both. */}}
{{- define "refork-app.merged" -}}
{{ merge (deepCopy (first .)) (last . | fromYaml) | toYaml }}
{{- end }}

{{/* The head of every object: the workload and what belongs to it are named like the release. */}}
{{- define "refork-app.metadata" -}}
name: {{ .Release.Name | quote }}
namespace: {{ .Release.Namespace | quote }}
labels:
  {{- include "refork-app.labels" . | nindent 2 }}
{{- end }}

{{/* Labels of the pod of `helm test`, which no selector of the application's may match. */}}
{{- define "refork-app.testLabels" -}}
app.kubernetes.io/name: refork-app-test
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "refork-app.controlName" -}}
{{ .Release.Name }}-control
{{- end }}

{{- define "refork-app.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{ .Values.serviceAccount.name | default .Release.Name }}
{{- else -}}
{{ .Values.serviceAccount.name | default "default" }}
{{- end -}}
{{- end }}

{{- define "refork-app.image" -}}
{{- with .Values.image -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag }}{{ end }}
{{- end -}}
{{- end }}

{{- define "refork-app.exporterImage" -}}
{{- with .Values.exporter.image -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end -}}
{{- end }}

{{- define "refork-app.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
{{- end }}

{{/* The Secret with the token that the operator shows: the user's, or ours. */}}
{{- define "refork-app.tokenSecret" -}}
{{ .Values.control.token.existingSecret | default (include "refork-app.controlName" .) }}
{{- end }}

{{/* Whether the server takes commands over TCP: "true" or nothing. */}}
{{- define "refork-app.controlled" -}}
{{- if and (not .Values.exporter.enabled) (ne .Values.control.auth "None") -}}true{{- end -}}
{{- end }}

{{/* Whether the server has a configuration of the values: "true" or nothing. */}}
{{- define "refork-app.configured" -}}
{{- if and .Values.config (not .Values.exporter.enabled) -}}true{{- end -}}
{{- end }}

{{/* Whether the server needs a token that is not mounted anyway, to be given the cluster's keys by the API server. */}}
{{- define "refork-app.needsIdentity" -}}
{{- if and (include "refork-app.controlled" .) (eq .Values.control.auth "ServiceAccount") -}}
{{- if not (or .Values.control.keys.jwks .Values.serviceAccount.automountToken) -}}true{{- end -}}
{{- end -}}
{{- end }}

{{- define "refork-app.port" -}}
{{ regexFind "[0-9]+$" .Values.bind }}
{{- end }}
