"""The Ansible role as its author's rules have it, and the example inventory; tests/device runs all of it on devices."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ANSIBLE = Path(__file__).parent.parent / "ansible"
ROLE = ANSIBLE / "roles/uptime_agent"
BIN = Path(sys.executable).parent
UNSEEN = "not-to-be-seen"


def ansible(command, *arguments, folder):
    """What it prints, and its exit status; it writes into `folder` only."""
    own = {"ANSIBLE_HOME": str(folder), "ANSIBLE_NOCOLOR": "1", "NO_COLOR": "1"}
    own["PATH"] = f"{BIN}:{os.environ['PATH']}"
    done = subprocess.run(
        [BIN / command, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | own,
        cwd=folder,
        timeout=110,
    )
    return done.stdout, done.returncode


@pytest.fixture
def play(tmp_path):
    """Plays one part of the role here, for the hosts of an inventory."""

    def play(part, inventory, *arguments):
        role = {"name": str(ROLE), "tasks_from": part}
        tasks = [{"ansible.builtin.include_role": role}]
        plays = [{"hosts": "uptime_agents", "connection": "local", "gather_facts": False, "tasks": tasks}]
        (tmp_path / "play.yml").write_text(yaml.safe_dump(plays))
        return ansible("ansible-playbook", "-i", inventory, "play.yml", *arguments, folder=tmp_path)

    return play


def recap(said):
    """How often each host failed, as Ansible counts it."""
    return {host: int(failed) for host, failed in re.findall(r"^(\S+) +: ok=.* failed=(\d+)", said, re.M)}


def inventory(tmp_path, **variables):
    """Of one host, `pi`, with these variables beside those that are required."""
    required = {
        "uptime_agent_location": {"id": "ist-1"},
        "uptime_agent_kafka": {"bootstrap_servers": ["broker.example:9092"]},
    }
    file = tmp_path / "hosts.yml"
    file.write_text(yaml.safe_dump({"uptime_agents": {"hosts": {"pi": required | variables}}}))
    return file


def test_lint(tmp_path):
    """ansible-lint's strictest profile has nothing to say."""
    said, status = ansible(
        "ansible-lint", "--profile", "production", "--offline", "-q", "--project-dir", ANSIBLE, ANSIBLE, folder=tmp_path
    )
    assert (said, status) == ("", 0)


def test_every_variable_is_described():
    """What has a default has the same in the specification of the arguments, and all else is required."""
    defaults = yaml.safe_load((ROLE / "defaults/main.yml").read_text())
    specs = yaml.safe_load((ROLE / "meta/argument_specs.yml").read_text())["argument_specs"]
    options = {name: spec for entry in specs.values() for name, spec in entry["options"].items()}
    assert {name: spec["default"] for name, spec in options.items() if "default" in spec} == defaults
    assert all(spec.get("required") for spec in options.values() if "default" not in spec)
    for entry in specs.values():
        assert all(spec == options[name] for name, spec in entry["options"].items())


def test_every_variable_is_known():
    """One that is not in this list is refused as misspelled."""
    specs = yaml.safe_load((ROLE / "meta/argument_specs.yml").read_text())["argument_specs"]
    known = yaml.safe_load((ROLE / "vars/main.yml").read_text())["uptime_agent__variables"]
    assert known == sorted({name for entry in specs.values() for name in entry["options"]})


def test_every_task_file_is_used():
    """It is one that a playbook names, or one that another imports."""
    files = {file.name for file in (ROLE / "tasks").iterdir()}
    imported = {
        task["ansible.builtin.import_tasks"]
        for file in (ROLE / "tasks").iterdir()
        for task in yaml.safe_load(file.read_text())
        if "ansible.builtin.import_tasks" in task
    }
    assert files == imported | {"main.yml", "rollback.yml", "remove.yml"}


