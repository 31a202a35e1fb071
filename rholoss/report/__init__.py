"""Can this store be trusted? The report on a store, and the verdict."""

from rholoss.report.report import Distribution as Distribution
from rholoss.report.report import Report as Report
from rholoss.report.report import report_on as report_on
from rholoss.report.verdict import Indicators as Indicators
from rholoss.report.verdict import Verdict as Verdict
from rholoss.report.verdict import judge as judge
