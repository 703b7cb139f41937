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

{{/* The same for a policy, which can also say whom to trust. */}}
{{- define "refork-app.policyControl" -}}
{{- $control := .Values.control -}}
{{- if eq $control.auth "Token" }}
tokenSecretRef:
  name: {{ include "refork-app.tokenSecret" . }}
  key: {{ $control.token.key }}
{{- end }}
{{- if $control.tls.secretName }}
scheme: HTTPS
serverName: {{ $control.tls.serverName }}
{{- with $control.tls.caSecretName }}
caSecretRef:
  name: {{ . }}
  key: {{ $control.tls.caKey }}
{{- end }}
{{- end }}
{{- end }}

{{/* The Secrets of this namespace that the operator has to read, as a YAML list; nothing if there are none. */}}
{{- define "refork-app.operatorSecrets" -}}
{{- if include "refork-app.controlled" . }}
{{- if eq .Values.control.auth "Token" }}
- {{ include "refork-app.tokenSecret" . }}
{{- end }}
{{- if .Values.control.tls.secretName }}
{{- with .Values.control.tls.caSecretName }}
- {{ . }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
