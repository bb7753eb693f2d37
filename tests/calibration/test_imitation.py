"""The fit of another attention to a teacher's plans: its loss, padding, and what it keeps."""

import pytest
import torch
from torch import Tensor

from asap_exp.attention import HedgehogAttention, MultiHeadAttention, SoftmaxAttention
from asap_exp.calibration.imitation import Imitated, fit_imitation, mean_kl, total_kl
from asap_exp.calibration.steps import AdamFit, ImitationData
from tests.attention.inputs import HEAD_DIM, HEADS, MASK, normal

SOFTMAX = SoftmaxAttention()


def student() -> HedgehogAttention:
    """Return the attention of a layer, at its start."""
    attention = HedgehogAttention()
    MultiHeadAttention(HEADS * HEAD_DIM, HEADS, attend=attention)
    return attention


def batch(mask: Tensor | None, seed: int = 0, size: float = 1.0) -> Imitated:
    shape = (4, HEADS, 7, HEAD_DIM)
    q, k = (size * normal(*shape, seed=2 * seed + part) for part in range(2))
    return Imitated(q, k, mask)


def divergence_by_hand(attention: HedgehogAttention, of: Imitated) -> tuple[Tensor, int]:
    """Return the KL summed over valid rows, by sample, head and row, and the number of rows."""
    q, k, mask = of
    found = torch.zeros(HEADS, dtype=torch.float64)
    rows = 0
    for b in range(len(q)):
        valid = torch.ones(7, dtype=torch.bool) if mask is None else ~mask[b]
        x, y = q[b : b + 1, :, valid], k[b : b + 1, :, valid]
        teacher = (x @ y.mT / HEAD_DIM**0.5).softmax(dim=-1)
        mine = attention.plan(x, y).detach()
        found += (teacher * (teacher / mine).log()).sum(dim=(0, 2, 3)).double()
        rows += int(valid.sum())
    return found, rows


@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "padded"])
def test_divergence_is_that_of_the_formula_over_valid_tokens_alone(mask: Tensor | None) -> None:
    attention, of = student(), batch(mask)
    total, rows = divergence_by_hand(attention, of)
    torch.testing.assert_close(
        total_kl(attention, SOFTMAX, of).double(), total, rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        mean_kl(attention, SOFTMAX, [of, of]), total / rows, rtol=1e-4, atol=1e-5
    )


def test_gradient_is_that_of_the_cross_entropy_with_the_teachers_rows_as_labels() -> None:
    attention, of = student().double(), batch(MASK)
    of = Imitated(of.q.double(), of.k.double(), MASK)
    labels, plan = (a.plan(of.q, of.k, key_padding_mask=MASK) for a in (SOFTMAX, attention))
    valid = labels > 0
    entropy = -(labels[valid] * plan[valid].log()).sum()
    parameters = list(attention.parameters())
    wanted = torch.autograd.grad(entropy, parameters)
    found = torch.autograd.grad(total_kl(attention, SOFTMAX, of).sum(), parameters)
    for gradient, other in zip(found, wanted, strict=True):
        assert other.any()
        torch.testing.assert_close(gradient, other)


class Fixed(SoftmaxAttention):
    """Attention with a given plan."""

    def __init__(self, rows: list[list[float]]) -> None:
        super().__init__()
        self.A = torch.tensor([[rows]])

    def plan(
        self,
        q: Tensor,
        k: Tensor,
        *,
        key_padding_mask: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        return self.A


def test_what_underflows_where_the_teacher_has_mass_is_far_from_it() -> None:
    of = Imitated(torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 2, 2), None)
    (found,) = total_kl(Fixed([[1.0, 0.0]]), Fixed([[0.5, 0.5]]), of)
    assert 40 < found < 50, "half of -log of the smallest number"


@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "padded"])
def test_fit_lowers_the_divergence_on_other_data_of_the_same_kind(mask: Tensor | None) -> None:
    attention = student()
    fit, held_out = ([batch(mask, seed) for seed in seeds] for seeds in (range(8), range(8, 12)))
    before = mean_kl(attention, SOFTMAX, held_out)
    fit_imitation(
        attention, ImitationData(SOFTMAX, fit, held_out, seed=0), AdamFit(updates=200, lr=0.02)
    )
    assert (mean_kl(attention, SOFTMAX, held_out) < 0.8 * before).all()
    assert not any(parameter.requires_grad for parameter in attention.parameters())


def test_head_that_a_fit_makes_worse_keeps_what_it_started_from() -> None:
    """The held-out data of head 0 is that of the fit, and head 1 has reached its best there."""
    attention = student()
    checked, other = batch(None, size=2.0), batch(None, seed=1, size=2.0)
    data = ImitationData(SOFTMAX, [checked], [checked], seed=0)
    fit_imitation(attention, data, AdamFit(updates=300, lr=0.05))
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter[0] = torch.eye(HEAD_DIM)
    before = mean_kl(attention, SOFTMAX, [checked])
    start = [x.detach().clone() for x in attention.parameters()]
    q, k = (
        torch.cat([mine[:, :1], theirs[:, 1:]], dim=1)
        for mine, theirs in ((checked.q, other.q), (checked.k, other.k))
    )
    data = ImitationData(SOFTMAX, [Imitated(q, k, None)], [checked], seed=0)
    fit_imitation(attention, data, AdamFit(updates=40, lr=0.05))
    after = mean_kl(attention, SOFTMAX, [checked])
    assert after[0] < before[0]
    assert after[1] == before[1]
    for parameter, old in zip(attention.parameters(), start, strict=True):
        assert torch.equal(parameter[1], old[1])
        assert not torch.equal(parameter[0], old[0])


def test_values_in_padded_places_change_no_divergence() -> None:
    plain = batch(MASK)
    q, k = (x.masked_fill(MASK[:, None, :, None], torch.nan) for x in plain[:2])
    found, other = (total_kl(student(), SOFTMAX, each) for each in (plain, Imitated(q, k, MASK)))
    assert torch.equal(found, other)
