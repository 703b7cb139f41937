#!/usr/bin/env bash
# Run the end-to-end tests in a cluster of kind's, with images built from this checkout. Both are made for the run:
# REFORK_E2E_KEEP=1 leaves the cluster, and says how to reach it.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1
cluster=refork-e2e tag=e2e server=localhost/refork operator=localhost/refork-operator

lacks() { printf 'make e2e-kind needs %s: %s\nWithout kind, see docs/E2E.md for any other cluster.\n' "$1" "$2" >&2; exit 2; }
command -v docker >/dev/null || lacks docker "https://docs.docker.com/engine/install/"
docker info >/dev/null 2>&1 || lacks "a running Docker engine" "docker info says why it does not answer"
command -v kind >/dev/null || lacks kind "https://kind.sigs.k8s.io/docs/user/quick-start/#installation"
command -v kubectl >/dev/null || lacks kubectl "https://kubernetes.io/docs/tasks/tools/"

work=$(mktemp -d)
export KUBECONFIG=$work/kubeconfig
finish() {
    if [ -n "${REFORK_E2E_KEEP:-}" ]; then
        echo "the cluster stays: export KUBECONFIG=$KUBECONFIG; remove it with kind delete cluster --name $cluster"
    else
        kind delete cluster --name "$cluster"
        rm -rf "$work"
    fi
}

docker build --target server --tag "$server:$tag" .
docker build --target operator --tag "$operator:$tag" .
trap finish EXIT
kind create cluster --name "$cluster" --config deploy/kind/cluster.yaml --wait 120s
kind load docker-image "$server:$tag" "$operator:$tag" --name "$cluster"
REFORK_E2E_IMAGE=$server REFORK_E2E_OPERATOR_IMAGE=$operator REFORK_E2E_TAG=$tag \
    "$python" -m pytest --verbose tests/e2e
