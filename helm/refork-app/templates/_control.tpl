{{/* How the operator reaches pods that it is asked about by annotation, without a policy. */}}
{{- define "refork-app.controlAnnotations" -}}
{{- if include "refork-app.controlled" . }}
{{- if .Values.control.tls.secretName }}
refork.dev/control-scheme: https
{{- end }}
{{- if eq .Values.control.auth "Token" }}
refork.dev/token-secret: {{ include "refork-app.tokenSecret" . }}/{{ .Values.control.token.key }}
{{- end }}
{{- end }}
{{- end }}

{{/* Annotations of the pods, but for those of the user. */}}
{{- define "refork-app.annotations" -}}
kubectl.kubernetes.io/default-container: app
{{- if include "refork-app.configured" . }}
# New configuration, new pods.
checksum/config: {{ .Values.config | sha256sum | quote }}
{{- end }}
{{- include "refork-app.controlAnnotations" . | nindent 0 }}
{{- end }}

{{/* The same for a policy, which can also say whom to trust. */}}
{{- define "refork-app.policyControl" -}}
{{- $control := .Values.control -}}
{{- if eq $control.auth "Token" }}
tokenSecretRef:
  name: {{ include "refork-app.tokenSecret" . | quote }}
  key: {{ $control.token.key | quote }}
{{- end }}
{{- if $control.tls.secretName }}
scheme: HTTPS
serverName: {{ $control.tls.serverName | quote }}
{{- with $control.tls.caSecretName }}
caSecretRef:
  name: {{ . | quote }}
  key: {{ $control.tls.caKey | quote }}
{{- end }}
{{- end }}
{{- end }}

{{/* The Secrets of this namespace that the operator has to read, as a YAML list; nothing if there are none. */}}
{{- define "refork-app.operatorSecrets" -}}
{{- if include "refork-app.controlled" . }}
{{- if eq .Values.control.auth "Token" }}
- {{ include "refork-app.tokenSecret" . | quote }}
{{- end }}
{{- if .Values.control.tls.secretName }}
{{- with .Values.control.tls.caSecretName }}
- {{ . | quote }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
