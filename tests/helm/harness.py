"""What the tests of the charts stand on: charts rendered by Helm's own code, objects looked at as a cluster would.

Rendering is offline and cached; objects are shared between tests, so nobody changes one. Schemas are those of the
Kubernetes versions that we support; our own kind is checked by its CRD, and what belongs to Prometheus by the part of
its API that the charts use.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
import json
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import helm_python
import jsonschema
import kubernetes_validate
import yaml

from tests.fakes import schema
from tests.helm import monitoring

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

type Object = dict[str, Any]

ROOT = Path(__file__).parents[2]
OPERATOR = ROOT / "helm/refork"
APP = ROOT / "helm/refork-app"
VERSIONS = tuple(f"1.{minor}" for minor in range(30, 38))
"""The versions of Kubernetes that the charts are made for."""

LONGEST_NAME = 63
_WARNING = 2
_VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}


@dataclass(frozen=True, slots=True)
class Release:
    """What a chart becomes: objects, hooks among them, and what is said to the person who installs it."""

    objects: tuple[Object, ...]
    notes: str

    def of(self, kind: str) -> list[Object]:
        """Return the objects of a kind."""
        return [item for item in self.objects if item["kind"] == kind]

    def one(self, kind: str, name: str = "") -> Object:
        """Return the object of a kind, of which there is one (with that name)."""
        (found,) = [item for item in self.of(kind) if name in ("", item["metadata"]["name"])]
        return found


def render(
    chart: Path,
    values: Object | None = None,
    *,
    name: str = "refork",
    namespace: str = "refork",
    upgrade: bool = False,
) -> Release:
    """Render a chart as ``helm install`` does, or ``helm upgrade``. Raises HelmError, also for refused values."""
    return _render(str(chart), json.dumps(values or {}), name, namespace, upgrade)


@functools.cache
def _load(chart: str) -> helm_python.Chart:
    return helm_python.Chart.load(chart)


@functools.cache
def _render(chart: str, values: str, name: str, namespace: str, upgrade: bool) -> Release:  # noqa: FBT001
    loaded, chosen = _load(chart), json.loads(values)
    loaded.validate_schema(chosen)
    files = loaded.render(chosen, name=name, namespace=namespace, is_install=not upgrade, is_upgrade=upgrade)
    objects = tuple(item for path, text in sorted(files.items()) if path.endswith(".yaml") for item in objects_of(text))
    notes = next((text for path, text in files.items() if path.endswith("NOTES.txt")), "")
    return Release(objects, notes)


def refusal(chart: Path, values: Object) -> str:
    """Return the words with which a chart refuses values."""
    try:
        render(chart, values)
    except helm_python.HelmError as error:
        return str(error)
    raise AssertionError(f"accepted: {values}")


def lint(chart: Path, values: Object | None = None) -> list[str]:
    """Return what ``helm lint --strict`` finds wrong."""
    report = helm_python.lint(chart, values, strict=True)
    wrong = [f"{item['path']}: {item['error']}" for item in report["messages"] if item["severity"] >= _WARNING]
    return [*wrong, *report["errors"]]


class _Loader(yaml.CSafeLoader):
    """Refuses a key that stands twice in a mapping; YAML's own rule, which its readers forgive."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002
        keys = [self.construct_object(key) for key, _ in node.value]  # type: ignore[no-untyped-call]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"twice in one mapping: {twice}", node.start_mark)
        return super().construct_mapping(node, deep)


@functools.cache
def objects_of(text: str) -> tuple[Object, ...]:
    """Read the objects of a manifest."""
    return tuple(item for item in yaml.load_all(text, Loader=_Loader) if item)


# It reads its files, of some megabytes, for each object again.
kubernetes_validate.utils.schema_contents = functools.cache(kubernetes_validate.utils.schema_contents)


# --- as a cluster sees them -------------------------------------------------------------------------------------------


def faults(item: Object, *, version: str) -> list[str]:
    """Return what an API server of a version would refuse in an object; no field may be unknown."""
    return list(_faults(json.dumps(item), version))


