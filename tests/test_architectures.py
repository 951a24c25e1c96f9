"""Many architectures are read, trained, adapted, patched and asked, each as by hand; what cannot be is refused in one line."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from tests.architectures import ARCHITECTURES, ENDS, REFUSED, USUAL_RUN, blocks_by_hand, build
from tests.tiny import make_rows, tiny_tokenizer
from wellworn.data.chat import Encoded
from wellworn.data.errors import InputError
from wellworn.lora.fit import put_on, restored
from wellworn.lora.models import Loaded, ModelRef
from wellworn.lora.train import train_sft
from wellworn.lora.train_config import TrainConfig
from wellworn.probes.decoding.generate import Decoding, Request, generate
from wellworn.probes.decoding.kept import kept_by
from wellworn.probes.decoding.next_token import next_logprobs
from wellworn.probes.mediation.interventions import Intervention, Swap
from wellworn.probes.mediation.paired_states import Texts
from wellworn.probes.mediation.patched_decoding import patched_answers
from wellworn.probes.mediation.patching import patched_logprobs
from wellworn.probes.mediation.written import confined_logprobs
from wellworn.probes.reading.capture import Reading, Spec, read, read_variants
from wellworn.probes.reading.hooks import add_vector
from wellworn.probes.reading.supported import check_blocks
from wellworn.probes.reading.variants import Variant

SPANS = ("prompt", "prompt_last", "response")
ROWS = make_rows(5, seed=3)
PROMPTS = [row.input_ids[: row.spans["response"][0]] for row in ROWS]
# Two of different lengths: a full pass for each token takes long.
FEW = PROMPTS[:2]
TOKENS, MIDDLE = 4, 2
# Modules that PEFT refuses to adapt in models of these types, since their kernels read the weight.
READ_BY_KERNELS = ("falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h")
Edit = Callable[[torch.Tensor], torch.Tensor]


@dataclass
class ByHand:
    """A model's own forward passes, row by row, without a cache, with hooks on blocks that were found by hand."""

    model: nn.Module
    adapter: str | None = None
    edit: tuple[int, Edit] | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            if self.adapter is not None:
                self.model.set_adapter(self.adapter)
            elif hasattr(self.model, "disable_adapter"):
                stack.enter_context(self.model.disable_adapter())
            if self.edit is not None:
                layer, edit = self.edit
                stack.callback(blocks_by_hand(self.model)[layer].register_forward_hook(partial(_replace, edit)).remove)
            yield

    def states(self, ids: Sequence[int]) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Return each block's output [T, D], and the logits [T, V]."""
        found: list[torch.Tensor] = []
        with self.running(), ExitStack() as stack:
            for block in blocks_by_hand(self.model):
                stack.callback(block.register_forward_hook(lambda _module, _args, output: found.append(_bare(output)[0])).remove)
            logits = self.model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0]
        return found, logits

    def reading(self, rows: Sequence[Encoded]) -> Reading:
        states, scores = [], []
        for row in rows:
            found, logits = self.states(row.input_ids)
            states.append(torch.stack([torch.stack([h[slice(*row.spans[span])].mean(0) for span in SPANS]) for h in found]))
            scores.append(_logprob(logits, row))
        return Reading(torch.stack(states), torch.stack(scores))

    def answer(self, prompt: Sequence[int]) -> tuple[int, ...]:
        return _answer(prompt, lambda ids: self.states(ids)[1][-1])


