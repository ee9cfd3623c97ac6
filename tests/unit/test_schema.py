from __future__ import annotations

import json
import pathlib
import tomllib

import jsonschema
import pytest

from osmoda.sandbox import schema, tiers

SHIPPED = pathlib.Path(tiers.SHIPPED)


@pytest.mark.parametrize(
    ("file", "shape"), [("profile.schema.json", schema.ProfileFile), ("tier.schema.json", schema.TierFile)]
)
def test_the_generated_schema_is_current_and_valid(file, shape):
    assert (SHIPPED / file).read_text() == schema.schema_text(shape), "run: python -m osmoda.sandbox.schema profiles"
    jsonschema.Draft202012Validator.check_schema(json.loads((SHIPPED / file).read_text()))


@pytest.mark.parametrize(
    "path", sorted({*SHIPPED.rglob("*.toml")} - {SHIPPED / "plans.toml"}), ids=lambda path: path.name
)
def test_editors_find_the_schema_and_agree_with_it(path):
    first = path.read_text().split("\n")[0]
    assert first.startswith("#:schema ")
    found = json.loads((path.parent / first.removeprefix("#:schema ")).resolve().read_text())
    jsonschema.Draft202012Validator(found).validate(tomllib.loads(path.read_text()))


def test_editors_refuse_what_the_validator_refuses():
    found = jsonschema.Draft202012Validator(schema.json_schema(schema.ProfileFile))
    for document in ({"schema": 1, "tiers": 1}, {"schema": 1, "tier": 3}, {}, {"schema": 1, "network": {"allow": [1]}}):
        assert not found.is_valid(document)


def test_every_key_is_described():
    def undescribed(node, path):
        for name, item in node.get("properties", {}).items():
            if "description" not in item and "$ref" not in item:
                yield f"{path}.{name}"

    found = schema.json_schema(schema.ProfileFile)
    tables = {"": found, **found["$defs"]}
    assert [key for name, table in tables.items() for key in undescribed(table, name)] == []
    assert all("description" in table for table in tables.values())
