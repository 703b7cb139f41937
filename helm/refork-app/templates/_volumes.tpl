{{- define "refork-app.volumes" -}}
- name: tmp
  emptyDir:
    {{- toYaml .Values.tmp | nindent 4 }}
{{- if include "refork-app.configured" . }}
- name: config
  configMap:
    name: {{ .Release.Name | quote }}
{{- end }}
{{- if include "refork-app.controlled" . }}
{{- include "refork-app.controlVolumes" . | nindent 0 }}
{{- end }}
{{- with .Values.volumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Readable by the group, which is the pod's fsGroup: the server runs as nobody's owner. */}}
{{- define "refork-app.controlVolumes" -}}
{{- if eq .Values.control.auth "Token" }}
- name: control-token
  secret:
    secretName: {{ include "refork-app.tokenSecret" . | quote }}
    defaultMode: 0440
    items:
      - key: {{ .Values.control.token.key | quote }}
        path: token
{{- end }}
{{- if include "refork-app.needsIdentity" . }}
# What automountServiceAccountToken would mount, but in this container only.
- name: identity
  projected:
    defaultMode: 0440
    sources:
      - serviceAccountToken:
          path: token
          expirationSeconds: 3600
      - configMap:
          name: kube-root-ca.crt
          items:
            - key: ca.crt
              path: ca.crt
{{- end }}
{{- with .Values.control.tls.secretName }}
- name: control-tls
  secret:
    secretName: {{ . | quote }}
    defaultMode: 0440
    items:
      - key: tls.crt
        path: tls.crt
      - key: tls.key
        path: tls.key
{{- end }}
{{- end }}
