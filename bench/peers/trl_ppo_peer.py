"""PPO by TRL 1.12, the last release that has it: policy, value, reference and reward model, the settings of our own row."""
import os
import random
import tempfile

from serve import THREADS, serve

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel, PreTrainedTokenizerFast
from trl.experimental.ppo import PPOConfig, PPOTrainer

torch.set_num_threads(THREADS)
torch.manual_seed(0)


def ppo(layers, width, heads, vocabulary, batch, prompt, response):
    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(vocabulary)}, unk_token="t0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="t1", pad_token="t2")
    ids = dict(bos_token_id=1, eos_token_id=1, pad_token_id=2)
    config = GPT2Config(n_layer=layers, n_embd=width, n_head=heads, vocab_size=vocabulary, n_positions=prompt + response, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, num_labels=1, **ids)
    policy, reference = GPT2LMHeadModel(config), GPT2LMHeadModel(config)
    reference.load_state_dict(policy.state_dict())
    reward, value = GPT2ForSequenceClassification(config), GPT2ForSequenceClassification(config)
    data = Dataset.from_dict({"input_ids": [[random.randrange(3, vocabulary) for _ in range(prompt)] for _ in range(batch)]})
    args = PPOConfig(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=batch // 4, gradient_accumulation_steps=4, num_mini_batches=4, num_ppo_epochs=4,
        total_episodes=batch, response_length=response, stop_token=None, local_rollout_forward_batch_size=batch, num_sample_generations=0, report_to=[],
        use_cpu=True, bf16=False, learning_rate=1e-5, logging_steps=1, save_strategy="no", temperature=1.0, missing_eos_penalty=None, disable_tqdm=True,
    )
    trainer = PPOTrainer(
        args=args, processing_class=tokenizer, model=policy, ref_model=reference, reward_model=reward, value_model=value, train_dataset=data, eval_dataset=data,
    )
    return [("TRL PPO", trainer.train)]  # of as many episodes as one update has


serve({"PPO update": lambda sizes: ppo(**sizes)})
