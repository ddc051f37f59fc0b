"""Looks at a process's memory and descriptors while it works.

Leaves to rivals_trees: which processes. Invariant: a peak is told with the
number of its samples and the longest time between two of them, which a busy
machine makes longer than `INTERVAL_SECONDS`.
"""

import os
import threading
import time

INTERVAL_SECONDS = 0.02


def look(pid):
    """(KiB of RssAnon and VmPTE, open descriptors) of a process, or None."""
    memory_kib = 0
    try:
        with open(f"/proc/{pid}/status") as file:
            for line in file:
                name, _, rest = line.partition(":")
                if name in ("RssAnon", "VmPTE"):
                    memory_kib += int(rest.split()[0])
        # Since Linux 6.2 the directory's size is the count: to list thousands
        # at every look would take its time from what is looked at.
        folder = f"/proc/{pid}/fd"
        return memory_kib, os.stat(folder).st_size or len(os.listdir(folder))
    except OSError:
        return None


class Watch:
    """Samples some processes, each under a name, until it is stopped."""

    def __init__(self):
        self.pids = {}
        self.peaks = {}
        self.ended = threading.Event()
        # A daemon thread: an interrupted script does not wait for it.
        self.thread = threading.Thread(target=self.sample, daemon=True)
        self.thread.start()

    def add(self, name, pid):
        """Adds a process, to be looked at until it ends."""
        self.peaks[name] = {"memory_kib": 0, "descriptors": 0, "samples": 0,
                            "longest_gap_seconds": 0.0}
        self.pids[name] = pid

    def sample(self):
        """What the thread does."""
        if os.getuid() == 0:
            # Of the thread alone: behind two busy ends its looks would be late.
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), -10)
        last = {}
        while not self.ended.wait(INTERVAL_SECONDS):
            for name, pid in list(self.pids.items()):
                seen = look(pid)
                # A process that ended has no memory left, though it is there until
                # it is waited for.
                if not seen or not seen[0]:
                    continue
                peak = self.peaks[name]
                peak["memory_kib"] = max(peak["memory_kib"], seen[0])
                peak["descriptors"] = max(peak["descriptors"], seen[1])
                peak["samples"] += 1
                now = time.monotonic()
                peak["longest_gap_seconds"] = max(peak["longest_gap_seconds"],
                                                  now - last.get(name, now))
                last[name] = now

    def stop(self):
        """Ends the sampling; the peaks, by name."""
        self.ended.set()
        self.thread.join()
        return self.peaks