def _bare(output: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    return output if isinstance(output, torch.Tensor) else output[0]


def _replace(edit: Edit, _module: nn.Module, _args: object, output: torch.Tensor | tuple[torch.Tensor, ...]) -> object:
    return edit(output) if isinstance(output, torch.Tensor) else (edit(output[0]), *output[1:])


def _logprob(logits_TV: torch.Tensor, row: Encoded) -> torch.Tensor:
    start, end = row.spans["response"]
    logp = logits_TV.log_softmax(-1)
    return torch.stack([logp[t - 1, row.input_ids[t]] for t in range(start, end)]).mean()


def _answer(prompt: Sequence[int], logits_after: Callable[[list[int]], torch.Tensor]) -> tuple[int, ...]:
    ids = list(prompt)
    for _ in range(TOKENS):
        token = int(logits_after(ids).argmax())
        if token in ENDS:
            break
        ids.append(token)
    return tuple(ids[len(prompt) :])


def same(found: torch.Tensor | None, expected: torch.Tensor | None) -> None:
    """Equal to rounding, relative to the largest."""
    assert found is not None
    assert expected is not None
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= 4e-5 * float(expected.abs().max())


def wrap(architecture: str) -> Loaded:
    return Loaded(ModelRef(f"{architecture}@1", architecture), build(architecture), tiny_tokenizer())


def saved_adapter(architecture: str, folder: Path, **settings: object) -> Path:
    """Save an adapter of PEFT's own on linear layers of the blocks, with random weights."""
    model = build(architecture)
    names = [name for name, module in model.named_modules() if type(module).__name__ in ("Linear", "Conv1D", "FalconLinear")]
    inside = [name for name in names if any(f".{part}." in f".{name}." for part in ("layers", "h", "blocks")) and "vision" not in name]
    if architecture in READ_BY_KERNELS:
        inside = [name for name in inside if not name.endswith("out_proj")]
    if any("experts" in name for name, _ in model.named_modules()):
        # PEFT would take these names for those of experts, whose tensors it cannot adapt in all ways.
        inside = [name for name in inside if not name.endswith((".gate", "gate_proj", "up_proj", "down_proj"))]
    chosen = [inside[len(inside) // 2]] if settings.pop("one_module", False) else inside
    peft = get_peft_model(model, LoraConfig(target_modules=chosen, task_type="CAUSAL_LM", **settings))
    generator = torch.Generator().manual_seed(5)
    for name, weight in peft.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.3, generator=generator)
    peft.save_pretrained(folder)
    return folder


def trained_adapter(architecture: str, folder: Path) -> Path:
    """Train an adapter with the suite's own settings."""
    config = TrainConfig(batch_size=4, lora={"r": 2}, sft={"max_steps": 2, "learning_rate": 1e-1, "save_steps": 100})
    data = [{"input_ids": list(row.input_ids), "completion_mask": list(row.completion_mask)} for row in ROWS]
    base = wrap(architecture)
    before = {name: each.clone() for name, each in base.model.state_dict().items()}
    curve = train_sft(base, data, config, seed=0, out=folder / "adapter", work=folder / "work")
    assert all(np.isfinite(point["loss"]) for point in curve)
    assert all(torch.equal(each, before[_own(name)]) for name, each in base.model.state_dict().items() if _own(name) in before)
    towers = [name for name, _ in base.model.named_modules() if "lora_A" in name and "vision" in name]
    assert not towers
    return folder / "adapter"


def _own(name: str) -> str:
    return name.replace(".base_layer", "")


def check_reading(model: nn.Module) -> None:
    found, expected = read(model, ROWS, Spec(logprob=True, token_budget=100)), ByHand(model).reading(ROWS)
    same(found.states, expected.states)
    same(found.logprob, expected.logprob)
    some = next_logprobs(model, PROMPTS, [3, 40, 77], after=((), (5, 9)))
    logits = [[ByHand(model).states([*prompt, *more])[1][-1] for more in ((), (5, 9))] for prompt in PROMPTS]
    same(torch.from_numpy(some), torch.stack([torch.stack(pair) for pair in logits]).log_softmax(-1)[..., [3, 40, 77]])


def check_variants(model: nn.Module, adapters: Sequence[str]) -> None:
    variants = [Variant(), *(Variant(name) for name in adapters)]
    found = read_variants(model, ROWS, variants, Spec(logprob=True, token_budget=100))
    expected = [ByHand(model, name).reading(ROWS) for name in (None, *adapters)]
    for mine, theirs in zip(found, expected, strict=True):
        same(mine.states, theirs.states)
        same(mine.logprob, theirs.logprob)
    assert all(float((each.states - expected[0].states).abs().max()) > 1e-3 for each in expected[1:])


def check_answers(model: nn.Module, adapters: Sequence[str]) -> None:
    push = add_vector(torch.linspace(-2, 2, 32))
    ways: list[tuple[Variant, ByHand]] = [(Variant(name), ByHand(model, name)) for name in (None, *adapters)]
    ways.append((Variant(adapters[0], {MIDDLE: push}), ByHand(model, adapters[0], (MIDDLE, push))))
    found = generate(model, [Request(prompt, variant) for variant, _ in ways for prompt in PROMPTS], Decoding(TOKENS))
    expected = [by_hand.answer(prompt) for _, by_hand in ways for prompt in PROMPTS]
    assert [answer.ids for answer in found] == expected
    assert len({len(answer) for answer in expected}) > 1


def check_patching(model: nn.Module, adapter: str) -> None:
    basis_DK = torch.linalg.qr(torch.randn(32, 3, generator=torch.Generator().manual_seed(2))).Q
    between = (Variant(), Variant(adapter))
    arms = [Intervention(0), Intervention(1), Intervention(0, {MIDDLE: Swap()}), Intervention(1, {MIDDLE: Swap(basis_DK, outside=True)})]
    found = patched_logprobs(model, Texts.same(ROWS), between, arms)

    def patched(ids: Sequence[int], arm: int) -> torch.Tensor:
        sides = (ByHand(model), ByHand(model, adapter))
        reader = arms[arm].reader
        if not arms[arm].swaps:
            return sides[reader].states(ids)[1]
        other = sides[1 - reader].states(ids)[0][MIDDLE]
        part = (lambda change: change) if arm == 2 else (lambda change: change - change @ basis_DK @ basis_DK.T)
        return ByHand(model, (None, adapter)[reader], (MIDDLE, lambda h: h + part(other - h))).states(ids)[1]

    for arm in range(len(arms)):
        same(found[arm], torch.stack([_logprob(patched(row.input_ids, arm), row) for row in ROWS]))
    alone = kept_by(model).argument is None
    with pytest.raises(InputError, match="keeps its state where it cannot be taken") if alone else nullcontext():
        answers = patched_answers(model, (FEW, FEW), between, arms[2:], Decoding(TOKENS))
    if not alone:
        for arm, mine in zip((2, 3), answers, strict=True):
            assert [tuple(answer) for answer in mine] == [_answer(prompt, lambda ids, arm=arm: patched(ids, arm)[-1]) for prompt in FEW]


def check_writes(model: nn.Module, adapter: str) -> None:
    """Where nothing that adapters write is kept the model is M0, and where all is kept it is M1."""
    layers = range(len(blocks_by_hand(model)))
    parts = [{layer: Swap(scale=scale) for layer in layers} for scale in (0.0, 1.0)]
    found = confined_logprobs(model, ROWS, (Variant(), Variant(adapter)), parts)
    same(found[0], ByHand(model).reading(ROWS).logprob)
    same(found[1], ByHand(model, adapter).reading(ROWS).logprob)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "architecture", [name if name in USUAL_RUN else pytest.param(name, marks=pytest.mark.slow) for name in ARCHITECTURES]
)
def test_it_is_read_trained_adapted_patched_and_asked_as_by_hand(architecture: str, tmp_path: Path) -> None:
    base = wrap(architecture)
    check_blocks(base.model)
    check_reading(base.model)
    adapters = {
        "default": trained_adapter(architecture, tmp_path / "default"),
        "dora": saved_adapter(architecture, tmp_path / "dora", r=2, use_dora=True),
        "single": saved_adapter(architecture, tmp_path / "single", r=1, use_rslora=True, one_module=True),
    }
    with restored(base):
        model = put_on(base, adapters)
        check_variants(model, list(adapters))
        check_answers(model, ["default", "dora"])
        check_patching(model, "single")
    with restored(base):
        # Alone it is plain LoRA, whose rows are mixed with the base's.
        model = put_on(base, {"default": adapters["default"]})
        check_answers(model, ["default"])
        check_patching(model, "default")
        check_writes(model, "default")
    same(read(base.model, ROWS).states, ByHand(build(architecture)).reading(ROWS).states)


@pytest.mark.parametrize("architecture", REFUSED)
def test_what_cannot_be_read_is_refused_in_one_line(architecture: str) -> None:
    with pytest.raises(InputError, match=REFUSED[architecture][1]) as caught:
        check_blocks(build(architecture))
    assert "\n" not in str(caught.value)
