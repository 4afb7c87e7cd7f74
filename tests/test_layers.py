"""The arrows between the parts of the agent point one way, and what is known in one place stays there."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "agent").rglob("*.py"))
}

DOUBTS = {
    "agent.config.model",
    "agent.device.clock",
    "agent.inquiry.doubter",
    "agent.inquiry.questions",
    "agent.probers",
    "agent.schedule",
    "agent.verdict.found",
}

# What each part may import of the agent; a part may always import from within itself.
ARROWS = {
    "agent": set(),
    "agent.__main__": {"agent.cli"},
    "agent.cli": {"agent"},  # the commands know all
    "agent.daemon": {
        "agent.config",
        "agent.configured",
        "agent.delivery",
        "agent.device",
        "agent.probers",
        "agent.record",
        "agent.results",
        "agent.schedule",
        "agent.spool",
        "agent.status",
    },
    "agent.configured": {
        "agent.config",
        "agent.delivery",
        "agent.device.clock",
        "agent.edits",
        "agent.last_good",
        "agent.status",
    },
    "agent.edits": {"agent.config.files", "agent.device.clock"},
    "agent.last_good": {"agent.config", "agent.device.durable"},
    "agent.once": {
        "agent.config",
        "agent.device",
        "agent.inquiry",
        "agent.probers",
        "agent.record",
        "agent.schedule",
        "agent.verdict.found",
    },
    "agent.watch": {"agent.show"},
    "agent.waiting": {"agent.show", "agent.spool"},
    "agent.show": set(),
    "agent.status": {"agent.device.vitals"},
    "agent.overview": {"agent.show", "agent.status"},
    "agent.log": {"agent.config.masking"},
    "agent.results": {
        "agent.device.clock",
        "agent.inquiry",
        "agent.probers.resolver",
        "agent.probers.result",
        "agent.record",
        "agent.schedule",
        "agent.spool.spool",
        "agent.verdict.found",
    },
    "agent.inquiry": {
        "agent.config.masking",
        "agent.config.model",
        "agent.device.clock",
        "agent.device.source",
        "agent.device.uplink",
        "agent.probers",
        "agent.schedule",  # plain `Measurement`
        "agent.verdict",
    },
    # Those who doubt know nothing of the inquiry, nor of the rules.
    "agent.inquiry.doubter": {
        "agent.config.model",
        "agent.probers.result",
        "agent.schedule",
        "agent.verdict.found",
    },
    "agent.inquiry.case": {
        "agent.device.clock",
        "agent.device.uplink",  # plain `Way`
        "agent.probers",
        "agent.schedule",
        "agent.verdict.found",
    },
    "agent.inquiry.questions": {
        "agent.config.model",
        "agent.device.source",
        "agent.probers",
        "agent.schedule",
        "agent.verdict.found",
    },
    "agent.inquiry.certificates": DOUBTS,
    "agent.inquiry.naming": DOUBTS,
    "agent.inquiry.refusals": DOUBTS | {"agent.verdict.evidence"},
    "agent.record": {
        "agent.config.model",
        "agent.device",
        "agent.probers.prober",
        "agent.probers.result",
        "agent.schedule",
        "agent.spool.record",  # plain `Record`, `Gap` and `Origin`
        "agent.verdict.found",
    },
    "agent.schedule": {
        "agent.config.masking",
        "agent.config.model",
        "agent.device.clock",
        "agent.probers.prober",
        "agent.probers.result",
        "agent.timer",
    },
    "agent.timer": set(),
    "agent.verdict": {"agent.config.model", "agent.probers.result"},
    "agent.verdict.evidence": {"agent.config.model", "agent.probers.result", "agent.verdict.distance"},
    "agent.verdict.found": {"agent.probers.result"},
    "agent.verdict.distance": set(),
    "agent.probers": {
        "agent.config.dns",
        "agent.config.model",
        "agent.config.masking",
        "agent.config.pem",
        "agent.config.regexp",
        "agent.device.clock",
        "agent.device.source",
        "agent.device.uplink",
        "agent.timer",
    },
    "agent.delivery": {
        "agent.config.masking",
        "agent.config.model",
        "agent.device.clock",
        "agent.spool.record",
        "agent.spool.spool",
    },
    "agent.spool": {"agent.device.clock"},
    "agent.config": set(),
    "agent.device": set(),
}

# The only modules that know these libraries.
ALONE = {
    "confluent_kafka": {"agent.delivery.kafka"},
    "httptools": {"agent.probers.http1"},
    "ssl": {"agent.probers.tls", "agent.probers.exchange", "agent.config.pem"},
    "re2": {"agent.config.regexp"},
    "rich": {"agent.overview", "agent.show", "agent.watch"},
    "yaml": {"agent.config"},
}


def imports(path: Path) -> Iterator[str]:
    """Every module that `path` imports, wherever in the file; `from a import b` is `a.b` when that is a module."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else node.module


def within(module: str, part: str) -> bool:
    return module == part or module.startswith(part + ".")


@pytest.mark.parametrize("module", MODULES)
def test_arrows_point_one_way(module: str) -> None:
    """Each module imports only what its part is allowed to."""
    part = max((part for part in ARROWS if within(module, part)), key=len)
    if part == "agent" and module != "agent":
        pytest.fail(f"{module} belongs to no part: give it a place in ARROWS")
    allowed = ARROWS[part] | ({part} if part != "agent" else set())
    wrong = {
        imported
        for imported in imports(MODULES[module])
        if within(imported, "agent") and imported != "agent" and not any(within(imported, part) for part in allowed)
    }
    assert not wrong, f"{module} imports {sorted(wrong)}"


def test_no_import_circles() -> None:
    """Following the imports never leads back."""
    arrows = {module: {name for name in imports(path) if name in MODULES} for module, path in MODULES.items()}
    left = {module: names - {module, "agent"} for module, names in arrows.items()}
    while free := {module for module, names in left.items() if not names & left.keys()}:
        left = {module: names for module, names in left.items() if module not in free}
    assert not left, f"circle among {sorted(left)}"


@pytest.mark.parametrize("library", ALONE)
def test_a_library_is_known_in_one_place(library: str) -> None:
    """Only the module made for it imports the library."""
    knowing = {module for module, path in MODULES.items() for name in imports(path) if within(name, library)}
    assert knowing, f"nothing imports {library} any more"
    wrong = {module for module in knowing if not any(within(module, place) for place in ALONE[library])}
    assert not wrong


def test_files_are_short() -> None:
    """No file is over 600 lines."""
    sizes = {module: len(path.read_text().splitlines()) for module, path in MODULES.items()}
    assert not {module: size for module, size in sizes.items() if size > 600}
