"""Looking back at a run: what was selected, how often, when and with which scores, and what other methods would have chosen.

``SelectionLog`` turns the stream of selections into shares; ``compare`` and ``ComparisonLog`` hold methods against each other on
the same candidates; ``rholoss.diagnostics.plots`` draws both. Numbers come as plain dicts of floats, for any logger. Nothing here
changes a run, and on an accelerator nothing waits until a number is read.
"""

from rholoss.diagnostics.agreement import overlaps as overlaps
from rholoss.diagnostics.agreement import rank_correlations as rank_correlations
from rholoss.diagnostics.comparison import ComparisonLog as ComparisonLog
from rholoss.diagnostics.comparison import compare as compare
from rholoss.diagnostics.log import SelectionLog as SelectionLog
from rholoss.diagnostics.log import already_right as already_right
from rholoss.functional import spearman as spearman
