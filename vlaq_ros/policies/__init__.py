"""Policies: one adapter per model family behind one protocol; nothing above sees a tensor."""
