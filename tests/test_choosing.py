"""What to hand over within a budget, out of what was measured; or what cannot be had."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ilcp.cli import app
from ilcp.cli.exit_codes import NOTHING_FITS
from ilcp.errors import ConfigError
from ilcp.measure import Report, choose, plots, save_report
from ilcp.measure.asking import narrowed
from ilcp.measure.choosing import axis_of
from ilcp.measure.items import Arm
from ilcp.measure.plots import AXES
from tests.test_page import make_report


def sized(report: Report, name: str, family: str, wire: int, right: int) -> Report:
    """The report with one arm of that family, size and number of right answers."""
    n = len(report.items)
    answers = tuple(None if at < right else "wrong" for at in range(n))
    nats = tuple(-0.1 if at < right else -5.0 for at in range(n))
    arm = Arm(name, family, answers, nats, nats, (wire - 20,) * report.n, (wire,) * report.n)
    return replace(report, arms={**report.arms, name: arm})


@pytest.fixture
def latent() -> Report:
    """A report of a latent: 100 bytes for half of the answers, a text of 400, a shorter text for a quarter."""
    report = make_report()
    n = len(report.items)
    bare = replace(report, arms={}, notes=(), footnotes=())
    none = Arm("none", "control", ("wrong",) * n, (-5.0,) * n, (-5.0,) * n)
    bare = replace(bare, arms={"none": none})
    bare = sized(bare, "text", "text", 400, n)
    bare = sized(bare, "message", "message", 100, n // 2)
    return sized(bare, "lm-80", "text of equal bytes", 100, n // 4)


@pytest.fixture
def cache(latent: Report) -> Report:
    """A report of a cache of the same questions: all answers for 9,000 bytes, of which no time was taken."""
    arms = {name: arm for name, arm in latent.arms.items() if name in ("text", "none")}
    codec = {**latent.codec, "name": "kv-int4", "codec_id": "11" * 8}
    return sized(replace(latent, arms=arms, codec=codec, cost=None), "message", "message", 9000, len(latent.items))


def names(found: Any) -> list[tuple[str, str]]:
    """Codec and arm of all offers."""
    return [(offer.codec, offer.arm) for offer in found.offers]


def test_everything_lies_on_one_axis_and_what_is_alike_lies_there_once(latent: Report, cache: Report) -> None:
    offers = axis_of([latent, cache])
    assert [(offer.codec, offer.arm) for offer in offers] == [
        ("", "lm-80"),
        ("vae", "message"),
        ("", "text"),
        ("kv-int4", "message"),
    ]
    assert [offer.readable for offer in offers] == [True, False, True, False]
    assert offers[2].first_token_ms is not None
    assert offers[3].first_token_ms is None
    turned = axis_of([cache, latent])  # whichever comes first: a time that one of them took stays
    assert turned[2] == offers[2]


def test_two_codecs_of_one_name_are_two(latent: Report) -> None:
    """A shorter share of the same codec, or another training, is no arm of the first one."""
    other = sized(replace(latent, codec={**latent.codec, "codec_id": "00" * 8}), "message", "message", 50, 1)
    found = [(offer.codec, offer.most_bytes) for offer in axis_of([latent, other]) if offer.arm == "message"]
    assert found == [(f"vae {'00' * 8}", 50), (f"vae {latent.codec['codec_id']}", 100)]
    named = {offer.codec for offer in axis_of({"short": other, "long": latent}) if offer.arm == "message"}
    assert named == {"short", "long"}
    assert {"", "vae"} == {offer.codec for offer in axis_of({"short": latent})}


def test_texts_of_one_name_that_are_not_alike_are_two(latent: Report, cache: Report) -> None:
    """Each codec's messages have rivals of their own length; both are then named by their codec."""
    n = len(latent.items)
    other = sized(sized(cache, "lm-80", "text of equal bytes", 70, n // 4), "text", "text", 400, n)
    found = {(offer.codec, offer.arm): offer for offer in axis_of([latent, other]) if offer.readable}
    assert {("vae", "lm-80"), ("kv-int4", "lm-80"), ("", "text")} == set(found)
    assert (100, 70) == (found["vae", "lm-80"].mean_bytes, found["kv-int4", "lm-80"].mean_bytes)


def test_recovery_of_two_receivers_is_not_compared(latent: Report, cache: Report) -> None:
    """Each recovers a share of what it knows itself from the text."""
    models = cache.provenance["models"] | {"receiver": "another"}
    other = replace(cache, provenance={**cache.provenance, "models": models})
    with pytest.raises(ConfigError, match="expected reports of one receiver, got vae's and kv-int4's"):
        choose([latent, other])


def test_a_case_that_one_of_them_left_out_counts_in_none(latent: Report, cache: Report) -> None:
    whole = axis_of([latent, cache])
    kept = list(range(1, latent.n))
    partly = axis_of([latent, narrowed(cache, kept, {latent.items.cases[0]: "too odd"})])
    assert [offer.arm for offer in whole] == [offer.arm for offer in partly]
    assert {offer.recovery.n for offer in partly} == {len(narrowed(latent, kept).items)}
    assert partly != whole


def test_a_codec_of_any_name_is_drawn_for_itself(latent: Report, cache: Report) -> None:
    """Also one whose report is called as a text is, or as another but for its end."""
    long = [f"conversations-of-{end}-customers" for end in ("one", "two")]
    codecs = [{**latent.codec, "codec_id": f"{at:016x}"} for at in range(3)]
    reports = [sized(replace(latent, codec=codec), "message", "message", 90, at) for at, codec in enumerate(codecs)]
    offers = axis_of(dict(zip(("lm", *long), reports, strict=True)))
    figure: Any = plots._axis(latent, offers, AXES["recovery"])
    shown = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(shown) == len(set(shown)) == 6
    assert {"lm", "text: language model", "full text", "nothing"} < set(shown)
    assert {(line.get_marker(), line.get_color()) for line in figure.axes[0].lines} >= {("P", "#CC79A7")}
    apart = {offer.codec for offer in axis_of({"kv-int4": reports[0], "x": reports[1], "y": cache}) if offer.codec}
    assert f"vae {codecs[0]['codec_id']}" in apart  # its file has the name of another codec
    assert {"x", "kv-int4"} < apart


def test_no_two_of_many_codecs_look_alike(latent: Report) -> None:
    """Twice as many as there are markers have a look of their own each."""
    (offer,) = (offer for offer in axis_of([latent]) if offer.arm == "message")
    drawn = plots.series_of([replace(offer, codec=f"codec {at}") for at in range(16)], AXES["recovery"])
    assert 16 == len({(one.look.colour, one.look.marker) for one in drawn})


def test_recovery_by_log_likelihood_is_its_own(latent: Report) -> None:
    """It is what is drawn by that name, and of continuations nothing, whose recovery it is already."""
    surer = replace(
        latent.arms["message"], nats=(-0.1,) * len(latent.items)
    )  # wrong answers, but the right ones likely
    latent = replace(latent, arms={**latent.arms, "message": surer})
    offers = axis_of([latent])
    for offer in offers:
        assert offer.recovery_nats == latent.recovery(offer.arm, of="log_likelihood")
    shown: dict[str, Any] = {name: plots._axis(latent, offers, across) for name, across in AXES.items()}
    exact, nats = (
        [float(y) for line in shown[name].axes[0].lines for y in line.get_ydata()]
        for name in ("recovery", "log-likelihood")
    )
    assert exact.count(1.0) < nats.count(1.0)
    endless = replace(latent, answers_end=False)
    assert plots._axis(endless, offers, AXES["log-likelihood"]) is None


@pytest.mark.parametrize(
    ("limits", "chosen"),
    [
        ({}, ("", "text")),  # what recovers most, and of those that may be equals the shortest one
        ({"max_bytes": 399}, ("vae", "message")),
        ({"max_bytes": 399, "readable": True}, ("", "lm-80")),
        ({"min_recovery": 0.2}, ("vae", "message")),  # the fewest bytes that are sure to reach it
        ({"min_recovery": 0.9}, ("", "text")),
        ({"min_recovery": 0.9, "max_bytes": 399}, None),
        ({"readable": True, "max_bytes": 50}, None),
    ],
)
def test_limits_decide(limits: dict[str, Any], chosen: tuple[str, str] | None, latent: Report, cache: Report) -> None:
    found = choose([latent, cache], **limits)
    assert chosen == (None if found.chosen is None else (found.chosen.codec, found.chosen.arm))
    assert all(bool(offer.against) != (not offer.against) for offer in found.offers)
    if found.chosen is None:
        assert all(offer.against for offer in found.offers)
        assert found.said.startswith("Nothing keeps every limit. Nearest is ")
    else:
        assert not found.chosen.against
        assert found.said == f"Hand over {found.chosen}."


def test_noise_does_not_make_a_cache_better_than_its_text(latent: Report, cache: Report) -> None:
    """A cache that happens to answer one question more, at twenty times the bytes, is no better than the text."""
    wrong = latent.arms["text"].answers
    short = replace(latent.arms["text"], answers=("wrong", *wrong[1:]))
    reports = [replace(each, arms={**each.arms, "text": short}) for each in (latent, cache)]
    found = choose(reports)
    by_arm = {(offer.codec, offer.arm): offer.recovery.value for offer in found.offers}
    assert by_arm["kv-int4", "message"] > by_arm["", "text"]
    assert found.chosen is not None
    assert found.chosen.arm == "text"


def test_of_what_may_be_as_good_the_shortest_is_taken(latent: Report) -> None:
    """One more right answer, within the interval, is not worth three times the bytes."""
    n = len(latent.items)
    longer = replace(latent, codec={**latent.codec, "name": "longer", "codec_id": "22" * 8})
    longer = sized(longer, "message", "message", 300, n // 2 + 1)
    found = choose([latent, longer], max_bytes=399)
    by_codec = {offer.codec: offer.recovery for offer in found.offers}
    assert by_codec["longer"].value > by_codec["vae"].value
    assert found.chosen is not None
    assert found.chosen.codec == "vae"


def test_the_longest_message_counts_and_not_their_mean(latent: Report) -> None:
    """A link that takes 100 bytes takes no message of 101."""
    arm = latent.arms["message"]
    longer = replace(arm, wire_bytes=(101, *arm.wire_bytes[1:]))
    found = choose([replace(latent, arms={**latent.arms, "message": longer})], max_bytes=100)
    against = {offer.arm: offer.against for offer in found.offers}
    assert against["message"] == ("over 100 bytes",)
    assert not against["lm-80"]


def test_a_time_that_was_not_taken_is_no_time(latent: Report, cache: Report) -> None:
    found = choose([latent, cache], max_first_token_ms=1e9)
    against = {(offer.codec, offer.arm): offer.against for offer in found.offers}
    assert against["kv-int4", "message"] == ("its first token was not timed",)
    assert not against["vae", "message"]
    none = choose([latent, cache], max_first_token_ms=1e-6)
    assert none.chosen is None
    assert any("first token after" in why for offer in none.offers for why in offer.against)


def test_reports_of_other_questions_and_half_ones_are_refused(latent: Report, cache: Report) -> None:
    with pytest.raises(ConfigError, match="one report or more, got none"):
        choose([])
    with pytest.raises(ConfigError, match="interrupted one"):
        choose([latent, replace(cache, complete=False)])
    other = replace(cache, items=replace(cache.items, questions=("else?",) * len(cache.items)))
    with pytest.raises(ConfigError, match="reports of the same questions"):
        choose([latent, other])
    text = replace(latent.arms["none"], name="text", family="text")
    with pytest.raises(ConfigError, match="there is nothing to recover"):
        choose([replace(latent, arms={**latent.arms, "text": text})])
    for wrong in ({"max_bytes": 0}, {"max_first_token_ms": float("nan")}, {"min_recovery": float("nan")}):
        with pytest.raises(ConfigError, match="expected m"):
            choose([latent], **wrong)


def test_an_offer_has_the_receivers_time_and_tokens_and_each_is_drawn_against_its_own(latent: Report) -> None:
    assert latent.cost is not None
    figures = latent.cost.figures()
    offers = {offer.arm: offer for offer in axis_of([latent])}
    for arm in ("message", "text"):
        places = [across.of(offers[arm]) for across in AXES.values() if not across.nats]
        taken = [figures[f"{what}, {arm}"].value for what in ("first token", "tokens")]
        assert places == [offers[arm].mean_bytes, *taken]
        assert len(set(places)) == 3
    assert offers["lm-80"].read_tokens is offers["lm-80"].first_token_ms is None


def test_the_command_names_what_to_hand_over(latent: Report, cache: Report, tmp_path: Path) -> None:
    files = [tmp_path / "latent.json", tmp_path / "cache.json"]
    for report, file in zip((latent, cache), files, strict=True):
        save_report(report, file)
    words = ["choose", *map(str, files)]
    shown = CliRunner().invoke(app, [*words, "--max-bytes", "399", "--png", str(tmp_path / "plots")])
    assert shown.exit_code == 0, shown.output
    assert shown.output.startswith("Hand over message by vae: at most 100 bytes")
    drawn = sorted(file.name for file in (tmp_path / "plots").iterdir())
    assert drawn == ["first-token.png", "log-likelihood.png", "recovery.png", "tokens.png"]
    assert all((tmp_path / "plots" / name).read_bytes().startswith(b"\x89PNG") for name in drawn)
    lacking = CliRunner().invoke(app, [*words, "--min-recovery", "1.5", "--auditable", "--json"])
    assert lacking.exit_code == NOTHING_FITS
    record = json.loads(lacking.stdout)
    assert record["chosen"] is None
    assert [offer["arm"] for offer in record["offers"]] == ["lm-80", "message", "text", "message"]
