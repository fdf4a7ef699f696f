"""Clips of artifacts: how they are named in a question, what is known of them, and how artifacts list them."""

from pipelines.membership.facts import ClipFacts, SampleGroup, SampleRef
from pipelines.membership.selector import ClipSelector, parse_selector

__all__ = ["ClipFacts", "ClipSelector", "SampleGroup", "SampleRef", "parse_selector"]
