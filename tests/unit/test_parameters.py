import pytest

from asrlib import AsrlibError
from asrlib.course import parameters

CELL = """PROFILE: str = ""  # profile
N_CLIPS: int = 40  # clips
RATE: float = 1e-4  # at its highest
CORPORA: list[str] = [
    "a/en", "b/en",
]  # what is transcribed
FAST: bool = False  # quick
"""
KNOWN = parameters.declared(CELL, "01_one")
FOUND = {"PROFILE": "", "N_CLIPS": 40, "RATE": 1e-4, "CORPORA": ["a/en", "b/en"], "FAST": False}


def complete(found=None, given=(), profile=None):
    return parameters.complete("01_one", KNOWN, FOUND | (found or {}), set(given), profile or {})


@pytest.mark.parametrize(
    ("value", "kind", "fits"),
    [
        (1, "float", True),
        (1.5, "int", False),
        (True, "bool", True),
        (1, "bool", False),
        (["a"], "list[str]", True),
        (["a", 1], "list[str]", False),
        ([[1], []], "list[list[int]]", True),
        ("a", "list[str]", False),
        (1, "unknown", False),
    ],
)
def test_types_of_values(value, kind, fits):
    assert parameters.fits(value, kind) is fits


def test_a_cell_declares_type_value_and_help_of_each_parameter_over_several_lines_too():
    assert KNOWN["CORPORA"] == parameters.Parameter("CORPORA", "list[str]", ["a/en", "b/en"], "what is transcribed")
    assert list(KNOWN) == list(FOUND)


def test_a_cell_that_is_no_python_is_named():
    with pytest.raises(AsrlibError, match="01_one, parameter cell, is not Python"):
        parameters.declared("N_CLIPS: int = (40  # clips", "01_one")


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("changed", [False, True])
@pytest.mark.parametrize("profiled", [False, True])
def test_papermill_counts_before_the_cell_and_the_cell_before_the_profile(given, changed, profiled):
    found = {"N_CLIPS": 7 if changed else 40}
    value, source = complete(found, ["N_CLIPS"] if given else [], {"N_CLIPS": 2} if profiled else {})["N_CLIPS"]
    own = given or changed
    assert value == (found["N_CLIPS"] if own or not profiled else 2)
    assert source == ("you" if own else "profile" if profiled else "notebook")


def test_false_zero_and_nothing_are_values_like_others():
    assert complete({"N_CLIPS": 0}, profile={"N_CLIPS": 2})["N_CLIPS"] == (0, "you")
    assert complete(profile={"CORPORA": []})["CORPORA"] == ([], "profile")
    assert complete(profile={"FAST": True})["FAST"] == (True, "profile")


def test_names_that_papermill_has_assigned_are_found_in_its_cell_alone():
    cells = ["import x\nN = 1", "# Parameters\nN_CLIPS = 40\nLANGUAGE = 'en'\n"]
    assert parameters.injected(cells) == {"N_CLIPS", "LANGUAGE"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"profile": {"CLIPS": 2}},
            "01_one has no parameter CLIPS: correct the name; it has N_CLIPS, RATE, CORPORA, FAST",
        ),
        ({"given": ["CLIPS"]}, "has no parameter CLIPS"),
        ({"profile": {"N_CLIPS": "2"}}, r"profiles\.toml, 01_one: N_CLIPS must be of type int, '2' is not \(clips\)"),
        ({"found": {"CORPORA": "a/en"}}, "^01_one: CORPORA must be of type list"),
        ({"found": {"FAST": 1}}, "FAST must be of type bool"),
    ],
)
def test_a_wrong_name_or_type_is_one_sentence_that_tells_where(arguments, message):
    with pytest.raises(AsrlibError, match=message):
        complete(**arguments)


def test_reference_is_a_profile_without_a_table_and_others_are_refused():
    table = {"smoke": {"01_one": {"N_CLIPS": 2}}}
    assert parameters.profile_values(table, "01_one", "reference") == {}
    assert parameters.profile_values(table, "02_two", "smoke") == {}
    with pytest.raises(AsrlibError, match="no profile 'huge': choose one of reference, smoke"):
        parameters.profile_values(table, "01_one", "huge")
