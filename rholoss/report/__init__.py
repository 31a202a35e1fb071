"""Can this store be trusted? The report on a store, and the verdict."""

from rholoss.report.report import Distribution as Distribution, Report as Report, report_on as report_on
from rholoss.report.suspects import Suspects as Suspects, find_suspects as find_suspects
from rholoss.report.verdict import Indicators as Indicators, Verdict as Verdict, judge as judge
