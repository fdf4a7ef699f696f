"""Launchers: where stage processes live. The request they run is the same everywhere."""

from pipelines.launchers.base import DRAIN, LOG, REQUEST, Ending, Job, Launcher, NodePolicy, job_name
from pipelines.launchers.local import LocalLauncher

__all__ = ["DRAIN", "LOG", "REQUEST", "Ending", "Job", "Launcher", "LocalLauncher", "NodePolicy", "job_name"]
