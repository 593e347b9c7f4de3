{{/* The chart's name, as part of other names. */}}
{{- define "oxidask-operator.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 53 | trimSuffix "-" -}}
{{- end -}}

{{/* The name of every object: the release's, with the chart's if that is not in it. */}}
{{- define "oxidask-operator.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 53 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "oxidask-operator.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 53 | trimSuffix "-" -}}
{{- else if hasPrefix (printf "%s-" .Release.Name) $name -}}
{{- $name -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 53 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Labels that never change: selectors are immutable. */}}
{{- define "oxidask-operator.selectorLabels" -}}
app.kubernetes.io/name: {{ include "oxidask-operator.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* Labels of every object. */}}
{{- define "oxidask-operator.labels" -}}
{{ include "oxidask-operator.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/component: operator
app.kubernetes.io/part-of: oxidask
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "oxidask-operator.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "oxidask-operator.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* An image with its tag; `dict "image" … "chart" .Chart`. A tag may be `@sha256:…` or `tag@sha256:…`. */}}
{{- define "oxidask-operator.image" -}}
{{- $tag := default .chart.AppVersion .image.tag -}}
{{- if hasPrefix "@" $tag -}}
{{- printf "%s%s" .image.repository $tag -}}
{{- else -}}
{{- printf "%s:%s" .image.repository $tag -}}
{{- end -}}
{{- end -}}

{{/* The namespaces to serve as a JSON list; empty means all. */}}
{{- define "oxidask-operator.namespaces" -}}
{{- if .Values.watchNamespaces -}}
{{- toJson .Values.watchNamespaces -}}
{{- else if .Values.rbac.cluster -}}
[]
{{- else -}}
{{- toJson (list .Release.Namespace) -}}
{{- end -}}
{{- end -}}

{{/* Where a monitor looks for pods; `dict "selector" … "root" .`. */}}
{{- define "oxidask-operator.namespaceSelector" -}}
{{- $namespaces := include "oxidask-operator.namespaces" .root | fromJsonArray -}}
{{- if .selector -}}
{{- toYaml .selector -}}
{{- else if $namespaces -}}
matchNames:
{{ toYaml $namespaces }}
{{- else -}}
any: true
{{- end -}}
{{- end -}}

{{/* The namespaces that may hold pods of ours, as a selector of a NetworkPolicy. */}}
{{- define "oxidask-operator.peerNamespaces" -}}
{{- $namespaces := include "oxidask-operator.namespaces" . | fromJsonArray -}}
{{- if $namespaces -}}
matchExpressions:
  - key: kubernetes.io/metadata.name
    operator: In
    values:
      {{- toYaml $namespaces | nindent 6 }}
{{- else -}}
{}
{{- end -}}
{{- end -}}

{{/* Whether one of several pods leads; one alone leads too, so that an upgrade has no gap. */}}
{{- define "oxidask-operator.elects" -}}
{{- if .Values.leaderElection.enabled -}}
true
{{- else if gt (int .Values.replicas) 1 -}}
{{- fail "replicas above 1 need leaderElection.enabled: two operators would plan from different views of the same objects" -}}
{{- end -}}
{{- end -}}
