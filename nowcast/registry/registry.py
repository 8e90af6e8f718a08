"""The registered checkpoints of a domain, and which of them is its champion.

A registry is a folder: checkpoint files named by their digest, and a journal of one JSON line per event. The
journal is the only state: champion and challengers follow from replaying it, so a rollback is one more line, and
a process that reads while another one writes sees the journal before or after, never half a line.
"""

from __future__ import annotations

import getpass
import logging
import os
import re
import shutil
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import reduce
from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime, Field, ValidationError

from nowcast.config import CHAMPION, REGISTRY, Frozen
from nowcast.core import files
from nowcast.core.errors import BadInput, RegistryError
from nowcast.core.locks import Timeout, locked
from nowcast.registry import checkpoint
from nowcast.registry.checkpoint import Card

JOURNAL = "journal.jsonl"
LOCK_SECONDS = 120
SHORT = 6
"""Characters of a digest that are added to a name to make it unique."""
NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
log = logging.getLogger(__name__)


class Event(Frozen):
    """One line of the journal."""

    time: AwareDatetime
    """When it happened."""
    who: str
    """Account, or flow, that did it."""
    what: Literal["registered", "promoted", "rolled back", "retired"]
    """What became of the checkpoint."""
    digest: str
    """Checkpoint that it concerns; for a rollback, the champion afterwards."""
    name: str
    """Name of that checkpoint in the registry."""
    why: str = ""
    """Reason, in the words of who did it."""
    evidence: dict[str, object] = Field(default={})
    """Scores that justify a promotion."""


@dataclass(frozen=True)
class RegistryState:
    """State of a registry after some events."""

    names: Mapping[str, str]
    """Digest -> name, in the order of registration."""
    retired: frozenset[str] = frozenset()
    champions: tuple[str, ...] = ()
    """Digests of the champions in order, without those that were rolled back; the present one is last."""

    @property
    def champion(self) -> str | None:
        """Digest of the champion; None if there is none."""
        return self.champions[-1] if self.champions else None

    @property
    def challengers(self) -> list[str]:
        """Digests of all that are neither champion nor retired, former champions included."""
        return [digest for digest in self.names if digest not in self.retired and digest != self.champion]

    @property
    def before(self) -> str | None:
        """Digest of the champion that a rollback restores; None if there is none."""
        return next((digest for digest in reversed(self.champions[:-1]) if digest not in self.retired), None)

    def state(self, digest: str) -> str:
        """Return the state of a checkpoint: ``champion``, ``challenger`` or ``retired``."""
        if digest == self.champion:
            return CHAMPION
        return "retired" if digest in self.retired else "challenger"

    def after(self, event: Event) -> RegistryState:
        """Return the state after ``event``."""
        match event.what:
            case "registered":
                names = {**self.names, event.digest: event.name}
                return replace(self, names=names, retired=self.retired - {event.digest})
            case "promoted":
                return replace(self, champions=(*self.champions, event.digest))
            case "rolled back":
                former = self.champions[:-1]
                back = len(former) - former[::-1].index(event.digest)
                return replace(self, champions=former[:back])
            case _:
                return replace(self, retired=self.retired | {event.digest})


def standing(events: Iterable[Event]) -> RegistryState:
    """Replay a journal."""
    return reduce(RegistryState.after, events, RegistryState({}))


