"""How SQL is written: statements, identifiers, key types. Nothing of ours is named here."""