def test_the_example_is_good(play):
    """Each device of the example inventory gets a configuration that the agent takes."""
    said, status = play("check", ANSIBLE / "inventory.example")
    assert status == 0, said
    assert recap(said) == {"ist-1-pi": 0, "ber-1-pi": 0}


def test_targets_of_groups_add_up(play, tmp_path):
    """A host has the targets of every group that it is in; two of one id are refused, by name."""
    shop, mail = ({"id": "same", "url": f"https://{name}.example/"} for name in ("shop", "mail"))
    twice = inventory(tmp_path, uptime_agent_targets_shop=[shop], uptime_agent_targets_mail=[mail])
    said, status = play("check", twice)
    assert status != 0
    assert re.search(r'config.yaml:\d+:\d+: targets\[1\].*\\"same\\"', said), said


def test_a_mistake_is_told_as_the_agent_tells_it(play, tmp_path):
    """The key and the mend are in the output, and nothing else was tried."""
    said, status = play("check", inventory(tmp_path, uptime_agent_settings={"defaults": {"interval": "soon"}}))
    assert status != 0
    assert "defaults.interval" in said
    assert "duration" in said


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"uptime_agent_target_shop": []}, "What is uptime_agent_target_shop?"),
        ({"uptime_agent_settings": {"targets": []}}, "uptime_agent_settings cannot have targets"),
    ],
)
def test_what_would_be_lost_in_silence_is_refused(play, tmp_path, variables, told):
    """A variable that is misspelled, and a setting that another variable would replace."""
    said, status = play("preflight", inventory(tmp_path, **variables))
    assert status != 0
    assert told in said


def test_a_credential_that_the_inventory_has_not(play, tmp_path):
    """It is named at once, as the device may have it from somewhere else."""
    target = {"url": "https://shop.example/", "headers": {"X-Token": {"credential": "shop-token"}}}
    said, status = play("check", inventory(tmp_path, uptime_agent_targets=[target]))
    assert status == 0
    assert "not in uptime_agent_secrets: shop-token" in said
    said, _ = play(
        "check", inventory(tmp_path, uptime_agent_targets=[target], uptime_agent_secrets={"shop-token": "x"})
    )
    assert "not in uptime_agent_secrets" not in said


@pytest.mark.parametrize(
    "secrets",
    [UNSEEN, {"token": [UNSEEN]}, {"../token": UNSEEN}, {"token": {"a": UNSEEN}}],
    ids=["no mapping", "a list", "a path", "a mapping"],
)
def test_secrets_of_another_form_are_refused_unseen(play, tmp_path, secrets):
    """Their form is told, their values are not."""
    said, status = play("preflight", inventory(tmp_path, uptime_agent_secrets=secrets), "-vvv", "--diff")
    assert status != 0
    assert "uptime_agent_secrets is a mapping of names" in said
    assert UNSEEN not in said


def test_a_vaulted_value_within_the_configuration(play, tmp_path):
    """It is written as it is, not as Ansible's own tag, and it is shown nowhere."""
    (tmp_path / "password").write_text("of the vault")
    vaulted, _ = ansible(
        *("ansible-vault", "encrypt_string", "--vault-password-file", "password", UNSEEN), folder=tmp_path
    )
    first, *lines = vaulted[vaulted.index("!vault") :].splitlines()
    properties = {"security.protocol": "SASL_SSL", "sasl.mechanism": "PLAIN", "sasl.username": "pi"}
    file = inventory(
        tmp_path,
        uptime_agent_kafka={
            "bootstrap_servers": ["broker.example:9092"],
            "properties": properties | {"sasl.password": "HERE"},
        },
    )
    indented = "\n".join([first, *(" " * 16 + line.strip() for line in lines if line.startswith(" "))])
    file.write_text(file.read_text().replace("HERE", indented))
    said, status = play("check", file, "--vault-password-file", tmp_path / "password", "-vvv", "--diff")
    assert status == 0, said
    assert UNSEEN not in said
