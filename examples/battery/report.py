"""Prints what came of the battery: a table of all settings, one of those with many wrong labels, and a sentence on each claim.

python examples/battery/report.py [--results FILE]
python examples/battery/report.py --write      # puts them into docs/pages/will_it_help.md, and draws its plot
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # the folder of this package, rather than this folder

from experiments.results import read

from battery.run import AS_LONG, FEW, FORCED, FRONT, RESULTS, UNIFORM
from battery.settings import SETTINGS

PAGE = Path(__file__).parents[2] / "docs" / "pages" / "will_it_help.md"
CLAIMS, BEGIN, END = "<!-- battery claims -->", "<!-- battery -->", "<!-- end -->"
MANY = 0.2  # share of wrong labels from which leaving examples out should help
HELPED = 0.5  # points from which it would have helped
SAYS_NO = (
    "In most seeds the run is plain training. In a few, `auto` leaves examples out, so the gain can differ from 0.",
    "The last column compares with a longer plain run, which can end higher, or lower if it overfits.",
)


class Outcome(NamedTuple):
    """What came of one setting, by seed; metrics in percent."""

    name: str
    plain: list[float]  # the best tuned plain training
    gains: list[float]  # the front door's end above it
    in_seconds: list[float]  # above plain training of as many seconds
    fewer: list[float]  # times fewer steps to plain training's best; 0 if never
    helps: list[bool]
    wrong: list[float]  # shares: truly wrong or irrelevant to the task
    found: list[float]  # estimated
    before: list[float]  # seconds of the rehearsal, as a share of the run's
    forced: list[float]  # the end above plain training where a no was overruled

    @property
    def says_yes(self) -> bool:
        return sum(self.helps) * 2 > len(self.helps)

    @property
    def right(self) -> bool:
        """Whether most answers were right: it helped; or there were few wrong labels, or leaving examples out did not help."""
        if self.says_yes:
            return statistics.median(self.gains) > 0
        return statistics.mean(self.wrong) < FEW or (bool(self.forced) and statistics.median(self.forced) < HELPED)


def outcomes(rows: Iterable[dict[str, Any]]) -> list[Outcome]:
    """What came of each setting of which there are results."""
    found: dict[str, dict[int, dict[str, dict[str, Any]]]] = {}
    for row in rows:
        found.setdefault(row["setting"], {}).setdefault(row["seed"], {})[row["label"]] = row
    whole = {
        name: {seed: of for seed, of in sorted(seeds.items()) if FRONT in of and AS_LONG in of} for name, seeds in found.items()
    }
    return [_outcome(name, whole[name]) for name in SETTINGS if whole.get(name)]


def _outcome(name: str, whole: dict[int, dict[str, dict[str, Any]]]) -> Outcome:
    everywhere = [label for label in UNIFORM if all(label in rows for rows in whole.values())]
    best = max(everywhere, key=lambda label: statistics.median(rows[label]["metric"][-1] for rows in whole.values()))
    made = Outcome(name, *([] for _ in range(9)))
    for rows in whole.values():
        plain, front = rows[best], rows[FRONT]
        about, top = front["rehearsal"], max(plain["metric"])
        at = next((step for step, metric in zip(front["steps"], front["metric"], strict=True) if metric >= top), None)
        made.plain.append(100 * plain["metric"][-1])
        made.gains.append(100 * (front["metric"][-1] - plain["metric"][-1]))
        made.in_seconds.append(100 * (front["metric"][-1] - rows[AS_LONG]["metric"][-1]))
        made.fewer.append(plain["steps"][plain["metric"].index(top)] / at if at else 0.0)
        made.helps.append(about["helps"])
        made.wrong.append(0.5 if SETTINGS[name].auto else about["truly_wrong"])
        made.found.append(about["wrong"][0])
        made.before.append(front["before"] / plain["seconds"][-1])
        if FORCED in rows:
            made.forced.append(100 * (rows[FORCED]["metric"][-1] - plain["metric"][-1]))
    return made


def table(found: list[Outcome]) -> list[str]:
    """A row for each setting: first those where the answer is yes, then, folded, the others."""
    head = [
        "| setting (trusted) | wrong, % | found, % | plain, % | `auto`, points | points, in as many seconds |",
        "|---|---|---|---|---|---|",
    ]
    yes, no = ([_row(each) for each in found if each.says_yes is answer] for answer in (True, False))
    opened = '<details markdown="1"><summary>Where auto changes nothing</summary>'
    folded = [opened, "", *SAYS_NO, "", *head, *no, "", "</details>"]
    return ["Where `auto` leaves examples out:", "", *head, *yes, "", *(folded if no else [])]


def _row(each: Outcome) -> str:
    yes, of = sum(each.helps), len(each.helps)
    notes = [f"; in {yes} of {of} seeds"] * (0 < yes < of) + ["; a wrong decision"] * (not each.right)
    wrong = f"{100 * statistics.mean(each.wrong):.0f}" + " irrelevant, 0 wrong" * bool(SETTINGS[each.name].auto)
    return (
        f"| {_name(each)}{''.join(notes)} | {wrong} | {100 * statistics.median(each.found):.0f} "
        f"| {statistics.median(each.plain):.1f} | {spread(each.gains)} | {spread(each.in_seconds)} |"
    )


def steps_table(found: list[Outcome]) -> list[str]:
    """How many times fewer steps it takes, where many labels are wrong or irrelevant to the task."""
    dirty = [each for each in found if statistics.mean(each.wrong) >= MANY]
    lines = [
        f"Steps to plain training's best, where at least a fifth of the labels is wrong or irrelevant ({len(dirty)} settings):",
        "",
        "| setting (trusted) | times fewer steps to plain training's best |",
        "|---|---|",
    ]
    for each in dirty:
        never = sum(not times for times in each.fewer)
        reached = f"; {never} of {len(each.fewer)} seeds never" if never else ""
        lines.append(f"| {_name(each)} | {statistics.median(each.fewer):.1f}{reached} |")
    return lines


def claims(found: list[Outcome]) -> list[str]:
    """What holds, in sentences."""
    dirty = [each for each in found if statistics.mean(each.wrong) >= MANY]
    well = [each for each in dirty if statistics.median(each.gains) >= 1 or statistics.median(each.fewer) >= 2]
    worst = min(found, key=lambda each: min(each.gains))
    lowest = min(found, key=_median_gain)
    in_seconds = {each.name: round(statistics.median(each.in_seconds), 1) for each in found}
    slowest = "; ".join(name for name, points in in_seconds.items() if points == min(in_seconds.values()))
    runs = sum(len(each.gains) for each in found)
    cost = {
        helps: statistics.median(t for each in found for t, h in zip(each.before, each.helps, strict=True) if h == helps)
        for helps in {h for each in found for h in each.helps}
    }
    ends = f"the worst setting ends at {_median_gain(lowest):+.1f} points ({lowest.name}; median over seeds)"
    if _median_gain(lowest) >= 0:
        ends = "no setting ends lower (medians over seeds)"
    return [
        f"{len(found)} settings, {runs} runs. Compared with the best tuned plain training of as many steps, {ends}. The worst "
        f"run ends at {min(worst.gains):+.1f} points ({worst.name}).",
        f"Compared with plain training of as many seconds, preparation included, the worst median is "
        f"{min(in_seconds.values()):+.1f} ({slowest}).",
        f"In {len(dirty)} settings a fifth of the labels or more is wrong or irrelevant to the task. In {len(well)} of them "
        "`auto` ends at least 1 point above plain training, or reaches plain training's best in at least 2 times fewer steps.",
        f"In {sum(each.right for each in found)} of {len(found)} settings `auto` decides well: it leaves examples out, and the "
        "run ends higher; or it changes nothing, and there is little to gain.",
        f"There is little to gain if less than {100 * FEW:.0f} % of the labels are wrong, or if leaving examples out gains less "
        f"than {HELPED} points. To measure that, other runs left examples out with `force=True`.",
        f"The look before the run adds {100 * cost.get(False, 0):.0f} % to the run's time if `auto` then changes nothing, and "
        f"{100 * cost.get(True, 0):.0f} % if it leaves examples out (medians).",
    ]


def forced_table(found: list[Outcome]) -> list[str]:
    """A row for each setting where a run leaves examples out although the answer is no."""
    rows = [f"| {_name(each)} | {spread(each.forced)} |" for each in found if each.forced and not each.says_yes]
    head = ["", "Where `auto` changes nothing, other runs left examples out with `force=True`:", ""]
    return [*head, "| setting (trusted) | with `force=True`, points |", "|---|---|", *rows] if rows else []


def _name(each: Outcome) -> str:
    trusted = f"{SETTINGS[each.name].trusted:,}" if SETTINGS[each.name].trusted else "none"
    named = each.name.removesuffix(", nothing trusted").removesuffix(", more trusted").replace("not asked for", "irrelevant")
    return f"{named} ({trusted})"


def _median_gain(each: Outcome) -> float:
    return statistics.median(each.gains)


def spread(values: list[float]) -> str:
    """Median, and lowest to highest in brackets, of gains."""
    return f"{statistics.median(values):+.1f} ({min(values):+.1f} to {max(values):+.1f})"


def draw(found: list[Outcome], path: Path) -> None:
    """Gains at as many steps and in as many seconds, a row for each setting."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 0.36 * len(found) + 1.4), layout="constrained")
    figure.suptitle("auto against the best tuned plain training: points of the metric, each seed a mark")
    axes = figure.subplots(1, 2, sharey=True)
    for panel, title, name in zip(
        axes, ("after as many steps", "after as many seconds, all included"), ("gains", "in_seconds"), strict=True
    ):
        for row, each in enumerate(reversed(found)):
            values = getattr(each, name)
            helps = each.says_yes
            panel.plot(values, [row] * len(values), "o", color="#d55e00" if helps else "#0072b2", alpha=0.45, markersize=5)
            panel.plot([statistics.median(values)], [row], "|", color="black", markersize=12)
        panel.axvline(0, color="#999999", linewidth=1)
        limit = panel.axvline(-0.5, color="#999999", linewidth=0.8, linestyle=":")
        panel.set(title=title, xlabel="points")
        panel.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(found)), [_name(each) for each in reversed(found)])
    handles = [axes[0].plot([], [], "o", color=color)[0] for color in ("#d55e00", "#0072b2")]
    names = ["leaves examples out", "plain training", "0.5 below"]
    axes[0].legend([*handles, limit], names, frameon=False, loc="lower right", bbox_to_anchor=(1, 0.08))
    figure.savefig(path, dpi=150)


def text(found: list[Outcome]) -> str:
    """The tables of all settings."""
    return "\n".join([*table(found), *forced_table(found), "", *steps_table(found)])


def parts(found: list[Outcome]) -> dict[str, str]:
    """All that the page shows, by the mark before it."""
    said = "\n".join(f"- {claim}" for claim in claims(found))
    return {CLAIMS: said, BEGIN: text(found)}


def write_part(begin: str, part: str) -> None:
    """Put a part into the page, between its mark and the next end."""
    before, _, rest = PAGE.read_text().partition(begin)
    PAGE.write_text(f"{before}{begin}\n\n{part}\n\n{END}{rest.partition(END)[2]}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--write", action="store_true", help="write the page and its plot")
    asked = parser.parse_args(arguments)
    found = outcomes(read(asked.results))
    if not found:
        print(f"no results in {asked.results}; see examples/battery/run.py")
        return 1
    shown = parts(found)
    print(*shown.values(), sep="\n\n")
    if asked.write:
        for begin, part in shown.items():
            write_part(begin, part)
        draw(found, PAGE.with_name("battery.png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
