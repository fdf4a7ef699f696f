"""The pages on which people judge videos (`m4v study serve`)."""

from pipelines.web.study.factory import create_study_app

__all__ = ["create_study_app"]
