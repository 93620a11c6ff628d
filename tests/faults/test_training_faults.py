"""A training that is killed, again and again, at any moment, ends with the weights of one that was not."""

import subprocess
import sys

import pytest

SCRIPT = """
import hashlib, sys, torch
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, TrainerCallback, WhisperConfig
from transformers import WhisperForConditionalGeneration
from asrlib.training import callbacks

torch.manual_seed(0)
sizes = dict.fromkeys(("d_model", "encoder_ffn_dim", "decoder_ffn_dim"), 32)
layers = dict.fromkeys(("encoder_layers", "decoder_layers", "encoder_attention_heads", "decoder_attention_heads"), 1)
tokens = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0) | {"decoder_start_token_id": 1}
config = WhisperConfig(vocab_size=50, max_source_positions=25, max_target_positions=12, **sizes, **layers, **tokens)
model = WhisperForConditionalGeneration(config)
rows = [{"input_features": torch.randn(80, 50), "labels": torch.randint(2, 50, (5,))} for _ in range(16)]

class Say(TrainerCallback):
    def on_step_end(self, args, state, control, **_):  # the checkpoint of this step is written after this line
        print("step", state.global_step, flush=True)

arguments = Seq2SeqTrainingArguments(
    sys.argv[1], per_device_train_batch_size=4, max_steps=6, learning_rate=1e-2, use_cpu=True, save_steps=1,
    save_total_limit=1, seed=3, report_to=[], disable_tqdm=True, dataloader_pin_memory=False,
)
trainer = Seq2SeqTrainer(model=model, args=arguments, train_dataset=rows, callbacks=[Say()])
callbacks.show_progress(trainer, "tiny")
trainer.train(resume_from_checkpoint=callbacks.last_checkpoint(sys.argv[1]))
digest = hashlib.sha256()
for name, tensor in sorted(model.state_dict().items()):
    digest.update(name.encode() + tensor.numpy().tobytes())
print("weights", digest.hexdigest(), flush=True)
"""


def steps(process):
    """Yield the process's lines, as they come."""
    for line in process.stdout:
        yield tuple(line.split())


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The digest of a run that nobody disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    ran = subprocess.run([sys.executable, "-c", SCRIPT, str(folder)], capture_output=True, text=True, check=True)
    return ran.stdout.split()[-1]


@pytest.mark.slow
def test_a_training_killed_while_it_writes_checkpoints_ends_with_the_same_weights(tmp_path, start, weights):
    done = []
    for lives, deadly in enumerate((1, 3, 4, None), 1):
        for kind, value in steps(running := start(SCRIPT, str(tmp_path))):
            if kind == "weights":
                assert value == weights
                assert lives == 4
                return
            done.append(int(value))
            if int(value) == deadly:
                running.kill()  # at this moment it has begun to write the checkpoint of this step
                break
        running.wait()
    pytest.fail(f"It never ended: {done}")
