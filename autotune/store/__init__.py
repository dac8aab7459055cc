"""Measurements and selections in one database."""

from autotune.store.store import Finished, Store, StudyRecord, explained, make_commits_cheap, shown

__all__ = ["Finished", "Store", "StudyRecord", "explained", "make_commits_cheap", "shown"]
