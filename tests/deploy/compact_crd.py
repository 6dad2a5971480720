"""Makes data/kuberay.json out of KubeRay's CRDs: `python tests/deploy/compact_crd.py CRD.yaml …`.

Owns the form in which they are kept: no descriptions, nothing unknown allowed, equal parts once.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

DATA = Path(__file__).parent / "data" / "kuberay.json"
_WORTH_SHARING_BYTES = 200


def strict(schema: Any) -> Any:
    """A structural schema of Kubernetes as JSON Schema that allows what is listed and nothing else."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    kept = {
        name: strict(part) if name != "properties" else {key: strict(value) for key, value in part.items()}
        for name, part in schema.items()
        if name not in ("description", "format", "default") and not name.startswith("x-kubernetes")
    }
    if "properties" in kept and not schema.get("x-kubernetes-preserve-unknown-fields"):
        kept["additionalProperties"] = False
    return kept


def shared(schemas: dict[str, Any]) -> dict[str, Any]:
    """The schemas with parts that occur more than once under $defs."""
    counts: Counter[str] = Counter()

    def count(part: Any) -> None:
        if isinstance(part, dict) and "type" in part:
            counts[json.dumps(part, sort_keys=True)] += 1
        for child in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
            count(child)

    count(schemas)
    names: dict[str, str] = {}
    definitions: dict[str, Any] = {}

    def refer(part: Any) -> Any:
        if isinstance(part, list):
            return [refer(child) for child in part]
        if not isinstance(part, dict):
            return part
        text = json.dumps(part, sort_keys=True) if "type" in part else ""
        if counts[text] < 2 or len(text) < _WORTH_SHARING_BYTES:
            return {key: refer(child) for key, child in part.items()}
        if text not in names:
            names[text] = f"d{len(names)}"
            definitions[names[text]] = {key: refer(child) for key, child in part.items()}
        return {"$ref": f"#/$defs/{names[text]}"}

    referred = {kind: refer(schema) for kind, schema in schemas.items()}
    return {"$defs": {**definitions, **referred}}


def main() -> None:
    """Writes DATA."""
    schemas = {}
    for path in sys.argv[1:]:
        crd = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        (version,) = (each for each in crd["spec"]["versions"] if each["name"] == "v1")
        schemas[crd["spec"]["names"]["kind"]] = strict(version["schema"]["openAPIV3Schema"])
        schemas[crd["spec"]["names"]["kind"]]["properties"]["metadata"] = {"type": "object"}
        schemas[crd["spec"]["names"]["kind"]]["properties"].pop("status", None)
    DATA.write_text(json.dumps(shared(schemas), separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
