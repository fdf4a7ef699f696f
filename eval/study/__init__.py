"""Human-preference studies: who sees what, the answers, and what they say; the pages are in pipelines.web.study."""
