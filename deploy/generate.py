# ruff: noqa: INP001 - a script among manifests, not a package
"""Writes the plain manifests from the charts, for those who do without Helm: ``python deploy/generate.py``.

What only Helm understands is left out: its labels and annotations, and the pods of ``helm test``. Dashboards and rules
are copied as they are. ``--check`` writes nothing, and says what differs.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import helm_python
import yaml

HERE = Path(__file__).parent
CHARTS = HERE.parent / "helm"
RESTRICTED = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
HELMS_LABELS = ("helm.sh/chart", "app.kubernetes.io/managed-by")
HELMS_ANNOTATION = "helm.sh/resource-policy"
HEAD = "# Written by deploy/generate.py from helm/{}. Edit that, or put a Kustomize overlay over this.\n"

type Object = dict[str, Any]


@dataclass(frozen=True)
class Bundle:
    """A directory here, and the release that it is made of. Its values are in values.yaml there, if there are any."""

    directory: str
    chart: str
    release: str
    namespace: str

    @property
    def values(self) -> Object:
        """What a person who installs the chart would say."""
        chosen = HERE / self.directory / "values.yaml"
        return yaml.safe_load(chosen.read_text()) if chosen.exists() else {}


BUNDLES = (
    Bundle("operator", chart="refork", release="refork", namespace="refork-system"),
    Bundle("app", chart="refork-app", release="web", namespace="web"),
)
COPIES = {"dashboards/*.json": "grafana", "rules/*.yaml": "prometheus"}


class _Dumper(yaml.SafeDumper):
    """Indents lists as people do, and writes texts of several lines as such."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002
        super().increase_indent(flow, indentless=False)


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def wanted() -> dict[Path, str]:
    """Return what should be here: paths and contents."""
    files: dict[Path, str] = {}
    for bundle in BUNDLES:
        files |= _manifests(bundle)
    for pattern, directory in COPIES.items():
        files |= {
            HERE / directory / source.name: source.read_text() for source in CHARTS.glob(f"refork/files/{pattern}")
        }
    return files


def stale(files: dict[Path, str]) -> list[Path]:
    """Return the manifests that are here and should not be."""
    present = [path for bundle in BUNDLES for path in (HERE / bundle.directory).glob("*.yaml")]
    return [path for path in present if path not in files and path.name != "values.yaml"]


def differences() -> list[str]:
    """Return what is not as it should be."""
    files = wanted()
    wrong = [path for path, text in files.items() if not path.exists() or path.read_text() != text]
    return [str(path.relative_to(HERE)) for path in [*wrong, *stale(files)]]


def write() -> None:
    """Make it so."""
    files = wanted()
    for path, text in files.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    for path in stale(files):
        path.unlink()


def _manifests(bundle: Bundle) -> dict[Path, str]:
    chart = helm_python.Chart.load(CHARTS / bundle.chart)
    rendered = chart.render(bundle.values, name=bundle.release, namespace=bundle.namespace)
    found = {Path(path).name: _objects(text) for path, text in rendered.items() if path.endswith(".yaml")}
    found = {
        "namespace.yaml": [_namespace(bundle.namespace)],
        **{name: items for name, items in found.items() if items},
    }
    found["kustomization.yaml"] = [
        {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", "resources": sorted(found)}
    ]
    directory, head = HERE / bundle.directory, HEAD.format(bundle.chart)
    return {directory / name: head + _dump(items) for name, items in found.items()}


def _objects(text: str) -> list[Object]:
    """Read a manifest, and take out what is Helm's."""
    objects = [item for item in yaml.safe_load_all(text) if item]
    for item in objects:
        for metadata in (item["metadata"], item.get("spec", {}).get("template", {}).get("metadata", {})):
            for label in HELMS_LABELS:
                metadata.get("labels", {}).pop(label, None)
        item["metadata"].get("annotations", {}).pop(HELMS_ANNOTATION, None)
        if item["metadata"].get("annotations") == {}:
            del item["metadata"]["annotations"]
    return [item for item in objects if "helm.sh/hook" not in item["metadata"].get("annotations", {})]


def _namespace(name: str) -> Object:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": RESTRICTED}}


def _dump(items: list[Object]) -> str:
    texts = [yaml.dump(item, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True) for item in items]
    return "---\n".join(texts)


if __name__ == "__main__":
    if "--check" not in sys.argv[1:]:
        write()
    different = differences()
    for each in different:
        sys.stdout.write(f"differs: {each}; run python deploy/generate.py\n")
    sys.exit(bool(different))
