"""What is wrong with a template before it is rendered."""

import pytest
from jinja2 import Environment, PackageLoader, nodes

ENVIRONMENT = Environment(loader=PackageLoader("console"), autoescape=True)


@pytest.mark.parametrize("name", ENVIRONMENT.list_templates())
def test_a_template_imports_each_macro_that_it_calls_and_no_other(name: str) -> None:
    """One that is a part of a page is rendered alone, too, where what the page has imported is missing."""
    assert ENVIRONMENT.loader
    tree = ENVIRONMENT.parse(ENVIRONMENT.loader.get_source(ENVIRONMENT, name)[0])
    called = {call.node.name for call in tree.find_all(nodes.Call) if isinstance(call.node, nodes.Name)}
    defined = {macro.name for macro in tree.find_all(nodes.Macro)}
    imports = [item for found in tree.find_all(nodes.FromImport) for item in found.names]
    imported = {item if isinstance(item, str) else item[1] for item in imports}
    # Functions that every template is given.
    assert called - defined - {"asset", "key", "range"} == imported
