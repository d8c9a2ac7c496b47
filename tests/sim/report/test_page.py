import html.parser
import json
import re
from collections import Counter

import pytest

from fl.core.errors import RunError
from fl.runs.files import read_run
from fl.settings.names import ARMS
from sim.report.page import render, templates, write_page, write_report
from sim.report.summary import pool, summarize

RATES = (0.011, 0.022, 0.033, 0.044, 0.055, 0.066, 0.077)  # of arms, folded
VOID = {"meta", "link", "input", "br", "hr", "img"}
headline = templates().get_template("opening.html").module.headline
EVIL = '<script>document.title="owned"</script><img src=x onerror=alert(1)>"\'&'


class Outline(html.parser.HTMLParser):
    """Counts elements, collects addresses and ids, and checks that every element is closed in order."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.addresses, self.ids, self.levels = [], Counter(), [], Counter(), []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.addresses += [value for name, value in attrs if name in ("src", "href", "action", "srcset", "data")]
        self.ids.update(value for name, value in attrs if name == "id")
        if re.fullmatch("h[1-6]", tag):
            self.levels.append(int(tag[1]))
        if tag not in VOID and not self.get_starttag_text().endswith("/>"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def summed(folder):
    runs = pool([read_run(folder)])
    return summarize(runs, samples=100), runs


@pytest.fixture(scope="module")
def made(finished_run):
    return summed(finished_run)


@pytest.fixture(scope="module")
def page(made):
    return render(*made)


def test_the_page_is_well_formed_with_one_title_and_no_skipped_heading(page):
    outline = Outline(page)
    assert outline.open == []
    assert outline.levels[0] == 1
    assert outline.levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(outline.levels, outline.levels[1:], strict=False))
    assert set(outline.ids.values()) == {1}


def test_the_page_has_its_landmarks_and_the_finding_comes_before_all(page):
    outline = Outline(page)
    assert {tag: outline.tags[tag] for tag in ("main", "footer", "nav")} == {"main": 1, "footer": 1, "nav": 1}
    assert '<html lang="en">' in page
    assert '<nav aria-label="Sections">' in page
    order = ["<h1>", 'class="stand"', 'class="tiles"', "<nav", 'id="listen"', 'id="arms"', 'id="samples"', 'id="costs"']
    assert [page.index(part) for part in order] == sorted(page.index(part) for part in order)


def test_the_first_three_are_a_gain_a_loss_and_a_held_out_speaker_with_every_arm(page):
    first = page[page.index('id="listen"') : page.index('id="arms"')]
    cards = re.findall(r"<article.*?</article>", first, re.DOTALL)
    kinds = [re.search(r'data-kind="(\w+)"', card)[1] for card in cards]
    assert kinds[0] in ("spelling", "better")
    assert kinds[1:] == ["worse", "new"]
    assert [card.count('class="line ') for card in cards] == [len(ARMS), len(ARMS), 4]
    assert all(card.count("<audio") == 1 for card in cards)
    rest = re.findall(r'src="(data:audio[^"]+)"', page[page.index('id="arms"') :])
    assert not {re.search(r'src="([^"]+)"', card)[1] for card in cards} & set(rest)  # no sound is in the page twice


def test_nothing_in_the_page_comes_from_elsewhere(page):
    outline = Outline(page)
    assert all(address.startswith(("#", "data:")) for address in outline.addresses)
    assert "url(" not in page
    assert "@import" not in page
    assert not re.search(r"https?://", page)


def test_every_link_in_the_page_leads_somewhere(page):
    outline = Outline(page)
    targets = {address[1:] for address in outline.addresses if address.startswith("#")}
    assert {"arms", "curves", "devices", "by-level", "new-people", "costs", "samples"} <= targets <= set(outline.ids)


def test_every_chart_says_what_it_shows_and_every_table_has_a_caption(page):
    outline = Outline(page)
    outer = re.findall(r"<svg class=\"(?:chart|interval)[^>]*>", page)
    assert outer
    assert all('role="img"' in tag and "aria-label=" in tag for tag in outer)
    assert outline.tags["table"] == outline.tags["caption"]


def test_the_page_holds_the_numbers_of_the_summary(made, page):
    summary, _ = made
    for arm in ARMS:
        assert f"{100 * summary['arms'][arm]['mer']['rate']:.1f}\u202f%" in page
    for device in summary["devices"]:
        assert device in page


def test_markup_in_a_transcript_stays_text(run_copy, edit_rows):
    spoil = lambda row: row | {"reference": EVIL, "hypothesis": EVIL + " b", "spans": [], "loanwords": []}  # noqa: E731
    edit_rows(
        run_copy / "transcripts.jsonl", lambda row: spoil(row) | {"device": row["device"] + "<b>", "level": "<i>"}
    )
    edit_rows(run_copy / "results.jsonl", lambda row: row | {"device": row["device"] + "<b>"})
    (run_copy / "config.toml").write_text(f"note = {json.dumps(EVIL)}", "utf-8")
    costs = json.loads((run_copy / "costs.json").read_text("utf-8"))
    (run_copy / "costs.json").write_text(json.dumps(costs | {"base": EVIL, "machine": {EVIL: EVIL}}), "utf-8")
    outline = Outline(render(*summed(run_copy)))
    assert outline.tags["script"] == 1  # ours
    assert outline.tags["img"] == outline.tags["b"] == 0
    assert not [address for address in outline.addresses if not address.startswith(("#", "data:"))]


def test_the_policy_lets_no_other_script_run(page):
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page).group(1)
    assert "default-src 'none'" in policy
    assert "script-src 'sha256-" in policy


def test_the_same_run_makes_the_same_page(made, page):
    assert render(*made) == page


def test_the_page_is_written_beside_the_run_and_stays_small(run_copy, made):
    path = write_page(run_copy, *made)
    assert path == run_copy / "report.html"
    assert path.stat().st_size < 8 << 20
    assert path.read_text("utf-8").endswith("</html>\n")


def test_a_page_that_cannot_be_written_is_a_run_error(tmp_path, made):
    (tmp_path / "file").write_text("in the way of a folder")
    with pytest.raises(RunError, match="cannot be written"):
        write_page(tmp_path / "file", *made)


def test_missing_recordings_are_said_and_the_rest_is_shown(run_copy, edit_rows):
    edit_rows(run_copy / "transcripts.jsonl", lambda row: row | {"audio": "/nowhere/a.wav"})
    outline_page = render(*summed(run_copy))
    assert Outline(outline_page).tags["audio"] == 0
    assert "Recording not embedded" in outline_page


def test_a_run_with_one_arm_and_no_new_people_has_a_page(run_copy, edit_rows):
    keep = lambda row: row if row["arm"] == "local" and not row["new_person"] else None  # noqa: E731
    edit_rows(run_copy / "transcripts.jsonl", lambda row: keep(row) and keep(row) | {"level": None, "spans": []})
    edit_rows(run_copy / "results.jsonl", lambda row: None)
    outline = Outline(render(*summed(run_copy)))
    assert outline.open == []
    assert not {"curves", "new-people", "by-level"} & set(outline.ids)


def test_perfect_arms_make_a_page_too(run_copy, edit_rows):
    edit_rows(run_copy / "transcripts.jsonl", lambda row: row | {"hypothesis": row["reference"]})
    summary, runs = summed(run_copy)
    assert headline(summary).startswith("No significant difference between personalized recognizers and the global one")
    assert Outline(render(summary, runs)).open == []


@pytest.mark.parametrize(("sign", "words"), [(-1, "fewer errors"), (1, "more errors")])
def test_the_headline_follows_the_result(made, sign, words):
    found = {"difference": sign * 0.1, "relative": sign * 0.4, "excludes_zero": True}
    assert words in headline(made[0] | {"comparisons": {"personalized_vs_global": {"mer": found}}})


def test_the_opening_says_what_is_left_of_the_gain_where_both_spellings_are_right(made):
    arms = made[0]["arms"]
    same = {arm: rates | {"mer_folded": rates["mer"]} for arm, rates in arms.items()}
    fewer = {
        arm: rates | {"mer_folded": {"rate": rate}} for (arm, rates), rate in zip(arms.items(), RATES, strict=False)
    }
    standfirst = templates().get_template("opening.html").module.standfirst
    assert "spellings" not in standfirst(made[0] | {"arms": same})
    told = [f"{100 * fewer[arm]['mer_folded']['rate']:.1f}" for arm in ("personalized", "global")]
    assert re.search(
        rf"both spellings of a loanword counted as right, {told[0]}\s%\sand {told[1]}\s%\.",
        standfirst(made[0] | {"arms": fewer}),
    )


def test_the_report_of_another_run_is_not_replaced(finished_run, other_seed):
    before = {path: path.read_bytes() for path in other_seed.rglob("*") if path.is_file()}
    with pytest.raises(RunError, match="holds a run with a report of its own: give --out another folder"):
        write_report([finished_run], other_seed)
    assert {path: path.read_bytes() for path in other_seed.rglob("*") if path.is_file()} == before


def test_the_cards_of_two_seeds_stand_apart(finished_run, other_seed, tmp_path):
    summary = write_report([finished_run, other_seed], tmp_path / "both")
    page = (tmp_path / "both" / "report.html").read_text("utf-8")
    cards = re.findall(r'data-device="([^"]+)"', page)
    assert {name.partition("/")[0] for name in cards} == {"seed0", "seed1"}
    assert set(cards) <= set(summary["devices"])
    lines = [card.count('class="line ') for card in re.findall(r"<article.*?</article>", page, re.DOTALL)]
    assert max(lines) == len(ARMS)
