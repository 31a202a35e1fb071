"""What a run selected: which examples, how often, when, with which scores, and what other methods would have chosen.

``SelectionLog`` counts selections; ``compare`` and ``ComparisonLog`` compare methods on the same candidates;
``rholoss.diagnostics.plots`` draws both. Numbers are plain dicts of floats, for any logger. Nothing here changes a run, and an
accelerator is only synchronized when a number is read.
"""

from rholoss.diagnostics.agreement import overlaps as overlaps, rank_correlations as rank_correlations
from rholoss.diagnostics.comparison import ComparisonLog as ComparisonLog, compare as compare
from rholoss.diagnostics.log import SelectionLog as SelectionLog, already_correct as already_correct
from rholoss.functional import spearman as spearman
