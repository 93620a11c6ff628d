"""Every runtime hears the same real clips; what it cannot do is one sentence."""

import gc
import json
import signal
import sys
import types
from contextlib import nullcontext

import numpy as np
import psutil
import pytest

from asrlib import AsrlibError, audio, corpora, engines, scoring, text
from asrlib.engines import runtime, transformers_js
from asrlib.models import checkpoints

TINY, BASE = "openai/whisper-tiny.en", "openai/whisper-base"
needs_node = pytest.mark.usefixtures("node")
EXACT = ("transformers", "openai-whisper", "whisper.cpp")  # float32, or the 16 bits that the weights were published in


@pytest.fixture(scope="session")
def node():
    """Fetch Transformers.js, or skip the test and say what is lacking."""
    try:
        transformers_js.node()
        transformers_js.packages()
    except AsrlibError as error:
        pytest.skip(str(error))


@pytest.fixture
def name(request):
    """Return the name of a runtime; the packages of Transformers.js are there by then."""
    if request.param == "transformers.js":
        request.getfixturevalue("node")
    return request.param


@pytest.fixture(scope="module")
def speech():
    return corpora.load("telephone", "en", "test").select(range(0, 60, 12))


@pytest.fixture(scope="module")
def plain(speech):
    return list(engines.load("asrlib", TINY, precision="float32").transcribe(speech, language="en"))


@pytest.fixture
def unfetched(monkeypatch, tmp_path):
    """A checkpoint of which a runtime reads the configuration only."""
    (tmp_path / "generation_config.json").write_text('{"is_multilingual": false}')
    monkeypatch.setattr(checkpoints, "fetch", lambda *_, **__: tmp_path)


def difference(one, other):
    heard = [[item.text for item in side] for side in (one, other)]
    return scoring.score(*heard, normalizer=text.normalizer("en")).wer


@pytest.mark.weights
@pytest.mark.parametrize("name", [name for name in engines.ENGINES if name != "asrlib"], indirect=True)
def test_a_runtime_hears_what_ours_hears(name, speech, plain):
    engine = engines.load(name, TINY)
    heard = list(engine.transcribe(speech, language="en"))
    assert [item.id for item in heard] == speech["id"]
    assert {item.language for item in heard} == {"en"}
    assert difference(plain, heard) <= (0 if name in EXACT else 0.1)
    assert all(item.seconds_compute > 0 for item in heard)
    assert engine.bytes > 10_000_000


@pytest.mark.weights
def test_the_pipeline_hears_in_a_batch_what_it_hears_clip_by_clip(speech, half_a_minute):
    engine = engines.load("transformers", TINY)
    clips = [*speech["audio"], np.tile(half_a_minute, 2)]  # the last one takes several windows, alone
    alone = [item.text for item in engine.transcribe(clips, language="en")]
    calls, answer = [], engine.pipeline
    engine.pipeline = lambda sounds, **options: calls.append(len(sounds)) or answer(sounds, **options)
    engine.batch_size = 3
    assert [item.text for item in engine.transcribe(clips, language="en")] == alone
    assert sorted(calls) == [1, 2, 3]


@pytest.mark.weights
@pytest.mark.parametrize(
    "name",
    [
        "transformers", "openai-whisper", "faster-whisper", "faster-whisper-batched", "whisper.cpp", "onnxruntime",
        "transformers.js", "openvino",
    ],
    indirect=True,
)  # fmt: skip
def test_a_long_recording_is_heard_whole_with_times(name, speech):
    long = audio.stitch(speech.select([0, 1, 2, 3] * 4), seconds=40, seed=0)
    assert long.seconds > 30
    (heard,) = engines.load(name, TINY).transcribe([long.audio], language="en")
    starts = [start for start, _, _ in heard.segments]
    assert starts == sorted(starts)
    assert heard.segments[-1][1] > 25
    assert scoring.score([long.text], [heard.text], normalizer=text.normalizer("en")).wer < 0.5