@functools.cache
def _faults(text: str, version: str) -> tuple[str, ...]:
    item = json.loads(text)
    label = f"{item['kind']} {item['metadata']['name']}"
    if item["kind"] == "ReforkPolicy":
        return tuple(f"{label}: {fault}" for fault in _policy_faults(item))
    if item["kind"] in monitoring.SCHEMAS:
        checker = jsonschema.Draft202012Validator(monitoring.SCHEMAS[item["kind"]])
        return tuple(f"{label}: {error.json_path}: {error.message}" for error in checker.iter_errors(item))
    try:
        used = kubernetes_validate.validate(item, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return (f"{label}: {'.'.join(map(str, error.path))}: {error.message}",)
    assert used == version, f"kubernetes-validate has no schemas of {version}, and took those of {used}"
    return ()


def _policy_faults(item: Object) -> list[str]:
    crd = yaml.safe_load((OPERATOR / "files/reforkpolicy-crd.yaml").read_text())
    admitted = copy.deepcopy(item)
    found = schema.admit(admitted, crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"])
    return [*found, *(f"{path} is unknown, and would be dropped" for path in _lost(item, admitted))]


def _lost(before: Any, after: Any, path: str = "") -> Iterator[str]:
    if isinstance(before, dict):
        for key, value in before.items():
            if key in after:
                yield from _lost(value, after[key], f"{path}.{key}")
            else:
                yield f"{path}.{key}"
    elif isinstance(before, list):
        for number, value in enumerate(before):
            yield from _lost(value, after[number], f"{path}[{number}]")


def pods(objects: tuple[Object, ...]) -> list[tuple[str, Object]]:
    """Return every pod and pod template (which has metadata and a spec, too), each with a label for messages."""
    found = []
    for item in objects:
        label = f"{item['kind']} {item['metadata']['name']}"
        if item["kind"] == "Pod":
            found.append((label, item))
        elif item["kind"] == "CronJob":
            found.append((label, item["spec"]["jobTemplate"]["spec"]["template"]))
        elif "template" in item.get("spec", {}):
            found.append((label, item["spec"]["template"]))
    return found


def containers(pod: Object) -> list[Object]:
    """Return every container of a pod."""
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def unrestricted(pod: Object) -> list[str]:
    """Return what keeps a pod from the restricted Pod Security Standard, and whose root file system can be written."""
    spec = pod["spec"]
    security = spec.get("securityContext", {})
    wrong = [f"{field} is set" for field in ("hostNetwork", "hostPID", "hostIPC") if spec.get(field)]
    if security.get("runAsNonRoot") is not True:
        wrong.append("runAsNonRoot is not true")
    if security.get("runAsUser") == 0:
        wrong.append("runAsUser is 0")
    if security.get("seccompProfile", {}).get("type") not in {"RuntimeDefault", "Localhost"}:
        wrong.append("there is no seccompProfile")
    wrong += [f"volume {v['name']}" for v in spec.get("volumes", []) if not set(v) - {"name"} <= _VOLUMES]
    return wrong + [f"{each['name']}: {fault}" for each in containers(pod) for fault in _loose(each)]


def _loose(container: Object) -> Iterator[str]:
    security = container.get("securityContext", {})
    if security.get("allowPrivilegeEscalation") is not False:
        yield "allowPrivilegeEscalation is not false"
    if security.get("privileged"):
        yield "privileged"
    if security.get("capabilities", {}).get("drop") != ["ALL"]:
        yield "capabilities are not dropped"
    if set(security.get("capabilities", {}).get("add", [])) - {"NET_BIND_SERVICE"}:
        yield "capabilities are added"
    if security.get("readOnlyRootFilesystem") is not True:
        yield "the root file system can be written"
    if security.get("runAsNonRoot") is False or security.get("runAsUser") == 0:
        yield "it runs as root"
    if any("hostPort" in port for port in container.get("ports", [])):
        yield "a hostPort is used"


# --- that things meet -------------------------------------------------------------------------------------------------


def misses(objects: tuple[Object, ...]) -> list[str]:
    """Return the selectors that select no pod, and the ports that are asked for and that no selected pod has.

    Those of a Deployment, Service, PodDisruptionBudget, NetworkPolicy and PodMonitor; of a ServiceMonitor by a Service.
    """
    wrong = []
    for item in objects:
        label = f"{item['kind']} {item['metadata']['name']}"
        wanted, ports, among = _selection(item, objects)
        if wanted is None:
            continue
        selected = [each for each in among if wanted.items() <= each["metadata"].get("labels", {}).items()]
        if not wanted or not selected:
            wrong.append(f"{label} selects nothing: {wanted}")
        missing = [port for port in ports if not all(port in _ports(each) for each in selected)]
        wrong += [f"{label} asks for port {port}, which {wanted} lacks" for port in missing]
    return wrong


def _selection(item: Object, objects: tuple[Object, ...]) -> tuple[dict[str, str] | None, list[Any], list[Object]]:
    """Tell which labels an object selects, which ports it asks for, and among what."""
    spec, templates = item.get("spec", {}), [pod for _, pod in pods(objects)]
    match item["kind"]:
        case "Service":
            return spec.get("selector"), [port.get("targetPort", port["port"]) for port in spec["ports"]], templates
        case "NetworkPolicy":
            inside = [port["port"] for rule in spec.get("ingress", []) for port in rule.get("ports", [])]
            return spec["podSelector"]["matchLabels"], inside, templates
        case "PodMonitor":
            return spec["selector"]["matchLabels"], [each["port"] for each in spec["podMetricsEndpoints"]], templates
        case "ServiceMonitor":
            services = [each for each in objects if each["kind"] == "Service"]
            return spec["selector"]["matchLabels"], [each["port"] for each in spec["endpoints"]], services
        case "Deployment" | "StatefulSet" | "DaemonSet" | "PodDisruptionBudget":
            return spec["selector"]["matchLabels"], [], templates
        case "ReforkPolicy":
            return spec["selector"]["matchLabels"], [], templates
    return None, [], []


def _ports(item: Object) -> set[Any]:
    """Return the names and numbers of the ports of a pod or Service."""
    listed = item["spec"].get("ports") or [port for each in containers(item) for port in each.get("ports", [])]
    numbers = {port.get("containerPort", port.get("port")) for port in listed}
    return numbers | {port["name"] for port in listed if "name" in port}


def too_long(objects: tuple[Object, ...]) -> list[str]:
    """Return the names of objects and the values of labels that are longer than a DNS label may be."""
    metadata = [item["metadata"] for item in (*objects, *(pod for _, pod in pods(objects)))]
    names = [item["metadata"]["name"] for item in objects]
    values = [value for each in metadata for value in each.get("labels", {}).values()]
    return [text for text in (*names, *values) if len(text) > LONGEST_NAME]


# --- values and their schema ------------------------------------------------------------------------------------------


def open_levels(schema: Object, path: str = "") -> Iterator[str]:
    """Return where a schema lets any name stand."""
    if schema.get("type") == "object" and schema.get("additionalProperties", True) is True:
        yield path
    for key in ("properties", "definitions"):
        for name, inner in schema.get(key, {}).items():
            yield from open_levels(inner, f"{path}.{key}.{name}".lstrip("."))
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from open_levels(schema[key], f"{path}.{key}".lstrip("."))
    for key in ("anyOf", "allOf", "oneOf"):
        for number, inner in enumerate(schema.get(key, [])):
            yield from open_levels(inner, f"{path}.{key}[{number}]".lstrip("."))


def declared(schema: Object, path: str = "") -> set[str]:
    """Return the names that a schema lists, with dots between levels; of lists and maps only their own."""
    found = set()
    for name, inner in schema.get("properties", {}).items():
        here = f"{path}{name}"
        found |= {here} | (declared(inner, f"{here}.") if inner.get("type") == "object" else set())
    return found


def names(values: Object, schema: Object, path: str = "") -> set[str]:
    """Return the names of values, as deep as the schema lists names."""
    found = set()
    for name, inner in values.items():
        here, below = f"{path}{name}", schema.get("properties", {}).get(name, {})
        deeper = isinstance(inner, dict) and "properties" in below
        found |= {here} | (names(inner, below, f"{here}.") if deeper else set())
    return found


def script(path: str) -> ModuleType:
    """Load a script of the repository, by its path in it."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def project_version() -> str:
    """Return the version of the project."""
    version: str = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    return version
