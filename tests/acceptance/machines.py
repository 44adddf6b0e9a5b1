"""Machines with a network between them: namespaces of the kernel's, which take root to make."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

HOST, WORKERS = "db", ("a", "b")
_NETWORK = "10.77.0"


class NoNetworks(Exception):
    """Why none can be made here."""


@dataclass(frozen=True)
class Network:
    """A bridge on the database host, and a cable from it to each of the others."""

    prefix: str

    @classmethod
    @contextmanager
    def made(cls) -> Iterator[Network]:
        """Raises NoNetworks."""
        if os.geteuid() != 0 or shutil.which("ip") is None:
            raise NoNetworks("network namespaces take root and the program ip")
        network = cls(f"pgo{os.getpid()}")
        try:
            network._make()
            yield network
        finally:
            for machine in (HOST, *WORKERS):
                with suppress(NoNetworks):
                    _ip("netns", "del", network._namespace(machine))

    def _make(self) -> None:
        for machine in (HOST, *WORKERS):
            _ip("netns", "add", self._namespace(machine))
            self._on(machine, "link", "set", "lo", "up")
        self._on(HOST, "link", "add", "bridge", "type", "bridge")
        self._on(HOST, "addr", "add", f"{self.address(HOST)}/24", "dev", "bridge")
        self._on(HOST, "link", "set", "bridge", "up")
        for machine in WORKERS:
            near, far = self._namespace(machine), self._namespace(HOST)
            cable = ("type", "veth", "peer", "name", f"to-{machine}", "netns", far)
            _ip("link", "add", "name", "eth0", "netns", near, *cable)
            self._on(machine, "addr", "add", f"{self.address(machine)}/24", "dev", "eth0")
            self._on(machine, "link", "set", "eth0", "up")
            self._on(HOST, "link", "set", f"to-{machine}", "up")
            self.join(machine)

    def address(self, machine: str) -> str:
        return f"{_NETWORK}.{1 + (HOST, *WORKERS).index(machine)}"

    def cut_off(self, machine: str) -> None:
        """What it sends and what is sent to it is lost from now on, and nobody is told."""
        self._on(HOST, "link", "set", f"to-{machine}", "nomaster")

    def join(self, machine: str) -> None:
        self._on(HOST, "link", "set", f"to-{machine}", "master", "bridge")

    @contextmanager
    def inside(self, machine: str) -> Iterator[None]:
        """What this thread starts meanwhile is started on that machine."""
        libc = ctypes.CDLL(None, use_errno=True)
        home, there = Path("/proc/thread-self/ns/net"), Path("/run/netns", self._namespace(machine))
        with home.open() as home_file, there.open() as there_file:
            _enter(libc, there_file.fileno())
            try:
                yield
            finally:
                _enter(libc, home_file.fileno())

    def _namespace(self, machine: str) -> str:
        return f"{self.prefix}-{machine}"

    def _on(self, machine: str, *arguments: str) -> None:
        _ip("-n", self._namespace(machine), *arguments)


def _enter(libc: ctypes.CDLL, descriptor: int) -> None:
    if libc.setns(descriptor, 0) != 0:
        raise NoNetworks(os.strerror(ctypes.get_errno()))


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise NoNetworks(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