@pytest.mark.weights
@pytest.mark.parametrize(
    "name", ["asrlib", "onnxruntime", "openvino", "ctranslate2", "faster-whisper", "openai-whisper"]
)
def test_a_call_that_is_not_strict_writes_nothing_where_nobody_speaks(name, speech):
    at = np.arange(3200) / 16_000
    pairs = [(697, 1209), (770, 1336), (852, 1477), (941, 1336)] * 5  # keys of a telephone
    keys = [np.pad(0.05 * np.sin(2 * np.pi * np.outer(pair, at)).sum(axis=0), (0, 1600)) for pair in pairs]
    clips = [np.concatenate(keys).astype(np.float32), speech[0]["audio"]]
    for times in (False, True):
        heard = list(engines.load(name, TINY).transcribe(clips, language="en", timestamps=times, strict=False))
        assert (heard[0].text, heard[0].segments) == ("", ())
        assert heard[1].text == "Added."


class Timed:
    """A runtime that takes so many seconds, more the first time."""

    def __init__(self, clock, seconds, refuses=False):
        self.clock, self.seconds, self.refuses, self.cold = clock, seconds, refuses, 100.0

    def transcribe(self, sounds, *, language, timestamps, strict):
        assert not strict
        if self.refuses:
            raise AsrlibError("not such sounds")
        self.clock.now += self.seconds + self.cold
        self.cold = 0.0
        return iter(sounds)


def test_the_fastest_of_those_that_can_is_chosen(monkeypatch):
    clock = types.SimpleNamespace(now=0.0, perf_counter=lambda: clock.now)
    known = {
        "asrlib": Timed(clock, 3.0), "ctranslate2": Timed(clock, 1.0, refuses=True), "faster-whisper": Timed(clock, 4.0),
        "openvino": Timed(clock, 2.0), "asrlib int8": Timed(clock, 2.5),
    }  # fmt: skip

    def load(name, checkpoint, precision, device):
        assert device == "best"
        entry = f"{name} {precision}".strip()
        if entry not in known:
            raise AsrlibError(f"{name} is not installed")
        return known[entry]

    monkeypatch.setattr(engines, "load", load)
    monkeypatch.setattr(engines, "time", clock)
    best, seconds = engines.fastest(TINY, [np.zeros(16_000)], language="en")
    assert best is known["openvino"]
    assert seconds == {"asrlib": 3.0, "asrlib int8": 2.5, "faster-whisper": 4.0, "openvino": 2.0}
    known["asrlib"].refuses = True
    with pytest.raises(AsrlibError, match="not such sounds"):
        engines.fastest(TINY, [np.zeros(16_000)])


@pytest.mark.parametrize("exported", [False, True])
def test_a_gpu_is_used_where_a_runtime_has_code_for_it_and_the_checkpoint_weights(monkeypatch, exported):
    monkeypatch.setattr("asrlib.models.checkpoints.fetch", lambda name: name)
    monkeypatch.setattr("asrlib.models.folders.exported", lambda _: exported)
    asked = {}

    class Noted:
        on_gpu = False
        precisions = ("float32",)

        def __init__(self, checkpoint, precision, beams, device):
            asked[type(self).on_gpu] = device

    class OnGpu(Noted):
        on_gpu = True

    monkeypatch.setattr(engines.hardware, "best_device", lambda: "cuda")
    for kind in (Noted, OnGpu):
        module = types.SimpleNamespace(Kind=kind)
        monkeypatch.setitem(engines.ENGINES, "noted", "noted:Kind")
        monkeypatch.setattr(engines.importlib, "import_module", lambda _, module=module: module)
        engines.load("noted", TINY, device="best")
    assert asked == {False: "cpu", True: "cpu" if exported else "cuda"}


@pytest.fixture(scope="module")
def half_a_minute():
    prompts = corpora.load("telephone", "en", "test").select(range(0, 96, 4))
    return audio.stitch(prompts, seconds=75, seed=0).audio[: 30 * 16_000]


