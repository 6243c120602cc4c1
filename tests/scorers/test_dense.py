"""The dense scorer: the kept item table is that of the present weights."""

import torch

from sidrec.scorers.dense import Dense, DenseConfig
from sidrec.testing.tiny_catalogue import eight_sequences, small_config, tiny_batch, tiny_context


def fresh_scores(model, batch):
    """Scores of a model that never kept anything."""
    other = Dense.build(tiny_context(), model.config).eval()
    other.load_state_dict(model.state_dict())
    return other.scores(batch)


def test_scores_after_any_change_of_weights_are_those_of_a_fresh_model():
    model, batch = Dense.build(tiny_context(), small_config(DenseConfig)).eval(), tiny_batch()
    other = Dense.build(tiny_context(), small_config(DenseConfig, seed=1))

    def fused_step():  # leaves no trace on versions: only `train` says that something changed
        optimiser = torch.optim.AdamW(model.train().parameters(), lr=0.1, fused=True)
        model.loss(eight_sequences())[0].backward()
        optimiser.step()
        model.eval()

    def nudged():
        with torch.no_grad():
            model.project.weight.mul_(-1.5)

    def replaced():
        model.items.weight = torch.nn.Parameter(-2 * model.items.weight.detach())

    before = model.scores(batch)
    for change in (nudged, fused_step, replaced, lambda: model.load_state_dict(other.state_dict())):
        change()
        scores = model.scores(batch)
        assert (scores - before).abs().max() > 1e-3
        torch.testing.assert_close(scores, fresh_scores(model, batch), rtol=0, atol=0)
        before = scores


def test_the_table_is_not_computed_again_while_nothing_changes():
    model, batch = Dense.build(tiny_context(), small_config(DenseConfig)).eval(), tiny_batch()
    model.scores(batch)
    table_ND = model.served_table()
    model.scores(batch)
    assert model.served_table() is table_ND
