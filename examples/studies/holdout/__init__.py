"""What to do when the only holdout is as noisy as the training data: a study on data with wrong labels.

One network is trained in many ways: on uniform batches, and with RHO-LOSS by irreducible losses of several kinds (from a clean
holdout, from a holdout as noisy as the training data, cross-fitted over all of the noisy data) and with several scores.
Everything else stays the same: network, initial weights, optimizer, batch size, evaluation.

=================  =====================================================================
``run.py``         trains, and appends one JSON line for each run to the results
``report.py``      prints the tables and draws the plots of these lines
``variants.py``    what is compared, and on which data
``task.py``        the data, with the labels that training sees
``irreducible.py`` computes the irreducible losses
``training.py``    one training run
``results.py``     the JSON lines, and what is counted from them
``tables.py``      the tables
``plots.py``       the plots
=================  =====================================================================

Only the variants named "clean holdout" see labels that are known to be right. Test labels are right, and only measure.
"""
