"""Whose memory goes, and whose plan is interrupted."""