@pytest.mark.weights
def test_whisper_cpp_hears_each_window_for_itself(half_a_minute):
    """The same half minute twice: with the text of the first window before it, the second one repeats sentences of that."""
    engine = engines.load("whisper.cpp", TINY)
    (once,) = engine.transcribe([half_a_minute], timestamps=True)
    (twice,) = engine.transcribe([np.tile(half_a_minute, 2)])
    normal = text.normalizer("en")
    assert len(normal(once.text).split()) > 40
    assert normal(twice.text).split() == 2 * normal(once.text).split()


@pytest.mark.weights
@pytest.mark.parametrize(
    ("name", "precision"), [("asrlib", "float32"), ("faster-whisper", "float32"), ("whisper.cpp", "float16")]
)
def test_segments_are_joined_without_spaces_that_nobody_wrote(half_a_minute, name, precision):
    """English sound, told to be Japanese, comes as Japanese sentences of sorts."""
    (heard,) = engines.load(name, BASE, precision=precision).transcribe([half_a_minute], language="ja", timestamps=True)
    assert len(heard.segments) > 4
    assert heard.text.count("。") > 4
    assert " " not in heard.text


@pytest.mark.weights
def test_a_letter_that_segments_of_whisper_cpp_share_is_kept(half_a_minute):
    engine = engines.load("whisper.cpp", BASE)
    engine.model._set_params({"token_timestamps": True, "max_len": 1})  # a segment for each token
    (heard,) = engine.transcribe([half_a_minute], language="ja", timestamps=True)
    assert len(heard.segments) > 40
    assert "\ufffd" not in heard.text + "".join(part for *_, part in heard.segments)


@pytest.mark.weights
@pytest.mark.parametrize(
    "name", ["transformers", "openai-whisper", "faster-whisper", "ctranslate2", "whisper.cpp", "openvino"]
)
def test_a_runtime_finds_the_language(name):
    italian = corpora.load("telephone", "it", "test")
    longest = max(range(len(italian)), key=lambda row: italian[row]["seconds"])
    (heard,) = engines.load(name, BASE).transcribe([italian[longest]])
    assert heard.language == "it"


@pytest.fixture(scope="module")
def script():
    return engines.load("transformers.js", TINY)


@pytest.mark.weights
@needs_node
@pytest.mark.parametrize("precision", ["int8", "float32"])
def test_transformers_js_hears_what_the_same_graphs_say_elsewhere(precision, speech):
    there, here = (engines.load(name, TINY, precision=precision) for name in ("transformers.js", "onnxruntime"))
    here.batch_size = 1  # int8 rounds what a batch has in common
    heard = [[item.text for item in engine.transcribe(speech, language="en")] for engine in (there, here)]
    assert heard[0] == heard[1]
    assert there.bytes == here.bytes


@pytest.mark.weights
@needs_node
def test_transformers_js_obeys_the_language_and_must_be_told():
    italian = corpora.load("telephone", "it", "test").select(range(2))
    there, here = (engines.load(name, BASE) for name in ("transformers.js", "onnxruntime"))
    here.batch_size = 1
    with pytest.raises(AsrlibError, match="cannot detect the language"):
        there.transcribe(italian)
    heard, expected = (list(engine.transcribe(italian, language="Italian")) for engine in (there, here))
    words = text.normalizer("it")  # features are computed by two programs: in 8 bits that can change a capital letter
    assert [words(item.text) for item in heard] == [words(item.text) for item in expected]
    assert {item.language for item in heard} == {"it"}


