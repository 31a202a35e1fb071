"""Does selection help here? A rehearsal with small networks, and ``auto``, which acts on it."""

from rholoss.rehearsal.front_door import auto as auto
from rholoss.rehearsal.rehearsal import Rehearsal as Rehearsal
