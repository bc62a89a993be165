#!/usr/bin/env bash
# Checks deploy/kubernetes: every manifest against the published schemas of Kubernetes, alone and as
# the kustomizations render them (by kubectl, where there is one), and what no schema knows: that
# no file is forgotten, and that a pod is given the time that its drain takes.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=target/kubernetes-venv
# The newest Kubernetes and the oldest one that the manifests are for.
versions=(1.37.0 1.27.0)

if ! "$venv/bin/python" -c 'import kubernetes_validate' 2>/dev/null; then
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet kubernetes-validate==1.37.0
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -r deploy/kubernetes "$work/"
base=$work/kubernetes/base
development=$work/kubernetes/development

conforms() {
  for version in "${versions[@]}"; do
    "$venv/bin/kubernetes-validate" --strict --quiet -k "$version" "$@"
  done
}

# A check that cannot fail is none.
for fault in 's/^  minReadySeconds: 5$/  minReadySeconds: five/' 's/^  serviceName:/  serviceNam:/'; do
  sed "$fault" "$base/nodes.yaml" >"$work/broken.yaml"
  if cmp -s "$base/nodes.yaml" "$work/broken.yaml" || conforms "$work/broken.yaml" >/dev/null 2>&1
  then
    echo "a broken manifest is not noticed: $fault" >&2
    exit 1
  fi
done

mapfile -t manifests < <(find "$work/kubernetes" -name '*.yaml' ! -name kustomization.yaml | sort)
conforms "${manifests[@]}"

rendered=()
if command -v kubectl >/dev/null; then
  # Whatever is in them: a kustomization asks only that the files are there.
  mkdir -p "$development/certs"
  touch "$development"/certs/{server,bridge,ca}.{pem,key}
  for directory in "$base" "$development"; do
    file=$work/rendered-${#rendered[@]}.yaml
    kubectl kustomize "$directory" >"$file"
    conforms "$file"
    rendered+=("$file")
  done
else
  echo "there is no kubectl: the manifests are checked, but not how they are put together"
fi

"$venv/bin/python" - "$base" "${rendered[@]}" <<'END'
import pathlib, re, sys, yaml

base = pathlib.Path(sys.argv[1])
for kustomization in base.parent.rglob("kustomization.yaml"):
    listed = yaml.safe_load(kustomization.read_text())["resources"]
    there = {p.name for p in kustomization.parent.glob("*.yaml")} - {"kustomization.yaml"}
    assert {r for r in listed if r != "../base"} == there, f"{kustomization} lists {listed}, not {there}"

def seconds(duration):
    units = {"s": 1, "m": 60, "h": 3600}
    return sum(int(n) * units[u] for n, u in re.findall(r"(\d+)([smh])", duration))

settings = (base / "kustomization.yaml").read_text()
drain = seconds(re.search(r"REMOTEPROXY__DRAIN__GRACE=(\S+)", settings)[1])
pod = yaml.safe_load((base / "nodes.yaml").read_text())["spec"]["template"]["spec"]
_, pre_stop = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
needed, given = int(pre_stop) + drain, pod["terminationGracePeriodSeconds"]
assert drain and given > needed, f"a pod gets {given} s to end, but takes {needed} s"

# Of what is rendered: all that is named is there. The base leaves the secrets to others.
for path in sys.argv[2:]:
    objects = list(yaml.safe_load_all(pathlib.Path(path).read_text()))
    names = {(o["kind"], o["metadata"]["name"]) for o in objects}
    nodes = next(o for o in objects if o["kind"] == "StatefulSet")
    assert ("Service", nodes["spec"]["serviceName"]) in names
    spec = nodes["spec"]["template"]["spec"]
    container = spec["containers"][0]
    wanted = {("ConfigMap", e["configMapRef"]["name"]) for e in container["envFrom"]}
    if any(kind == "Secret" for kind, _ in names):
        wanted |= {("Secret", v["secret"]["secretName"]) for v in spec["volumes"]}
        wanted |= {("Secret", e["valueFrom"]["secretKeyRef"]["name"]) for e in container["env"]
                   if "secretKeyRef" in e.get("valueFrom", {})}
    assert wanted <= names, f"missing: {wanted - names}"
END
echo "the manifests of Kubernetes: passed (${#manifests[@]} files, ${#rendered[@]} rendered)"
