"""Tests; they mirror the four folders of the package."""
