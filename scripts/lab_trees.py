"""lab's scenarios on trees of many small files.

Leaves to lab: the link, the copy and the table; to trees: the trees. Invariant:
an ideal is what the link and a bare look at the entries take, never what haul
takes. There is no bound: the ideal is printed beside the time.
"""

import os

import trees
from measure import processes

FILES, FILE_BYTES, DIRECTORIES = 20_000, 4096, 200


class TreeScenario:
    """A link, a tree to copy over it, and the ideal time."""

    options = []
    bound = None

    def __init__(self, name, about, link, files, ideal, unchanged=False):
        self.name = name
        self.about = about
        self.link = link
        self.files = files
        self.length = files * FILE_BYTES
        self.ideal = ideal
        # The target is there already, and nothing is to be sent.
        self.unchanged = unchanged

    def make(self, source, target):
        """Makes the source and, where nothing is to change, the target."""
        trees.make(source, self.files, FILE_BYTES, DIRECTORIES)
        if self.unchanged:
            trees.copy_of(target, source)


def tree_scenarios(scale, link, rate, round_trip):
    """Many small files that are new, and a run with nothing to do."""
    files = max(1, int(FILES * scale))
    moved = files * FILE_BYTES * 1500 / 1448 / rate
    return [
        TreeScenario("small", f"{files:,} new files of 4 KiB, 1 Gbit/s, 50 ms round trip", link,
                     files, moved + 4 * round_trip),
        # What the scans take is added when they have been measured.
        TreeScenario("unchanged", f"{files:,} files, nothing changed, 50 ms round trip", link,
                     files, 8 * round_trip, unchanged=True),
    ]


def scan_seconds(*paths):
    """How long find takes to look at every entry of trees, all at once: each
    end has to look at its own."""
    done = processes([["find", path, "-printf", "%s %T@\n"] for path in paths])
    if done.error:
        raise RuntimeError(done.error)
    return done.seconds


class Standing:
    """The state of both trees before a copy, and what is wrong behind it."""

    def __init__(self, source, target):
        self.both = (source, target)
        self.unchanged = os.path.lexists(target)
        self.scan_seconds = 0.0
        if self.unchanged:
            self.scan_seconds = scan_seconds(source, target)
            self.before = self.look()

    def look(self):
        """What no run with nothing to do may change, at either end."""
        return [trees.fingerprint(path) for path in self.both]

    def wrong(self):
        """What is wrong with the trees behind the copy, or None."""
        if self.unchanged and self.look() != self.before:
            return "a run with nothing to do changed a tree"
        return trees.difference(*self.both, "exact")
