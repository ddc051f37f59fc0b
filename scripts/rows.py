"""Which of the rows of a comparison can run on this machine.

Leaves to rivals and rivals_trees: what the rows do. Invariant: a row that is
left out is left out with a sentence that says why.
"""

import os
import subprocess
import sys

from measure import quit_with


def install(packages):
    """Installs Debian packages, without starting the services that they bring."""
    print(f"installing with apt-get: {' '.join(packages)}", file=sys.stderr)
    environment = dict(os.environ, DEBIAN_FRONTEND="noninteractive", RUNLEVEL="1")
    for words in (["apt-get", "update", "-qq"],
                  ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages]):
        done = subprocess.run(words, env=environment, stdout=subprocess.DEVNULL, check=False)
        if done.returncode != 0:
            quit_with(f"{' '.join(words)} ended with {done.returncode}")


def choose(rows, options, always="cp -a"):
    """The rows that can run here, started, and why the others cannot.

    `options` has `only`, words of which a row's name must have one (the row
    `always` excepted), and `install`.
    """
    if options.only:
        wanted = [word.lower() for word in options.only]
        rows = [row for row in rows
                if row.name == always or any(word in row.name.lower() for word in wanted)]
    missing = sorted({package for row in rows for package in row.missing()})
    if missing and options.install:
        install(missing)
    able, skipped = [], {}
    for row in rows:
        if row.missing():
            skipped[row.name] = f"not installed: {' '.join(row.missing())} (--install installs it)"
            continue
        try:
            row.start()
        except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
            row.stop()
            skipped[row.name] = f"does not start: {error}"
            continue
        able.append(row)
    return able, skipped
