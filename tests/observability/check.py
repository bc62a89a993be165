"""What promtool does not know of deploy/observability; used by tests/observability.sh.

check.py files                  YAML and JSON say what they should
check.py queries FILE           writes the dashboard's queries to FILE, as rules for promtool
check.py names METRICS          all that is asked for is in these metrics of nodes
check.py tests PROMTOOL         each alert has tests, which notice if it always or never fires
check.py panels URL             each panel of the dashboard gets something from this Prometheus
"""

import concurrent.futures
import copy
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request

import yaml

DIRECTORY = pathlib.Path("deploy/observability")
# What Prometheus itself adds to what nodes tell, and what it knows of them.
OF_PROMETHEUS = {"up": set(), "ALERTS": {"alertname", "alertstate", "severity"}}
ADDED_LABELS = {"job", "instance", "le"}


def load(name):
    return yaml.safe_load((DIRECTORY / name).read_text())


def dashboard():
    return json.loads((DIRECTORY / "grafana/dashboards/remoteproxy.json").read_text())


def alerts(rules):
    return [rule for group in rules["groups"] for rule in group["rules"] if "alert" in rule]


def recorded(rules):
    return {rule["record"] for group in rules["groups"] for rule in group["rules"] if "record" in rule}


def queries():
    """(title, query) of all that the dashboard asks of Prometheus."""
    board = dashboard()
    for panel in board["panels"]:
        for target in panel.get("targets", []):
            if target["datasource"]["type"] == "prometheus":
                yield panel["title"], target["expr"]
    for annotation in board["annotations"]["list"]:
        yield "annotation " + annotation["name"], annotation["expr"]


def filled_in(query):
    """What Grafana makes of it for all nodes."""
    return query.replace("$__rate_interval", "1m").replace("$node", ".*")