@pytest.mark.weights
@needs_node
def test_transformers_js_goes_on_after_an_interrupted_question(script, speech, tmp_path):
    (before,) = script.transcribe(speech.select([0]))
    node = script.script
    node.number += 1  # as `ask` does, up to where Ctrl-C may come
    node.process.stdin.write(json.dumps({"number": node.number, "sound": str(tmp_path / "gone"), "options": {}}) + "\n")
    (after,) = script.transcribe(speech.select([0]))
    assert after.text == before.text
    with pytest.raises(AsrlibError, match=r"Transformers\.js failed \(.*gone"):
        node.ask(sound=str(tmp_path / "gone"), options={})


@pytest.mark.weights
@needs_node
def test_transformers_js_leaves_no_process_behind(speech, start):
    engine = engines.load("transformers.js", TINY)
    process = engine.script.process
    heard = engine.transcribe(speech, language="en")
    next(heard)
    del engine
    gc.collect()
    assert process.poll() is None  # a transcription goes on
    heard.close()
    del heard
    gc.collect()
    assert process.returncode == -signal.SIGKILL
    code = "from asrlib.engines import transformers_js as js; s = js.Script(js.node(), js.packages()); print(s.process.pid, flush=True); input()"
    parent = start(code)
    orphan = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    orphan.wait(60)  # raises where it has not ended


@pytest.mark.weights
@needs_node
def test_a_dead_node_is_one_sentence(speech):
    engine = engines.load("transformers.js", TINY)
    engine.script.process.kill()
    with pytest.raises(
        AsrlibError, match=r"Node\.js ended before it answered \(without a message\): load the engine again"
    ):
        list(engine.transcribe(speech.select([0])))


@pytest.mark.parametrize("version", ["", "v18.20.4", "not a version"])
def test_transformers_js_without_node_is_one_sentence(monkeypatch, unfetched, tmp_path, version):
    monkeypatch.setenv("PATH", str(tmp_path))
    if version:
        (tmp_path / "node").write_text(f"#!/bin/sh\necho {version}\n")
        (tmp_path / "node").chmod(0o755)
    with pytest.raises(AsrlibError, match=r"^Transformers\.js needs Node\.js 20 or newer: install it, or choose"):
        engines.load("transformers.js")


@pytest.mark.slow
@needs_node
def test_npm_without_a_network_is_one_sentence_and_leaves_nothing(monkeypatch, unfetched, tmp_path):
    monkeypatch.setenv("ASRLIB_CACHE", str(tmp_path / "cache"))
    for name, value in {"registry": "http://127.0.0.1:9", "cache": str(tmp_path), "fetch_retries": "0"}.items():
        monkeypatch.setenv(f"npm_config_{name}", value)
    with pytest.raises(
        AsrlibError, match=r"^Transformers\.js could not be had through npm \(code \w+\): check the network"
    ):
        engines.load("transformers.js")
    assert [path.suffix for path in (tmp_path / "cache" / "npm").iterdir()] == [".lock"]


@pytest.mark.weights
@pytest.mark.parametrize("name", ["openai-whisper", "faster-whisper", "ctranslate2", "whisper.cpp", "transformers"])
def test_beams_are_followed(name, half_a_minute):
    greedy, beams = (
        [item.text for item in engines.load(name, TINY, beams=number).transcribe([half_a_minute])] for number in (1, 5)
    )
    assert beams[0] and beams != greedy


