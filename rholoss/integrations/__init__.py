"""Adapters for frameworks that drive data loading themselves, and for experiment trackers; nothing else imports them.

Fabric, Accelerate and torchdata need no adapter, and Lightning only for checkpoints: see the page "Frameworks".
"""
