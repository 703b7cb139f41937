{{/* What the schema cannot say, each in a sentence that names the way out. */}}
{{- define "refork-app.checks" -}}
{{- include "refork-app.checkName" . -}}
{{- include "refork-app.checkImage" . -}}
{{- include "refork-app.checkPorts" . -}}
{{- if .Values.exporter.enabled -}}
  {{- include "refork-app.checkExporter" . -}}
{{- else -}}
  {{- include "refork-app.checkServer" . -}}
  {{- include "refork-app.checkControl" . -}}
{{- end -}}
{{- include "refork-app.checkAutoscaling" . -}}
{{- include "refork-app.checkIngress" . -}}
{{- include "refork-app.checkStrategy" . -}}
{{- end }}

{{/* What Helm allows as a release's name is more than what Kubernetes allows as a Service's. */}}
{{- define "refork-app.checkName" -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" .Release.Name) -}}
  {{- fail (printf "the release %s: its name becomes that of a Service, so take small letters, digits and dashes, and a letter first" .Release.Name) -}}
{{- end -}}
{{- end }}

{{- define "refork-app.checkPorts" -}}
{{- $port := include "refork-app.port" . | int -}}
{{- if or (lt $port 1) (gt $port 65535) -}}
  {{- fail (printf "bind: %s has no port between 1 and 65535" .Values.bind) -}}
{{- end -}}
{{- if eq $port 9090 -}}
  {{- fail (printf "bind: %s cannot be: probes and scrapes come to port 9090" .Values.bind) -}}
{{- end -}}
{{- if and (eq $port 9091) (include "refork-app.controlled" .) -}}
  {{- fail (printf "bind: %s cannot be: the operator comes to port 9091" .Values.bind) -}}
{{- end -}}
{{- end }}

{{- define "refork-app.checkImage" -}}
{{- if not .Values.image.repository -}}
  {{- fail "no image: set image.repository to the image of your application, and image.tag or image.digest" -}}
{{- end -}}
{{- if not (or .Values.image.tag .Values.image.digest) -}}
  {{- fail "which image: set image.tag or image.digest; without them it would be whatever is called latest" -}}
{{- end -}}
{{- end }}

{{- define "refork-app.checkExporter" -}}
{{- if ne .Values.control.auth "None" -}}
  {{- fail "control.auth with exporter.enabled: there is no refork in the pod that could be commanded; set control.auth to None" -}}
{{- end -}}
{{- range .Values.exporter.extraArgs -}}
  {{- if hasPrefix "--bind=" . -}}
    {{- fail (printf "exporter.extraArgs: %s cannot be: scrapes come to port 9090" .) -}}
  {{- end -}}
{{- end -}}
{{- if .Values.policy.enabled -}}
  {{- fail "policy.enabled with exporter.enabled: there is no refork in the pod that a policy could command; disable one of them" -}}
{{- end -}}
{{- end }}

{{/* The options that the chart sets, and the values they are set from. */}}
{{- define "refork-app.ownOptions" -}}
bind: bind
config: config
graceful-timeout: gracefulTimeout
spawn-timeout: spawnTimeout
threads: threads
worker-class: workerClass
workers: workers
{{- end }}

{{/* What is said twice would be ignored in one of the places. */}}
{{- define "refork-app.checkServer" -}}
{{- if not .Values.app -}}
  {{- fail "no application: set app to MODULE:CALLABLE, like app=shop.wsgi:application" -}}
{{- end -}}
{{- $own := include "refork-app.ownOptions" . | fromYaml -}}
{{- range $word := .Values.extraArgs -}}
  {{- $option := splitList "=" $word | first | trimPrefix "--" -}}
  {{- if hasKey $own $option -}}
    {{- fail (printf "extraArgs: %s is what the value %s is for" $word (get $own $option)) -}}
  {{- end -}}
  {{- if eq $option "metrics-bind" -}}
    {{- fail (printf "extraArgs: %s cannot be: probes and scrapes come to port 9090" $word) -}}
  {{- end -}}
  {{- if and (hasPrefix "control-" $option) (ne $option "control-bind") -}}
    {{- fail (printf "extraArgs: %s is what the values under control are for" $word) -}}
  {{- end -}}
{{- end -}}
{{- range $option, $value := omit $own "config" -}}
  {{- $setting := replace "-" "_" $option -}}
  {{- if and (get $.Values $value) (regexMatch (printf "(?m)^%s *=" $setting) $.Values.config) -}}
    {{- fail (printf "config sets %s, and the value %s overrides it: say it in one place" $setting $value) -}}
  {{- end -}}
{{- end -}}
{{- end }}

{{- define "refork-app.checkControl" -}}
{{- $control := .Values.control -}}
{{- if include "refork-app.controlled" . -}}
  {{- if not (or $control.tls.secretName $control.plaintext) -}}
    {{- fail "control.auth without TLS: others could read and repeat what passes there; set control.tls.secretName, or control.plaintext=true if a mesh encrypts it or you accept that" -}}
  {{- end -}}
  {{- if and $control.tls.secretName $control.plaintext -}}
    {{- fail "control.plaintext with control.tls.secretName: it is one or the other" -}}
  {{- end -}}
  {{- if and $control.tls.secretName .Values.policy.enabled (not $control.tls.serverName) -}}
    {{- fail "control.tls.serverName: set it to the name in the certificate, since the operator calls pods by their addresses" -}}
  {{- end -}}
  {{- if ne (empty $control.keys.jwks) (empty $control.keys.issuer) -}}
    {{- fail "control.keys: jwks and issuer go together, as in kubectl get --raw /.well-known/openid-configuration" -}}
  {{- end -}}
{{- else if .Values.policy.enabled -}}
  {{- fail "policy.enabled without control: the operator cannot reach the server; set control.auth to ServiceAccount or Token" -}}
{{- end -}}
{{- end }}

{{- define "refork-app.checkAutoscaling" -}}
{{- $scaling := .Values.autoscaling -}}
{{- if $scaling.enabled -}}
  {{- if gt (int $scaling.minReplicas) (int $scaling.maxReplicas) -}}
    {{- fail (printf "autoscaling: minReplicas (%d) exceeds maxReplicas (%d)" (int $scaling.minReplicas) (int $scaling.maxReplicas)) -}}
  {{- end -}}
  {{- range $scaling.metrics -}}
    {{- if and (eq .type "Resource") (eq (dig "resource" "target" "type" "" .) "Utilization") -}}
      {{- $name := dig "resource" "name" "" . -}}
      {{- if not (dig "requests" $name "" $.Values.resources) -}}
        {{- fail (printf "autoscaling by utilization of %s: it is a share of the request, so set resources.requests.%s" $name $name) -}}
      {{- end -}}
    {{- end -}}
  {{- end -}}
{{- end -}}
{{- end }}

{{- define "refork-app.checkIngress" -}}
{{- with .Values.ingress -}}
  {{- if and .enabled .tlsSecretName (not .host) -}}
    {{- fail "ingress.tlsSecretName without ingress.host: set the host name that the certificate is for" -}}
  {{- end -}}
{{- end -}}
{{- end }}

{{/* Nothing could ever be replaced. */}}
{{- define "refork-app.checkStrategy" -}}
{{- $rolling := .Values.strategy.rollingUpdate | default dict -}}
{{- if and (eq .Values.strategy.type "RollingUpdate") (hasKey $rolling "maxSurge") (hasKey $rolling "maxUnavailable") -}}
  {{- if and (regexMatch "^0+%?$" (toString $rolling.maxSurge)) (regexMatch "^0+%?$" (toString $rolling.maxUnavailable)) -}}
    {{- fail "strategy.rollingUpdate: maxSurge and maxUnavailable are both 0; one of them has to be more" -}}
  {{- end -}}
{{- end -}}
{{- end }}
