{{/* A name that fits into 63 characters. What is longer is cut, and told apart from its like by a digest. */}}
{{- define "refork.fit" -}}
{{- if gt (len .) 63 -}}
{{- printf "%s-%s" (trunc 54 . | trimSuffix "-") (sha256sum . | trunc 8) -}}
{{- else -}}
{{- . -}}
{{- end -}}
{{- end -}}

{{/* The name of the operator: "refork" becomes "refork-operator", and "refork-operator" stays what it is. */}}
{{- define "refork.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else if hasSuffix "operator" .Release.Name -}}
{{- .Release.Name -}}
{{- else -}}
{{- include "refork.fit" (printf "%s-operator" .Release.Name) -}}
{{- end -}}
{{- end -}}

{{/* The name of what is not in the release's own namespace: another release there may have the same name. */}}
{{- define "refork.clusterName" -}}
{{- include "refork.fit" (printf "%s-%s" (include "refork.fullname" .) .Release.Namespace) -}}
{{- end -}}

{{- define "refork.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (include "refork.fullname" .) -}}
{{- end -}}

{{- define "refork.selectorLabels" -}}
app.kubernetes.io/name: refork-operator
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{/* Labels of the pod of `helm test`, which no selector of the operator's may match. */}}
{{- define "refork.testLabels" -}}
app.kubernetes.io/name: refork-operator-test
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{/* Labels of everything but pods. */}}
{{- define "refork.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "refork.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: refork
{{- end -}}

{{/* Labels in YAML: the user's, which win, and ours. Takes a list of both. */}}
{{- define "refork.merged" -}}
{{- merge (deepCopy (first .)) (last . | fromYaml) | toYaml -}}
{{- end -}}

{{- define "refork.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "refork.podSecurityContext" -}}
runAsNonRoot: true
{{- with .Values.runAsUser }}
runAsUser: {{ . | int64 }}
runAsGroup: {{ . | int64 }}
fsGroup: {{ . | int64 }}
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "refork.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* What the operator may do in the namespaces that it watches. */}}
{{- define "refork.watchedRules" -}}
{{- $rules := .Files.Get "files/operator-rules.yaml" | fromYaml -}}
{{- $granted := $rules.watched -}}
{{- if .Values.rbac.secrets.enabled -}}
{{- range $rules.secrets -}}
{{- $rule := . -}}
{{- with $.Values.rbac.secrets.names -}}
{{- $rule = merge (dict "resourceNames" .) $rule -}}
{{- end -}}
{{- $granted = append $granted $rule -}}
{{- end -}}
{{- end -}}
{{- toYaml $granted -}}
{{- end -}}

{{/* What it may do with its Lease. Nobody can be allowed to create by name, but everything else. */}}
{{- define "refork.leaseRules" -}}
{{- $rules := .Files.Get "files/operator-rules.yaml" | fromYaml -}}
{{- $granted := list -}}
{{- range $rules.lease -}}
{{- if has "create" .verbs -}}
{{- $granted = append $granted . -}}
{{- else -}}
{{- $granted = append $granted (merge (dict "resourceNames" (list (include "refork.fullname" $))) .) -}}
{{- end -}}
{{- end -}}
{{- toYaml $granted -}}
{{- end -}}

{{- define "refork.subject" -}}
- kind: ServiceAccount
  name: {{ include "refork.serviceAccountName" . | quote }}
  namespace: {{ .Release.Namespace | quote }}
{{- end -}}