class Registry:
    """Checkpoints of one domain; safe for several processes at once."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    # --- reading ----------------------------------------------------------------------------------

    @property
    def events(self) -> list[Event]:
        """The journal, oldest first.

        Raises:
            BadInput: If a line of it is not an event.
        """
        path = self.folder / JOURNAL
        lines = path.read_text().splitlines() if path.exists() else []
        try:
            return [Event.model_validate_json(line) for line in lines]
        except ValidationError as error:
            fault = error.errors()[0]["msg"]
            raise BadInput(path, f"holds a line that is no event ({fault})", "restore it from a copy") from None

    @property
    def standing(self) -> RegistryState:
        """Present state of the registry."""
        return standing(self.events)

    def file(self, digest: str) -> Path:
        """Return the path of a checkpoint."""
        return self.folder / f"{digest}.safetensors"

    def find(self, word: str) -> str:
        """Return the digest that a name, the beginning of a digest, or ``champion`` stands for.

        Raises:
            RegistryError: If there is none, or several; the message lists the known ones.
        """
        now = self.standing
        if word == CHAMPION:
            return self.champion
        found = [digest for digest, name in now.names.items() if word == name]
        found = found or [digest for digest in now.names if digest.startswith(word)]
        if len(found) != 1:
            known = ", ".join(now.names.values()) or "none, see `nowcast models register`"
            raise RegistryError(f"{self.folder}: {word!r} names {len(found)} registered checkpoints; known: {known}.")
        return found[0]

    @property
    def champion(self) -> str:
        """Digest of the champion.

        Raises:
            BadInput: If there is none.
        """
        if (digest := self.standing.champion) is None:
            raise BadInput(
                self.folder, f"no checkpoint is promoted in {self.folder}", "promote one: nowcast models promote"
            )
        return digest

    def lineage(self) -> list[dict[str, object]]:
        """Describe each checkpoint in a row: state, input and output, origin; the last registered is first."""
        events, now = self.events, self.standing
        since = {event.digest: event.time for event in events}
        return [self._row(digest, now, since[digest]) for digest in list(now.names)[::-1]]

    def _row(self, digest: str, now: RegistryState, since: datetime) -> dict[str, object]:
        row: dict[str, object] = {
            "name": now.names[digest],
            "state": now.state(digest),
            "since": f"{since:%Y-%m-%d %H:%M}Z",
            "digest": digest,
        }
        try:
            card = checkpoint.read_card(self.file(digest))
        except BadInput as error:
            log.debug("%s cannot be read", self.file(digest), exc_info=True)
            return row | dict.fromkeys(("model", "frames", "step", "loss", "base"), "") | {"fault": str(error)}
        loss = card.training.get("best_valid_loss")
        return row | {
            "model": card.model,
            "frames": f"{card.in_steps} -> {card.out_steps}",
            "step": f"{card.cadence_seconds} s",
            "loss": f"{loss:.4g}" if isinstance(loss, float) else "",
            "base": card.base["digest"] if card.base else "",
            "card": card.model_dump(mode="json"),
        }

    # --- writing ----------------------------------------------------------------------------------

    def register(self, path: str | Path, *, name: str | None = None, why: str = "") -> str:
        """Copy a checkpoint, and the base that it needs, into the registry; a second time only restores the files.

        A retired checkpoint becomes a challenger again.

        Args:
            path: A checkpoint file.
            name: Its name in the registry; None: made of its recipe (or file) and its digest.
            why: A remark.

        Returns:
            Its digest.

        Raises:
            BadInput: If it is not a checkpoint with a card.
            RegistryError: If the name is not allowed, or belongs to another checkpoint.
        """
        path = checkpoint.find(path)
        card = checkpoint.read_card(path)
        with self._locked():
            digest, now = self._copy(path), self.standing
            name = name or now.names.get(digest) or f"{_stem(path, card)}-{digest[:SHORT]}"
            self._check_name(name, digest, now)
            if digest not in now.names or digest in now.retired:
                self._append("registered", digest, name, why)
        return digest

    def promote(self, digest: str, *, over: str | None, why: str, evidence: Mapping[str, object] | None = None) -> None:
        """Make a challenger the champion.

        Args:
            digest: Digest of the challenger.
            over: The champion that it was compared with; None where there was none.
            why: A reason.
            evidence: Scores that justify it.

        Raises:
            RegistryError: If it is champion, retired or damaged, or if another became champion in the meantime.
        """
        with self._locked():
            now = self.standing
            name = now.names[digest]
            if now.champion != over:
                raise RegistryError(f"{self.folder}: the champion has changed in the meantime; compare again.")
            if digest not in now.challengers:
                raise RegistryError(f"{self.folder}: {name} is {now.state(digest)}; only challengers can be promoted.")
            self._check_whole(digest, name)
            self._append("promoted", digest, name, why, evidence)

    def rollback(self, *, why: str = "") -> str:
        """Make the previous champion champion again, and return its digest.

        Raises:
            RegistryError: If there is none, or its file is damaged.
        """
        with self._locked():
            now = self.standing
            if (digest := now.before) is None:
                raise RegistryError(f"{self.folder}: there is no earlier champion to go back to.")
            self._check_whole(digest, now.names[digest])
            self._append("rolled back", digest, now.names[digest], why)
        return digest

    def retire(self, digest: str, *, why: str = "") -> None:
        """End the shadow forecasts of a challenger; its file stays, so that old runs can be reproduced.

        Raises:
            RegistryError: If it is the champion, or retired.
        """
        with self._locked():
            now = self.standing
            if digest not in now.challengers:
                raise RegistryError(
                    f"{self.folder}: {now.names[digest]} is {now.state(digest)}; only challengers retire."
                )
            self._append("retired", digest, now.names[digest], why)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the registry's lock, which ends with the process at the latest."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(self.folder / f"{JOURNAL}.lock", seconds=LOCK_SECONDS))
            except Timeout:
                raise RegistryError(f"{self.folder}: another process holds the journal; let it finish.") from None
            yield

    def _append(
        self, what: str, digest: str, name: str, why: str, evidence: Mapping[str, object] | None = None
    ) -> None:
        """Append a line by renaming a new file, so that neither a reader nor a crash sees half of it."""
        event = Event.model_validate(
            {
                "time": datetime.now(UTC),
                "who": _user(),
                "what": what,
                "digest": digest,
                "name": name,
                "why": why,
                "evidence": dict(evidence or {}),
            }
        )
        path = self.folder / JOURNAL
        before = path.read_bytes() if path.exists() else b""
        files.write_atomic(path, before + event.model_dump_json().encode() + b"\n")

    def _copy(self, path: Path) -> str:
        """Copy a base, then the checkpoint. The digest is that of the copy: the source may change while it is read."""
        if base := checkpoint.read_card(path).base:
            self._copy(checkpoint.find_base(path, base))
        temporary = self.folder / ".incoming"
        shutil.copyfile(path, temporary)
        files.sync(temporary)
        digest = checkpoint.file_digest(temporary)
        temporary.replace(self.file(digest))
        return digest

    def _check_name(self, name: str, digest: str, now: RegistryState) -> None:
        if not NAME.fullmatch(name) or name == CHAMPION:
            raise RegistryError(f"{name!r} cannot be a name here; use small letters, digits, - and _.")
        if now.names.get(digest, name) != name:
            raise RegistryError(f"{self.folder}: this checkpoint is registered as {now.names[digest]}.")
        if any(known == name and other != digest for other, known in now.names.items()):
            raise RegistryError(f"{self.folder}: another checkpoint is called {name}; give a --name.")

    def _check_whole(self, digest: str, name: str) -> None:
        path = self.file(digest)
        if not path.exists() or checkpoint.file_digest(path) != digest:
            raise RegistryError(f"{path}: the file of {name} is missing or damaged; register it again.")


def champion_file(word: str) -> Path:
    """Return the checkpoint that ``registry:FOLDER`` stands for now.

    Raises:
        BadInput: If the folder has no champion, or the champion's file is missing.
    """
    registry = Registry(word.removeprefix(REGISTRY))
    return checkpoint.find(registry.file(registry.champion))


def _stem(path: Path, card: Card) -> str:
    """Name a checkpoint after its recipe, since every training exports ``best`` and ``last``."""
    words = str(card.recipe.get("name") or path.stem).lower()
    return re.sub(r"[^a-z0-9_-]+", "-", words).strip("-_") or "model"


def _user() -> str:
    user = str(os.getuid())
    with suppress(OSError, KeyError):  # containers may have no name for their user
        user = getpass.getuser()
    return f"{user}@{socket.gethostname()}"
