"""Ansible as an operator has it: a control node with a key of its own, and the user `pi`, who may sudo, on devices."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from tests.device.machine import Machine, host

USER = "pi"
PLAY = 600.0  # seconds that a playbook may take on devices that are not emulated
COUNTS = re.compile(r"^(\S+) +: ok=(\d+) +changed=(\d+) +unreachable=(\d+) +failed=(\d+) +skipped=(\d+)", re.MULTILINE)


class Recap(NamedTuple):
    """What Ansible counts at the end, of a host."""

    ok: int
    changed: int
    unreachable: int
    failed: int
    skipped: int


class Played(NamedTuple):
    """A playbook's run: its exit status, all that it printed, and the recap of each host."""

    status: int
    output: str
    recap: dict[str, Recap]


class ControlNode:
    """Reaches these machines, which are on, as `pi`, in a group of hosts. It makes `folder` for all that it writes."""

    def __init__(self, folder: Path, group: str, machines: Mapping[str, Machine]) -> None:
        self._folder, self._group, self._machines = folder, group, machines
        folder.mkdir()
        self._key = folder / "key"
        host("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "the tests' operator", "-f", str(self._key))
        for machine in machines.values():
            self._let_in(machine)

    def _let_in(self, machine: Machine) -> None:
        machine.run("useradd", "--create-home", "--shell", "/bin/bash", USER)
        machine.run("install", "-d", "-o", USER, "-g", USER, "-m", "0700", f"/home/{USER}/.ssh")
        machine.path(f"/home/{USER}/.ssh/authorized_keys").write_bytes(self._key.with_suffix(".pub").read_bytes())
        sudoers = machine.path(f"/etc/sudoers.d/{USER}")
        sudoers.write_text(f"{USER} ALL=(ALL) NOPASSWD: ALL\n")
        sudoers.chmod(0o440)

    @property
    def _options(self) -> list[str]:
        known = ["-o", f"UserKnownHostsFile={self._folder}/known_hosts", "-o", "StrictHostKeyChecking=accept-new"]
        return [*known, "-o", "LogLevel=ERROR", "-o", "ServerAliveInterval=5"]

    def ssh(self, machine: Machine, *command: str) -> str:
        """Runs a command on the device as `pi`: what it prints. Raises `AssertionError` when it fails."""
        to = ["ssh", "-F", "none", "-i", str(self._key), *self._options, f"{USER}@{machine.own}"]
        return host(*to, *command)

    def play(self, playbook: Path, variables: Mapping[str, object], *options: str) -> Played:
        """Runs a playbook to its end, whatever that is; `variables` are those of all hosts."""
        hosts = {
            name: {
                "ansible_host": machine.own,
                "ansible_user": USER,
                "ansible_ssh_private_key_file": str(self._key),
                "ansible_ssh_common_args": " ".join(self._options),
            }
            for name, machine in self._machines.items()
        }
        inventory = self._folder / "inventory.json"
        inventory.write_text(json.dumps({self._group: {"hosts": hosts, "vars": variables}}))
        done = subprocess.run(
            [str(Path(sys.executable).parent / "ansible-playbook"), "-i", str(inventory), str(playbook), *options],
            cwd=playbook.parent,
            env={
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "HOME": os.environ["HOME"],
                "LANG": "C.UTF-8",
                "ANSIBLE_HOME": str(self._folder / "ansible"),
                "ANSIBLE_LOCAL_TEMP": str(self._folder / "ansible/tmp"),
                "ANSIBLE_NOCOLOR": "1",
                # The path of a socket has 108 letters at most; the connection ends with the tests, or soon after.
                "ANSIBLE_SSH_CONTROL_PATH_DIR": str(self._folder),
                "ANSIBLE_SSH_ARGS": "-F none -o ControlMaster=auto -o ControlPersist=15s",
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PLAY * max(machine.patience for machine in self._machines.values()),
        )
        recap = {name: Recap(*map(int, counts)) for name, *counts in COUNTS.findall(done.stdout)}
        return Played(done.returncode, done.stdout, recap)
