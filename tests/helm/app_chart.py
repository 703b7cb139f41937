"""What the tests of the applications' chart share: values that people would write, and looks into what they become."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.helm import harness

if TYPE_CHECKING:
    from tests.helm.harness import Object, Release

NAME = "shop"
NAMESPACE = "market"

DIGEST = "sha256:" + 32 * "5e"
IMAGE: Object = {"repository": "registry.example.org/shop", "tag": "1.2.3"}
WSGI: Object = {"image": IMAGE, "app": "app:app"}
TOKEN: Object = {"auth": "Token", "plaintext": True}
ACCOUNT: Object = {"auth": "ServiceAccount", "plaintext": True}
TLS: Object = {"secretName": "shop-tls", "serverName": "shop", "caSecretName": "shop-ca"}
GUNICORN: Object = {"command": ["gunicorn"], "args": ["-w", "4", "-b", ":8000", "app:app"]}
EXPORTER: Object = {"enabled": True, "app": GUNICORN}

EVERYTHING: Object = {
    "image": {**IMAGE, "digest": DIGEST, "pullSecrets": ["registry"]},
    "app": "app:app",
    "bind": "[::]:8080",
    "workers": 3,
    "workerClass": "gthread",
    "threads": 2,
    "gracefulTimeout": 90,
    "spawnTimeout": 20,
    "config": "max_requests = 5000\n",
    "extraArgs": ["--refork-after=0", '--access-logformat=%(h)s "%(r)s"'],
    "env": [{"name": "COLOUR", "value": "green"}],
    "envFrom": [{"secretRef": {"name": "database"}}],
    "resources": {"requests": {"cpu": "1", "memory": "512Mi"}, "limits": {"memory": "1Gi"}},
    "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}],
    "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    "tmp": {"sizeLimit": "64Mi", "medium": "Memory"},
    "control": {"auth": "Token", "tls": TLS},
    "policy": {
        "enabled": True,
        "spec": {
            "mode": "Enforce",
            "triggers": [{"metric": "LimitShare", "threshold": "85%", "sustainedFor": "1m"}],
            "cooldown": {"pod": "20m"},
            "maxConcurrent": 2,
        },
    },
    "autoscaling": {"enabled": True, "minReplicas": 3, "maxReplicas": 30},
    "podDisruptionBudget": {"maxUnavailable": "20%"},
    "nodeSelector": {"kubernetes.io/arch": "amd64"},
    "tolerations": [{"key": "web", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
    "priorityClassName": "serving",
    "preStopSeconds": 12,
    "podLabels": {"team": "market"},
    "podAnnotations": {"example.org/owner": "market"},
    "initContainers": [{"name": "migrate", "image": "registry.example.org/shop:1.2.3"}],
    "extraContainers": [
        {"name": "proxy", "image": "registry.example.org/proxy:1", "ports": [{"name": "stats", "containerPort": 15020}]}
    ],
    "serviceAccount": {"name": "keeper", "annotations": {"example.org/role": "shop"}, "automountToken": True},
    "networkPolicy": {
        "enabled": True,
        "httpFrom": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ingress"}}}],
        "metricsFrom": [{"podSelector": {"matchLabels": {"app": "prometheus"}}}],
        "extraIngress": [{"ports": [{"port": 15020}]}],
    },
    "service": {"type": "LoadBalancer", "port": 8080, "annotations": {"example.org/class": "internal"}},
    "ingress": {
        "enabled": True,
        "className": "nginx",
        "annotations": {"example.org/limit": "10"},
        "host": "shop.example.org",
        "tlsSecretName": "shop-web-tls",
    },
    "podMonitor": {"enabled": True, "labels": {"prometheus": "main"}, "interval": "30s"},
}

VARIANTS: dict[str, Object] = {
    "sync": WSGI,
    "digest": {"image": {"repository": "registry.example.org/shop", "digest": DIGEST}, "app": "app:app"},
    "gthread": {**WSGI, "workerClass": "gthread", "threads": 4},
    "asgi": {**WSGI, "workerClass": "asgi", "extraArgs": ["--lifespan-keep"]},
    "uvicorn": {**WSGI, "workerClass": "uvicorn_worker.UvicornWorker"},
    "configured": {**WSGI, "workers": None, "config": "workers = 7\nworker_class = 'gthread'\nthreads = 3\n"},
    "token": {**WSGI, "control": TOKEN, "policy": {"enabled": True}},
    "named token": {**WSGI, "control": {**TOKEN, "token": {"existingSecret": "door", "key": "shop"}}},
    "service account": {**WSGI, "control": ACCOUNT, "policy": {"enabled": True}},
    "published keys": {
        **WSGI,
        "control": {**ACCOUNT, "keys": {"jwks": "https://keys.example.org/jwks", "issuer": "https://keys.example.org"}},
    },
    "tls": {**WSGI, "control": {"auth": "ServiceAccount", "tls": TLS}, "policy": {"enabled": True}},
    "autoscaled": {
        **WSGI,
        "autoscaling": {"enabled": True},
        "resources": {"requests": {"cpu": "500m"}},
        "podMonitor": {"enabled": True},
    },
    "exporter": {"image": IMAGE, "exporter": EXPORTER, "podMonitor": {"enabled": True}},
    "exporter beside the image's own command": {
        "image": IMAGE,
        "exporter": {"enabled": True, "app": {"readinessPath": "/health"}, "image": {"digest": DIGEST}},
        "networkPolicy": {"enabled": True},
    },
    "recreated": {**WSGI, "strategy": {"type": "Recreate", "rollingUpdate": None}, "replicas": 1},
    "everything": EVERYTHING,
}


def rendered(values: Object, *, name: str = NAME, namespace: str = NAMESPACE) -> Release:
    """Render the chart of applications."""
    return harness.render(harness.APP, values, name=name, namespace=namespace)


def pod_of(release: Release) -> Object:
    """Return the template of the application's pods."""
    template: Object = release.one("Deployment")["spec"]["template"]
    return template


def container_of(release: Release, name: str = "app") -> Object:
    """Return a container of the application's pods."""
    (found,) = [each for each in harness.containers(pod_of(release)) if each["name"] == name]
    return found


def with_value(values: Object, path: str, value: Any) -> Object:
    """Return values with one more, at a path like ``control.auth``."""
    first, _, rest = path.partition(".")
    return {**values, first: with_value(values.get(first) or {}, rest, value) if rest else value}
