"""Unified segmentation by SPM."""
