"""Tests here need torch and transformers, which `make peers` has; elsewhere they are not collected."""

from importlib.util import find_spec

if not (find_spec("torch") and find_spec("transformers")):
    collect_ignore_glob = ["test_*.py"]
