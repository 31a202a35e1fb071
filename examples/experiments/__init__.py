"""Experiments on the data sets of the RHO-LOSS paper and others: an example, not part of the package.

Put the folder ``examples`` on Python's path, then ``from experiments.tasks import load_task``. What else is needed depends on
the data:

============================  ============================================
digits                        scikit-learn
CINIC-10, Clothing-1M         Pillow
CoLA, SST-2                   transformers, and a small model in a folder
everything else               nothing but what rholoss itself needs
============================  ============================================

Models come from here, or by name from torchvision, timm or transformers, each imported only where it is used.
"""
