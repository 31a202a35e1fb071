"""Adapters for frameworks that drive data loading themselves; the rest of the package imports nothing from here.

Fabric, Accelerate and torchdata need no adapter, and Lightning only for checkpoints: see the page "Frameworks".
"""
