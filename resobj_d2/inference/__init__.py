"""Detections of single images and drawings of them; ``predict`` is a command."""
