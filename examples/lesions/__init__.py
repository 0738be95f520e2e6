"""Procedural retina scans with lesions, and a small network that tells them apart."""
