{{/* The name of the chart's objects. */}}
{{- define "belvedere.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* The release and the chart, once: the prefix of all names. Short enough for a suffix. */}}
{{- define "belvedere.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 46 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "belvedere.name" . -}}
{{- ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) | trunc 46 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* What finds the pods of a component; never changes over upgrades. Call with (list $ "component"). */}}
{{- define "belvedere.selectorLabels" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "belvedere.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* Labels of an object of a component. Not managed-by "belvedere": that marks what the operator makes. */}}
{{- define "belvedere.labels" -}}
{{- $root := index . 0 -}}
{{ include "belvedere.selectorLabels" . }}
app.kubernetes.io/part-of: belvedere
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* Labels of a pod: none that changes with the chart alone, or every upgrade would start all pods anew. */}}
{{- define "belvedere.podLabels" -}}
{{ include "belvedere.selectorLabels" . }}
app.kubernetes.io/part-of: belvedere
{{- end -}}

{{/* Name, namespace and labels of an object of a component. Call with (list $ "component" "suffix"). */}}
{{- define "belvedere.metadata" -}}
{{- $root := index . 0 -}}
name: {{ include "belvedere.fullname" $root }}-{{ index . 2 }}
namespace: {{ $root.Release.Namespace }}
labels:
  {{- include "belvedere.labels" . | nindent 2 }}
{{- end -}}

{{- define "belvedere.operator.serviceAccountName" -}}
{{- .Values.operator.serviceAccount.name | default (printf "%s-operator" (include "belvedere.fullname" .)) -}}
{{- end -}}

{{- define "belvedere.gateway.serviceAccountName" -}}
{{- .Values.gateway.serviceAccount.name | default (printf "%s-gateway" (include "belvedere.fullname" .)) -}}
{{- end -}}

{{/* One image: what a part says of its own goes before `image`. Call with (list $ .Values.operator.image). */}}
{{- define "belvedere.image" -}}
{{- $image := mustMergeOverwrite (deepCopy (index . 0).Values.image) (index . 1) -}}
{{- with $image.registry }}{{ trimSuffix "/" . }}/{{ end -}}
{{- $image.repository -}}
{{- if $image.digest }}@{{ $image.digest }}{{ else }}:{{ $image.tag }}{{ end -}}
{{- end -}}

{{- define "belvedere.pullPolicy" -}}
{{- (mustMergeOverwrite (deepCopy (index . 0).Values.image) (index . 1)).pullPolicy -}}
{{- end -}}

{{/* Where artifacts are; a file:// URL needs a volume that all pods share. */}}
{{- define "belvedere.artifacts.url" -}}
{{- $artifacts := .Values.artifacts -}}
{{- $shared := or $artifacts.volume $artifacts.claim.create -}}
{{- $url := $artifacts.url | default (ternary "file:///artifacts" "" (not (not $shared))) -}}
{{- if not $url -}}
{{- fail "artifacts.url is empty; it says where all pods find models and engines: set it to s3://BUCKET/PREFIX or gs://BUCKET/PREFIX, or set artifacts.volume (csi, persistentVolumeClaim …) or artifacts.claim.create=true" -}}
{{- end -}}
{{- if and (hasPrefix "file://" $url) (not $shared) -}}
{{- fail (printf "artifacts.url is %s, a path that every pod would have for itself: set artifacts.volume or artifacts.claim.create=true, or use s3:// or gs://" $url) -}}
{{- end -}}
{{- if and $shared (not (hasPrefix "file:///" $url)) -}}
{{- fail (printf "artifacts.url is %s, but artifacts.volume or artifacts.claim.create is set, which only file:///PATH can use: leave one of them out" $url) -}}
{{- end -}}
{{- if and $artifacts.volume $artifacts.claim.create -}}
{{- fail "artifacts.volume and artifacts.claim.create are both set: leave one of them out" -}}
{{- end -}}
{{- if and $artifacts.claim.create (ne (join "," .Values.watchNamespaces) .Release.Namespace) -}}
{{- fail (printf "artifacts.claim.create makes a claim that only pods in %s can mount, but watchNamespaces is [%s]: set it to [%s], or use artifacts.volume, s3:// or gs://" .Release.Namespace (join ", " .Values.watchNamespaces) .Release.Namespace) -}}
{{- end -}}
{{- $url -}}
{{- end -}}

{{/* The volume with the artifacts and its mount, where they are files. Call with $; gives {volumes, volumeMounts}. */}}
{{- define "belvedere.artifacts.volume" -}}
{{- $url := include "belvedere.artifacts.url" . -}}
{{- if hasPrefix "file://" $url -}}
{{- $source := .Values.artifacts.volume -}}
{{- if .Values.artifacts.claim.create -}}
{{- $source = dict "persistentVolumeClaim" (dict "claimName" (printf "%s-artifacts" (include "belvedere.fullname" .))) -}}
{{- end -}}
{{- $volume := merge (dict "name" "artifacts") $source -}}
{{- $mount := dict "name" "artifacts" "mountPath" (trimPrefix "file://" $url) -}}
{{ toYaml (dict "volumes" (list $volume) "volumeMounts" (list $mount)) }}
{{- end -}}
{{- end -}}

{{/* `pods` with the artifacts, without what is empty. Call with $; gives YAML that fromYaml reads. */}}
{{- define "belvedere.pods" -}}
{{- $pod := deepCopy .Values.pods -}}
{{- $artifacts := include "belvedere.artifacts.volume" . | fromYaml -}}
{{- range list "volumes" "volumeMounts" -}}
{{- $_ := set $pod . (concat (get $artifacts . | default list) (get $pod . | default list)) -}}
{{- end -}}
{{ include "belvedere.filled" $pod }}
{{- end -}}

{{/* A map without what is empty. */}}
{{- define "belvedere.filled" -}}
{{- $filled := dict -}}
{{- range $key, $value := . -}}
{{- if $value -}}{{- $_ := set $filled $key $value -}}{{- end -}}
{{- end -}}
{{ toYaml $filled }}
{{- end -}}

{{/* Items of two lists; of those with the same key the last stays, where the first was. Call with (list "name" $first $second); gives {items}. */}}
{{- define "belvedere.joined" -}}
{{- $key := index . 0 -}}
{{- $names := list -}}
{{- $found := dict -}}
{{- range concat (index . 1 | default list) (index . 2 | default list) -}}
{{- $names = append $names (get . $key) -}}
{{- $_ := set $found (get . $key) . -}}
{{- end -}}
{{- $items := list -}}
{{- range uniq $names }}{{ $items = append $items (get $found .) }}{{ end -}}
{{ toYaml (dict "items" $items) }}
{{- end -}}

{{/*
The pod fields of a component of the chart: `pods` with the component's own. Maps are merged, lists joined, by name where items have one.
Call with (list $ .Values.operator.pod); gives YAML that fromYaml reads.
*/}}
{{- define "belvedere.pod" -}}
{{- $home := dict "name" "HOME" "value" "/tmp" -}}
{{- $common := deepCopy (index . 0).Values.pods -}}
{{- $_ := set $common "env" (prepend ($common.env | default list) $home) -}}
{{- $own := index . 1 -}}
{{- $pod := mustMergeOverwrite (deepCopy $common) (deepCopy $own) -}}
{{- range list "tolerations" "topologySpreadConstraints" "envFrom" -}}
{{- $_ := set $pod . (concat (get $common . | default list) (get $own . | default list)) -}}
{{- end -}}
{{- range $field, $key := dict "imagePullSecrets" "name" "env" "name" "volumes" "name" "volumeMounts" "mountPath" -}}
{{- $joined := include "belvedere.joined" (list $key (get $common $field) (get $own $field)) | fromYaml -}}
{{- $_ := set $pod $field $joined.items -}}
{{- end -}}
{{ include "belvedere.filled" $pod }}
{{- end -}}

{{/* The part of a pod's spec that is the same in all components. Call with what belvedere.pod gave. */}}
{{- define "belvedere.podSpec" -}}
{{- $spec := pick . "nodeSelector" "tolerations" "affinity" "topologySpreadConstraints" "imagePullSecrets" "priorityClassName" "runtimeClassName" "securityContext" -}}
{{- if $spec }}{{ toYaml $spec }}{{ end -}}
{{- end -}}

{{/* What the operator adds to the pods that it makes, by what they are for. */}}
{{- define "belvedere.models.podDefaults" -}}
{{- $root := . -}}
{{- $all := include "belvedere.pods" . | fromYaml -}}
{{- $_ := set $all "image" (include "belvedere.image" (list . dict)) -}}
{{- $_ := set $all "imagePullPolicy" .Values.image.pullPolicy -}}
{{- with .Values.models.serviceAccountName }}{{ $_ := set $all "serviceAccountName" . }}{{ end -}}
{{- $defaults := dict "all" $all -}}
{{- range $purpose := list "training" "engines" "serving" -}}
{{- $given := get $root.Values.models $purpose -}}
{{- $section := include "belvedere.filled" $given.pod | fromYaml -}}
{{- with $given.image -}}
{{- $_ := set $section "image" (include "belvedere.image" (list $root .)) -}}
{{- $_ := set $section "imagePullPolicy" (include "belvedere.pullPolicy" (list $root .)) -}}
{{- end -}}
{{- if $section }}{{ $_ := set $defaults $purpose $section }}{{ end -}}
{{- end -}}
{{ toYaml $defaults }}
{{- end -}}

{{/* Who may reach the pods that train and serve, by what they are: NetworkPolicyPeers. */}}
{{- define "belvedere.models.networkPeers" -}}
{{- $root := . -}}
{{- $here := dict "matchLabels" (dict "kubernetes.io/metadata.name" .Release.Namespace) -}}
{{- $own := dict -}}
{{- range $component := list "gateway" "operator" -}}
{{- $labels := include "belvedere.selectorLabels" (list $root $component) | fromYaml -}}
{{- $_ := set $own $component (dict "namespaceSelector" $here "podSelector" (dict "matchLabels" $labels)) -}}
{{- end -}}
{{- $peers := dict "operator" (list $own.operator) "kuberay" .Values.networkPolicies.kuberayFrom -}}
{{- $gateway := ternary (list $own.gateway) list .Values.gateway.enabled -}}
{{- $_ := set $peers "gateway" (concat $gateway .Values.networkPolicies.modelsFrom) -}}
{{- $anybody := list (dict "namespaceSelector" dict) -}}
{{- $_ := set $peers "monitoring" (.Values.networkPolicies.monitoringFrom | default $anybody) -}}
{{ toYaml $peers }}
{{- end -}}

{{/* Which namespaces to watch, as arguments. */}}
{{- define "belvedere.watchArguments" -}}
{{- range $index, $namespace := .Values.watchNamespaces }}
{{- if $index }}{{ "\n" }}{{ end -}}
- --watch-namespace={{ $namespace }}
{{- end -}}
{{- end -}}

{{/* The Secret with the token that Alertmanager sends. */}}
{{- define "belvedere.alerts.secretName" -}}
{{- .Values.alerts.existingSecret | default (printf "%s-alerts" (include "belvedere.fullname" .)) -}}
{{- end -}}

{{/* Whether the chart or the user brings the Secret; empty when the operator makes it. */}}
{{- define "belvedere.alerts.secretGiven" -}}
{{- if and .Values.alerts.existingSecret .Values.alerts.token -}}
{{- fail "alerts.existingSecret and alerts.token are both set: leave one of them out" -}}
{{- end -}}
{{- if or .Values.alerts.existingSecret .Values.alerts.token -}}yes{{- end -}}
{{- end -}}

{{/*
Rules of the operator in the namespaces that it watches. tests/helm runs the operator on a real API server with them: each is
used, and none is missing. Kinds that it follows are read from its copies, so there is no "get" for them.
*/}}
{{- define "belvedere.operator.rules" -}}
- apiGroups: [belvedere.dev]
  resources: [trainingruns]
  verbs: [list, watch]
- apiGroups: [belvedere.dev]
  resources: [modelservices]
  verbs: [get, list, watch]
- apiGroups: [belvedere.dev]
  resources: [modelversions, engines]
  verbs: [list, watch, create, patch]
- apiGroups: [belvedere.dev]
  resources: [trainingruns/status, modelversions/status, engines/status, modelservices/status]
  verbs: [patch]
# Children name their owner with blockOwnerDeletion, which some clusters (OpenShift) allow only to those who may do this.
- apiGroups: [belvedere.dev]
  resources: [trainingruns/finalizers, modelversions/finalizers, engines/finalizers, modelservices/finalizers]
  verbs: [update]
- apiGroups: [ray.io]
  resources: [rayservices/finalizers]
  verbs: [update]
- apiGroups: [apps]
  resources: [deployments/finalizers]
  verbs: [update]
- apiGroups: [ray.io]
  resources: [rayjobs]
  verbs: [list, watch, create, patch, delete]
- apiGroups: [ray.io]
  resources: [rayservices]
  verbs: [list, watch, create, patch, delete]
# KubeRay does not carry a RayService's changed number of workers to its cluster.
- apiGroups: [ray.io]
  resources: [rayclusters]
  verbs: [get, patch]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [services]
  verbs: [create, patch, delete]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [list, watch, create, patch]
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, list, watch, create, patch]
- apiGroups: [""]
  resources: [events]
  verbs: [get, create, patch]
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  verbs: [list, watch, create, patch, delete]
- apiGroups: [monitoring.coreos.com]
  resources: [prometheusrules]
  verbs: [list, watch, create, patch]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [list, watch, create, patch, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [list, watch, create, patch, delete]
- apiGroups: [autoscaling]
  resources: [horizontalpodautoscalers]
  verbs: [list, watch, create, patch, delete]
- apiGroups: [keda.sh]
  resources: [scaledobjects]
  verbs: [list, watch, create, patch, delete]
# Why a queue holds a run back.
- apiGroups: [kueue.x-k8s.io]
  resources: [workloads]
  verbs: [list]
{{- end -}}

{{/* Rules of the operator for what is in no namespace. */}}
{{- define "belvedere.operator.clusterRules" -}}
- apiGroups: [""]
  resources: [nodes]
  verbs: [list, watch]
{{- end -}}

{{/* Rules of the gateway in the namespaces that it watches: it reads routes and replicas, and writes nothing. */}}
{{- define "belvedere.gateway.rules" -}}
- apiGroups: [""]
  resources: [configmaps]
  verbs: [list, watch]
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  verbs: [list, watch]
{{- end -}}
