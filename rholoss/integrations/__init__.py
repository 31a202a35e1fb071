"""Where a framework needs more than a selector in place of its loader; nothing here is imported by the rest of the package.

Fabric, Accelerate and torchdata need nothing, and Lightning only for its checkpoints: see the page "Frameworks" of the
documentation.
"""
