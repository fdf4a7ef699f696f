"""Ablation tables: variants of one model, trained alike, held against a baseline row; the paper's Tables 3, 4 and 5."""
