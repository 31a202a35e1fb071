"""Where a framework needs more than a selector in place of its loader; nothing here is imported by the rest of the package.

Lightning, Fabric, Accelerate and torchdata need nothing: see the page "Frameworks" of the documentation.
"""
