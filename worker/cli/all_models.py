"""The group `models`, put together."""

from __future__ import annotations

from pgoutlier.worker.cli import challenger, versions
from pgoutlier.worker.cli.models import models

models.command("challenge")(challenger.challenge)
models.command("compare")(challenger.compare)
models.command("history")(versions.history)
models.command("diff")(versions.diff)
models.command("tag")(versions.tag)
models.command("untag")(versions.untag)
models.command("prune")(versions.prune)
models.command("export")(versions.export)
models.command("import")(versions.import_)
