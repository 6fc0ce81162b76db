"""Checks Kubernetes manifests against the schemas of several versions, and what schemas cannot say.

usage: kubernetes.py FILE...
Ends with 0 when all is well; otherwise says what is wrong.
"""

import sys

import kubernetes_validate
import yaml

# The oldest one that is still supported somewhere, and newer ones that the package knows.
VERSIONS = ["1.29", "1.32", "1.34"]


def main(files):
    documents = []
    for file in files:
        with open(file, encoding="utf-8") as text:
            documents += [d for d in yaml.safe_load_all(text) if d]
    for document in documents:
        for version in VERSIONS:
            # strict: a field that the schema does not know is a mistake.
            kubernetes_validate.validate(document, version, strict=True)
    by_kind = {}
    for document in documents:
        by_kind.setdefault(document["kind"], []).append(document)
    check_wiring(by_kind)
    print(f"{len(documents)} documents fit {', '.join(VERSIONS)}")


def check_wiring(by_kind):
    """Names and labels that must fit each other, and promises that an operator relies on."""
    [stateful] = by_kind["StatefulSet"]
    [budget] = by_kind["PodDisruptionBudget"]
    services = {service["metadata"]["name"]: service for service in by_kind["Service"]}
    template = stateful["spec"]["template"]
    labels = template["metadata"]["labels"].items()
    pod = template["spec"]
    [container] = pod["containers"]

    def selects(selector):
        return selector.items() <= labels

    assert selects(stateful["spec"]["selector"]["matchLabels"]), "the StatefulSet does not select its pods"
    assert selects(budget["spec"]["selector"]["matchLabels"]), "the budget does not select the pods"
    assert budget["spec"]["maxUnavailable"] == 1, "two of three are a majority, one is not"
    ports = {port["name"] for port in container["ports"]}
    for name, service in services.items():
        assert selects(service["spec"]["selector"]), f"{name} does not select the pods"
        for port in service["spec"]["ports"]:
            assert port["targetPort"] in ports, f"{name}: no port {port['targetPort']}"
    headless = services[stateful["spec"]["serviceName"]]
    assert headless["spec"]["clusterIP"] == "None", "the StatefulSet's own Service must be headless"
    config_maps = {c["metadata"]["name"] for c in by_kind["ConfigMap"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    claims = {claim["metadata"]["name"] for claim in stateful["spec"]["volumeClaimTemplates"]}
    for mount in container["volumeMounts"]:
        assert mount["name"] in volumes or mount["name"] in claims, f"{mount['name']} is no volume"
    for volume in volumes.values():
        if "configMap" in volume:
            assert volume["configMap"]["name"] in config_maps, "a ConfigMap is missing"
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["exec"]["command"][:2] == ["holdfast", "probe"], probe
    assert "cluster drain" in container["lifecycle"]["preStop"]["exec"]["command"][-1], "no drain before the stop"
    # 60 s for the drain, 20 s for node.stop_deadline, 2 s beyond it.
    assert pod["terminationGracePeriodSeconds"] > 60 + 20 + 2
    assert pod["securityContext"]["runAsNonRoot"] and container["securityContext"]["readOnlyRootFilesystem"]


if __name__ == "__main__":
    main(sys.argv[1:])
