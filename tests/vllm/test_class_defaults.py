"""The defaults of config classes that autotune knows, beside those of the installed classes."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest

from autotune.plan.models.table.class_defaults import CLASS_DEFAULTS, FIELDS

pytestmark = pytest.mark.installed_vllm


def own_default(kind: type, field: str) -> object:
    """What a config class gives a field, unless it follows from another one."""
    for each in kind.__mro__:
        found = vars(each).get("__dataclass_fields__", {}).get(field)
        if found is not None and isinstance(found.default, int):
            return found.default
        if isinstance(vars(each).get(field), int):
            return vars(each)[field]
    return None


@pytest.mark.parametrize("kind", CLASS_DEFAULTS)
def test_a_class_has_the_defaults_that_are_known(kind):
    known: Any = import_module("vllm.transformers_utils.config")._CONFIG_REGISTRY
    auto: Any = import_module("transformers.models.auto.configuration_auto").CONFIG_MAPPING
    try:
        of_class = known[kind]
    except KeyError:
        of_class = auto[kind]
    found = {field: own_default(of_class, field) for field in FIELDS}
    plain = {
        field: value
        for field, value in found.items()
        if type(value) is int or field in CLASS_DEFAULTS[kind]
    }
    assert plain == dict(CLASS_DEFAULTS[kind])