@pytest.mark.weights
def test_ctranslate2_leaves_long_clips_and_times_to_faster_whisper(speech, half_a_minute):
    long = np.concatenate([half_a_minute, half_a_minute[: 8 * 16_000]])
    direct, peer = (engines.load(name, TINY) for name in ("ctranslate2", "faster-whisper"))
    for clips, times in (([long, speech[0]], False), ([speech[0]], True)):
        found, expected = (list(engine.transcribe(clips, timestamps=times)) for engine in (direct, peer))
        assert (found[0].text, found[0].segments) == (expected[0].text, expected[0].segments)
        assert found[0].segments
        assert found[-1].text
    with pytest.raises(AsrlibError, match="English-only model"):
        direct.transcribe(speech, language="it")


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("telepathy", {}, "There is no engine 'telepathy'"),
        ("faster-whisper", {"precision": "int3"}, "no precision 'int3': choose one of int8, float32"),
        ("asrlib", {"beams": 2}, "decodes greedily"),
        ("transformers.js", {"beams": 2}, "decodes greedily"),
        ("whisper.cpp", {"device": "cuda"}, "^whisper.cpp computes on the processor here: leave device at 'cpu', or"),
        ("onnxruntime", {"device": "cuda"}, "^onnxruntime computes on the processor here"),
    ],
)
def test_a_wrong_choice_is_one_sentence(name, options, said):
    with pytest.raises(AsrlibError, match=said):
        engines.load(name, TINY, **options)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("openai-whisper", "openai-whisper computes in float32 on a processor: choose that, or a GPU"),
        ("faster-whisper", "CTranslate2 cannot compute in float16 here: choose one of int8, float32"),
    ],
)
def test_a_precision_that_only_a_gpu_has_is_one_sentence(unfetched, monkeypatch, name, said):
    monkeypatch.setattr("ctranslate2.get_supported_compute_types", lambda device: {"int8", "float32", "int16"})
    with pytest.raises(AsrlibError, match=f"^{said}"):
        engines.load(name, precision="float16")


def test_a_gpu_without_the_library_that_ctranslate2_opens_is_one_sentence(unfetched, monkeypatch):
    def lacking(name, **_):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr("ctranslate2.get_supported_compute_types", lambda device: {"float16"})
    monkeypatch.setattr("ctypes.CDLL", lacking)
    with pytest.raises(AsrlibError, match=r"CTranslate2 needs libcublas\.so\.12 on a GPU: pip install"):
        engines.load("faster-whisper", precision="float16", device="cuda")


def test_a_time_that_is_left_open_is_the_last_one_before_it():
    parts = [(None, None, " a"), (1, 2.5, ""), (None, 4, "b "), (5, None, "c"), (None, None, "d")]
    assert runtime.segments(parts) == ((0.0, 0.0, "a"), (2.5, 4.0, "b"), (5.0, 5.0, "c"), (5.0, 5.0, "d"))


@pytest.mark.parametrize(
    ("size", "untimed", "refused"), [(51_865, 50_363, False), (51_866, 50_364, False), (51_866, 50_363, True)]
)
def test_words_that_were_added_are_refused_where_tokens_follow_from_the_size(tmp_path, size, untimed, refused):
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": size}))
    made = runtime.Runtime.__new__(runtime.Runtime)
    made.folder, made.checkpoint = tmp_path, "tuned"
    made.generation = types.SimpleNamespace(no_timestamps_token_id=untimed)
    with pytest.raises(AsrlibError, match="words were added to tuned: choose another") if refused else nullcontext():
        made._refuse_added_words("whisper.cpp")


@pytest.mark.weights
@pytest.mark.parametrize("name", ["transformers", "faster-whisper", "ctranslate2"])
def test_a_folder_that_lacks_its_settings_is_one_sentence(tmp_path, name):
    for file in ("config.json", "model.safetensors"):
        (tmp_path / file).symlink_to(checkpoints.fetch(TINY) / file)
    with pytest.raises(AsrlibError, match="is not a complete Whisper checkpoint"):
        engines.load(name, str(tmp_path))


@pytest.mark.parametrize(("name", "package", "extra"), [
    ("whisper.cpp", "_pywhispercpp", "peers"), ("faster-whisper", "faster_whisper", "peers"), ("openvino", "openvino", "toolkits"),
])  # fmt: skip
def test_a_missing_package_is_named_by_its_extra(monkeypatch, unfetched, name, package, extra):
    for module in [module for module in sys.modules if module.startswith("asrlib.engines.")]:
        monkeypatch.delitem(sys.modules, module)  # an earlier test may have imported it
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(AsrlibError, match=rf"{name} is not installed: pip install 'asrlib\[{extra}\]'"):
        engines.load(name)
