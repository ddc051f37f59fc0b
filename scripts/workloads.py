"""The workloads of compare-trees: which trees, which rows, which base.

Leaves to trees: how a tree is made; to rivals_trees: what a row does.
Invariant: a workload's sizes are its defaults or what was asked for, and are
told with its results.
"""

import os

import trees
from rivals_trees import (StandingSetting, TreeHaul, TreeSetting, WatchedHaul, WatchedHaulServe,
                          named, tree_rivals, unchanged_rivals)


class Workload:
    """What is copied, and where to."""

    name = ""
    about = ""
    base = "tar through socat"
    files = 0
    directories = 0
    # Figures are for each file where the rows' trees differ in size.
    per_file = False

    def __init__(self, options):
        self.options = options
        self.files = self.files if options.files is None else options.files
        if options.directories is not None:
            self.directories = options.directories
        self.file_bytes = options.file_bytes
        self.trees = {}

    def plan(self):
        """(entries, bytes) of all sources and of the largest target, before
        anything is made."""
        one = (self.files + self.directories, self.files * self.file_bytes)
        return one, one

    def setting(self, kind, tree, place):
        """A setting of that kind; `place` has the directories and the binary."""
        return kind(tree, place.target_dir, place.scratch, self.options.durable, place.haul)

    def rows(self, place):
        """Makes the trees and returns the rows."""
        raise NotImplementedError

    def make(self, place, name, files, directories):
        """One generated tree."""
        tree = trees.make(os.path.join(place.source_dir, name), files, self.file_bytes,
                          directories)
        self.trees[name] = tree
        return tree


class Small(Workload):
    name = "small"
    about = "many small files in some directories, to a missing target"
    files, directories = 20_000, 200

    def rows(self, place):
        tree = self.make(place, "small", self.files, self.directories)
        return tree_rivals(self.setting(TreeSetting, tree, place))


class Flat(Workload):
    name = "flat"
    about = "the same number of files in one directory and in many"
    base = "haul spread"
    files, directories = 100_000, 1_000

    def plan(self):
        one = (self.files + self.directories, self.files * self.file_bytes)
        return (2 * one[0], 2 * one[1]), one

    def rows(self, place):
        rows = []
        for name, directories in (("flat", 0), ("spread", self.directories)):
            tree = self.make(place, name, self.files, directories)
            row = TreeHaul(self.setting(TreeSetting, tree, place))
            rows.append(named(row, f"haul {name}", self.base,
                              f"haul copy, {directories or 'no'} directories below the source"))
        return rows


class Mixed(Workload):
    name = "mixed"
    about = "a tree as it is found, to a missing target"

    def __init__(self, options):
        super().__init__(options)
        self.directory = os.path.realpath(options.directory)
        found = trees.Tree(self.directory)
        self.one = (found.entries, found.bytes)

    def plan(self):
        return self.one, self.one

    def rows(self, place):
        # A copy lies on the file system that is told, and does not change meanwhile.
        tree = trees.copy_of(os.path.join(place.source_dir, "mixed"), self.directory)
        self.trees[self.directory] = tree
        return tree_rivals(self.setting(TreeSetting, tree, place))


class Unchanged(Workload):
    name = "unchanged"
    about = "a second run over a target that is the same already"
    base = "rsync daemon"
    files, directories = 100_000, 1_000

    def rows(self, place):
        tree = self.make(place, "unchanged", self.files, self.directories)
        return unchanged_rivals(self.setting(StandingSetting, tree, place))


class Grow(Workload):
    name = "grow"
    about = "trees of more and more small files, 100 in each directory"
    per_file = True

    def plan(self):
        def of(files):
            return files + files // 100, files * self.file_bytes
        sources = [of(files) for files in self.options.counts]
        return tuple(map(sum, zip(*sources))), of(max(self.options.counts))

    def rows(self, place):
        rows = []
        smallest = min(self.options.counts)
        for files in sorted(self.options.counts):
            tree = self.make(place, f"{files:,} files", files, -(-files // 100))
            setting = self.setting(TreeSetting, tree, place)
            for kind in (WatchedHaul, WatchedHaulServe):
                row = kind(setting)
                rows.append(named(row, f"{kind.name}, {files:,} files",
                                  f"{kind.name}, {smallest:,} files"))
        return rows


WORKLOADS = {kind.name: kind for kind in (Small, Flat, Mixed, Unchanged, Grow)}