def files():
    for rule in alerts(load("alerts.yml")):
        name = rule["alert"]
        assert rule["labels"]["severity"] in ("critical", "warning", "info"), name
        assert rule["annotations"]["summary"] and rule["annotations"]["description"], name

    collector = load("otel-collector.yaml")
    used = {"receivers": set(), "processors": set(), "exporters": set()}
    for pipeline in collector["service"]["pipelines"].values():
        assert pipeline["processors"][0] == "memory_limiter", "it must come first"
        for kind in used:
            used[kind] |= set(pipeline[kind])
    for kind, names in used.items():
        assert set(collector[kind]) == names, f"{kind}: {set(collector[kind])} are there, {names} used"

    sources = {source["uid"]: source["type"] for source in load("grafana/datasources/datasources.yaml")["datasources"]}
    assert set(sources) == set(sources.values()) == {"prometheus", "jaeger"}, sources
    [provider] = load("grafana/dashboards/dashboards.yaml")["providers"]

    board = dashboard()
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids)), "two panels with one id"
    taken = set()
    for panel in board["panels"]:
        title, place = panel["title"], panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"])
                 for y in range(place["y"], place["y"] + place["h"])}
        assert max(x for x, _ in cells) < 24 and not cells & taken, f"{title} lies on another panel"
        taken |= cells
        if panel["type"] == "row":
            continue
        source = panel["datasource"]
        assert source["uid"] == "${datasource}" or sources[source["uid"]] == source["type"], title
        assert panel["type"] in ("table", "state-timeline") or panel["fieldConfig"]["defaults"]["unit"], title
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]), title
    assert {variable["name"] for variable in board["templating"]["list"]} == {"datasource", "node"}

    services = yaml.safe_load(pathlib.Path("docker-compose.yml").read_text())["services"]
    grafana = services["grafana"]
    mounted = {volume.split(":")[1] for volume in grafana["volumes"]}
    home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert provider["options"]["path"] in mounted and home == provider["options"]["path"] + "/remoteproxy.json"
    # All that is named is there, is for the profile, and is for this machine only.
    added = {name for name, service in services.items() if service.get("profiles") == ["observability"]}
    assert added == {"collector", "jaeger", "prometheus", "grafana"}, added
    for name, service in services.items():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:${REMOTEPROXY_PORT"), f"{name}: {port}"
    targets = {target for job in load("prometheus.yml")["scrape_configs"]
               for config in job["static_configs"] for target in config["targets"]}
    assert targets == {f"{name}:9100" for name in services if name.startswith("node")}, targets
    print(f"  {len(ids)} panels, {len(alerts(load('alerts.yml')))} alerts")


def write_queries(file):
    rules = [{"record": "query", "expr": filled_in(query), "labels": {"number": str(number)}}
             for number, (_, query) in enumerate(queries())]
    pathlib.Path(file).write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    print(f"  {len(rules)} queries")


SELECTOR = re.compile(r"\b([a-zA-Z_][\w:]*)\{([^}]*)\}")
MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')
METRIC = re.compile(r"\b(?:remoteproxy|process)_\w+")
GROUPING = re.compile(r"\b(?:by|on|without|ignoring) \(([^)]*)\)")


def names(metrics):
    there = {}
    for line in pathlib.Path(metrics).read_text().splitlines():
        if not line.startswith("#"):
            name, labels = re.fullmatch(r"(\w+)(?:\{(.*)\})? \S+", line).groups()
            there.setdefault(name, set()).update(re.findall(r'(\w+)="', labels or ""))
    there |= OF_PROMETHEUS
    rules = load("alerts.yml")
    there |= {name: set() for name in recorded(rules)}
    words = "\n".join(file.read_text() for file in pathlib.Path("src").rglob("*.rs"))

    asked = [(rule.get("alert") or rule["record"], rule["expr"])
             for group in rules["groups"] for rule in group["rules"]] + list(queries())
    for source in load("grafana/datasources/datasources.yaml")["datasources"]:
        for query in source["jsonData"].get("tracesToMetrics", {}).get("queries", []):
            asked.append((query["name"], query["query"].replace("$$__tags", "")))
    faults = []
    for where, query in asked:
        bare = re.sub(r'"[^"]*"', '""', query)
        used = set(METRIC.findall(bare)) - {n for name in recorded(rules) for n in METRIC.findall(name)}
        faults += [f"{where}: there is no {name}" for name in sorted(used - there.keys())]
        known = ADDED_LABELS.union(*(there.get(name, set()) for name in used))
        for labels in GROUPING.findall(bare):
            unknown = {label.strip() for label in labels.split(",")} - known
            faults += [f"{where}: no label {label}" for label in sorted(unknown)]
        for name, matchers in SELECTOR.findall(query):
            if name not in there:
                faults.append(f"{where}: there is no {name}")
                continue
            for label, _, value in MATCHER.findall(matchers):
                if label not in there[name] | ADDED_LABELS:
                    faults.append(f"{where}: {name} has no label {label}")
                elif label not in ADDED_LABELS and name not in OF_PROMETHEUS:
                    # A word need not have occurred in this run, but the program must know it.
                    faults += [f"{where}: no {label} is ever {word}" for word in value.split("|")
                               if f'"{word}"' not in words]
    assert not faults, "\n".join(faults)
    print(f"  {len(asked)} queries ask for {len({n for _, q in asked for n in METRIC.findall(q)})} names")


def tests(promtool):
    rules, all_tests = load("alerts.yml"), load("alerts_test.yml")

    def passes(name, expression):
        """Whether the tests of this alert pass if it has this expression."""
        mine = []
        for test in all_tests["tests"]:
            exprs = [case for case in test["promql_expr_test"] if f'"{name}"' in case["expr"]]
            full = [case for case in test.get("alert_rule_test", []) if case["alertname"] == name]
            if exprs or full:
                mine.append({**test, "promql_expr_test": exprs, "alert_rule_test": full})
        assert mine, f"there is no test of {name}"
        changed = copy.deepcopy(rules)
        for rule in alerts(changed):
            if rule["alert"] == name:
                rule["expr"] = expression
        # The other alerts only cost time.
        for group in changed["groups"]:
            group["rules"] = [rule for rule in group["rules"] if rule.get("alert", name) == name]
        with tempfile.TemporaryDirectory() as directory:
            (pathlib.Path(directory) / "alerts.yml").write_text(yaml.safe_dump(changed))
            file = pathlib.Path(directory) / "test.yml"
            file.write_text(yaml.safe_dump({**all_tests, "tests": mine}))
            run = subprocess.run([promtool, "test", "rules", str(file)], capture_output=True, text=True)
            return run.returncode == 0

    # As it is; never; and for whatever there is.
    wanted = []
    for rule in alerts(rules):
        wanted += [(rule["alert"], rule["expr"], True), (rule["alert"], "vector(1) > 2", False),
                   (rule["alert"], 'max by (job, instance, reason) ({__name__!~"ALERTS.*"}) > bool -1', False)]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        results = pool.map(lambda case: (case, passes(*case[:2])), wanted)
        faults = [f"{name}: the tests {'pass' if passed else 'fail'} with {expression}"
                  for (name, expression, should), passed in results if passed != should]
    assert not faults, "\n".join(faults)
    print(f"  {len(wanted)} runs")


def panels(url):
    empty = []
    for title, query in queries():
        # That nothing has happened is what they usually say.
        if title.startswith("annotation"):
            continue
        asked = urllib.parse.urlencode({"query": filled_in(query)})
        with urllib.request.urlopen(f"{url}/api/v1/query?{asked}") as answer:
            if not json.load(answer)["data"]["result"]:
                empty.append(f"{title}: nothing for {query}")
    with urllib.request.urlopen(f"{url}/api/v1/rules") as answer:
        groups = json.load(answer)["data"]["groups"]
    all_rules = [rule for group in groups for rule in group["rules"]]
    assert len(alerts(load("alerts.yml"))) == sum(rule["type"] == "alerting" for rule in all_rules)
    empty += [f"{rule['name']}: {rule.get('lastError')}" for rule in all_rules if rule["health"] != "ok"]
    assert not empty, "\n".join(empty)
    print(f"  all panels have data, {len(all_rules)} rules are evaluated")


if __name__ == "__main__":
    steps = {"files": files, "queries": write_queries, "names": names, "tests": tests, "panels": panels}
    try:
        steps[sys.argv[1]](*sys.argv[2:])
    except AssertionError as error:
        sys.exit(f"{sys.argv[1]}: {error}")
